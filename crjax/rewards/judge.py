"""Literals, calls with literal arguments, and two notions of equality."""

import ast
import math
import warnings

LONGEST = 4096  # bytes of an answer
DEEPEST = 40  # nested containers

# What parsing hostile text can raise.
UNREADABLE = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)
COLLECTIONS = {ast.List: list, ast.Tuple: tuple, ast.Set: set}

# `1(2)` and `'\\d'` in an answer are no news to whoever runs the training.
warnings.filterwarnings('ignore', category=Warning, module='<answer>')


def literal(source):
  """The value of one Python literal, `set()` and `frozenset(...)` included.

  Args:
    source: text of at most 4 KB, or an expression node of such text.

  Raises:
    ValueError: for anything else; nothing is ever executed.
  """
  node = expression(source) if isinstance(source, str) else source
  try:
    return _value(node, 0)
  except UNREADABLE as error:
    raise ValueError(f'not a literal: {error}') from error


def _value(node, depth):
  """As ast.literal_eval, and frozensets, with a limit to the depth."""
  if depth > DEEPEST:
    raise ValueError(f'nested deeper than {DEEPEST}')
  inner = lambda node: _value(node, depth + 1)
  if type(node) in COLLECTIONS:
    return COLLECTIONS[type(node)](map(inner, node.elts))
  if isinstance(node, ast.Dict) and None not in node.keys:
    pairs = zip(map(inner, node.keys), map(inner, node.values), strict=True)
    return dict(pairs)
  if _calls(node, 'frozenset') and len(node.args) < 2 and not node.keywords:
    return frozenset(inner(node.args[0]) if node.args else ())
  return ast.literal_eval(node)


def expression(source: str) -> ast.expr:
  """The one expression in the text; for `assert x`, that is x."""
  if len(source.encode('utf-8', 'replace')) > LONGEST:
    raise ValueError(f'longer than {LONGEST} bytes')
  try:
    body = ast.parse(source.strip(), '<answer>').body
  except UNREADABLE as error:
    raise ValueError(f'not Python: {error}') from error
  if len(body) == 1 and isinstance(body[0], ast.Expr):
    return body[0].value
  if len(body) == 1 and isinstance(body[0], ast.Assert) and not body[0].msg:
    return body[0].test
  raise ValueError('not one expression')


def output_literal(answer: str, entry: str, args: str):
  """The value that an answer to an output question names.

  Accepts the literal, or the whole assertion about the call that was asked.
  """
  node = expression(answer)
  if isinstance(node, ast.Compare):
    call, node = _sides(node, entry)
    if ast.dump(call) != ast.dump(expression(f'{entry}({args})')):
      raise ValueError('an assertion about another call')
  return literal(node)


def input_arguments(answer: str, entry: str) -> str:
  """The arguments that an answer to an input question names, rendered by us.

  Accepts `f(args)`, the whole assertion, or the bare arguments; all literals.
  """
  try:
    node = expression(answer)
  except ValueError:  # `1, x=2` is no expression until it is in a call.
    node = None
  if isinstance(node, ast.Compare):
    node, _ = _sides(node, entry)
  if not _calls(node, entry):
    node = expression(f'{entry}({answer.strip()})')
  if not _calls(node, entry):
    raise ValueError(f'not a call of {entry}')
  if any(keyword.arg is None for keyword in node.keywords):
    raise ValueError('** in the arguments')
  args = [render(literal(arg)) for arg in node.args]
  args += [f'{k.arg}={render(literal(k.value))}' for k in node.keywords]
  return ', '.join(args)


def render(value) -> str:
  """Source of a literal, the same in every process: sets are sorted.

  Their own order depends on the hash seed, and programs iterate over them.
  """
  if isinstance(value, set | frozenset):
    inner = ', '.join(sorted(map(render, value)))
    shown = f'{{{inner}}}' if inner else 'set()'
    return f'frozenset({shown})' if isinstance(value, frozenset) else shown
  if isinstance(value, list):
    return f'[{", ".join(map(render, value))}]'
  if isinstance(value, tuple):
    return f'({"".join(f"{render(x)}, " for x in value)})'
  if isinstance(value, dict):
    pairs = (f'{render(k)}: {render(v)}' for k, v in value.items())
    return f'{{{", ".join(pairs)}}}'
  if isinstance(value, float) and math.isinf(value):
    return '1e999' if value > 0 else '-1e999'  # `inf` would be a name.
  return repr(value)


def strict_equal(a, b) -> bool:
  """Python's own equality: 1 == True == 1.0; order in a dict is free."""
  try:
    return bool(a == b)
  except RecursionError:
    return False


def typed_equal(a, b) -> bool:
  """Equality in which types count all the way down: 1, True, 1.0 differ."""
  if type(a) is not type(b):
    return False
  if isinstance(a, list | tuple):
    return len(a) == len(b) and all(map(typed_equal, a, b))
  if isinstance(a, dict):
    pairs = lambda d: {(_key(k), k): v for k, v in d.items()}
    a, b = pairs(a), pairs(b)
    return a.keys() == b.keys() and all(typed_equal(a[k], b[k]) for k in a)
  if isinstance(a, set | frozenset):
    return {(_key(x), x) for x in a} == {(_key(x), x) for x in b}
  return a == b


def _key(x):
  """The types inside a hashable literal, so that (1,) and (True,) differ."""
  if isinstance(x, tuple | frozenset):
    parts = map(_key, x)
    inner = tuple(parts) if isinstance(x, tuple) else frozenset(parts)
    return type(x), inner
  return type(x)


def _sides(node, entry):
  """(call, other side) of `entry(...) == x`, in either order."""
  if len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
    left, right = node.left, node.comparators[0]
    if _calls(left, entry):
      return left, right
    if _calls(right, entry):
      return right, left
  raise ValueError(f'not an assertion about {entry}')


def _calls(node, name) -> bool:
  return (
    isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == name
  )
