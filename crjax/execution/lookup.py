"""Values of expressions such as `self.items[0]` in recorded variables."""

import ast
import itertools
import operator

from crjax.execution import literals

ARITHMETIC = {
  ast.Add: operator.add,
  ast.Sub: operator.sub,
  ast.FloorDiv: operator.floordiv,
  ast.Mod: operator.mod,
}


def values(node, states, *, exact: bool) -> list:
  """[[type, text]] of an expression; a state without a value gives none.

  Args:
    node: a name, attribute, subscript, constant or tuple of them.
    states: {name: [type, text or None]}, as `labels.Visit` has them.
    exact: follow private names and integer arithmetic. If not: neither, and
      parts of an expression may come from different states, as in REval.

  Raises LookupError where the record does not tell the value.
  """
  try:
    found = _values(node, states, exact)
    return [[type(x).__name__, literals.render(x)] for x in found]
  except ValueError as error:
    raise LookupError(f'{ast.unparse(node)} is no data') from error


def _values(node, states, exact):
  inner = lambda x: _values(x, states, exact)
  if isinstance(node, ast.Constant):
    return [node.value]
  if isinstance(node, ast.Name | ast.Attribute):
    name = ast.unparse(node)
    return [x for state in states for x in _named(name, state, exact)]
  if isinstance(node, ast.Tuple):
    return list(itertools.product(*map(inner, node.elts)))
  if isinstance(node, ast.Subscript):
    pairs = itertools.product(inner(node.value), inner(node.slice))
    return [x for pair in pairs for x in _tried(operator.getitem, *pair)]
  if not exact:
    return []
  if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
    return [x for y in inner(node.operand) for x in _tried(operator.neg, y)]
  if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
    pairs = list(itertools.product(inner(node.left), inner(node.right)))
    if all(type(x) is int for pair in pairs for x in pair):
      return [x for p in pairs for x in _tried(ARITHMETIC[type(node.op)], *p)]
  raise LookupError(f'{ast.unparse(node)} is not a place')


def _named(name, state, exact):
  """[the value], or [] if there is no such variable."""
  owner, _, attribute = name.rpartition('.')
  if exact and attribute.startswith('__') and name not in state:
    private = [
      key
      for key in state
      if key.startswith(f'{owner}._') and key.endswith(attribute)
    ]
    name = private[0] if len(private) == 1 else name
  if name in state:
    if state[name][1] is None:
      raise LookupError(f'{name} has no text')
    return [literals.parse(state[name][1])]
  if owner in state and not attribute.startswith('__'):
    raise LookupError(f'{name} is not recorded')  # Perhaps of the class.
  return []


def _tried(function, *args):
  try:
    return [function(*args)]
  except (TypeError, KeyError, IndexError, ZeroDivisionError):
    return []
