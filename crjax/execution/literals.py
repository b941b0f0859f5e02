"""Reads hostile text as data, within bounds, and prints data as source.

Nothing here evaluates: text becomes a syntax tree, the tree becomes a value if
it is one literal. What is executed later is the source that `render` prints.
"""

import ast
import collections
import math
import re
import warnings

LONGEST = 16_384  # characters
DEEPEST = 64  # nested brackets and operators
NODES = 200_000  # of a tree; an element that a constructor copies costs 20
COPY_COST, LONGEST_COPY = 20, 10_000
DECIMAL_BITS = 10_000  # Longer ints are printed in hex: digits have a limit.
SEQUENCES = (list, tuple, set, frozenset, dict, range, str)

FILENAME = '<literal>'
# `'\\d'` in an answer is no news to whoever runs the training. Once, and not
# around each parse: threads would restore each other's filters.
warnings.filterwarnings('ignore', category=Warning, module=FILENAME)

# What parsing hostile text can raise. UnicodeError is a ValueError.
UNREADABLE = (
  ValueError,
  SyntaxError,
  TypeError,
  RecursionError,
  MemoryError,
  OverflowError,
)
COPIES = {
  'set': set,
  'frozenset': frozenset,
  'dict': dict,
  'list': list,
  'tuple': tuple,
  'bytes': bytes,
  'bytearray': bytearray,
  'deque': collections.deque,
  'Counter': collections.Counter,
  'OrderedDict': collections.OrderedDict,
}
# Strings out of the way, whatever is in brackets remains. One without its end
# runs on: a pattern that fails there would cost quadratic time.
STRINGS = re.compile(
  r'"""(?:[^\\]|\\.)*?(?:"""|\\?\Z)'
  r"|'''(?:[^\\]|\\.)*?(?:'''|\\?\Z)"
  r'|"(?:[^"\\\n]|\\.)*(?:"|\n|\\?\Z)'
  r"|'(?:[^'\\\n]|\\.)*(?:'|\n|\\?\Z)",
  re.DOTALL,
)


def parse(text: str):
  """The value of the one data literal in the text.

  Accepts what `ast.literal_eval` does, `inf`, `nan`, ranges, and constructors
  of the builtin collections on data. Raises ValueError for all else.
  """
  return _checked(lambda: _Reader().value(_tree(text), 0))


def parse_call(text: str, entry: str) -> tuple[list, dict]:
  """(positional, keyword) arguments of the one call `entry(<literals>)`.

  Raises ValueError for anything else, a call of another function included.
  """
  node = call_tree(text, entry)
  return _checked(lambda: _Reader().arguments(node))


def call_tree(text: str, entry: str) -> ast.Call:
  """The one call of `entry` in the text, its arguments unread."""
  node = _checked(lambda: _tree(text))
  if (
    type(node) is not ast.Call
    or type(node.func) is not ast.Name
    or node.func.id != entry
  ):
    raise ValueError(f'not one call of {entry!r:.80}')
  return node


def _checked(read):
  try:
    return read()
  except UNREADABLE as error:
    reason = str(error) or type(error).__name__
    raise ValueError(f'not data: {reason:.120}') from None


def _tree(text):
  """The expression in the text, within the bounds of length and depth."""
  if type(text) is not str:
    raise ValueError('not text')
  if len(text) > LONGEST:
    raise ValueError(f'longer than {LONGEST} characters')
  depth = deepest = 0
  for bracket in re.findall(r'[(\[{}\])]', STRINGS.sub('', text)):
    depth += 1 if bracket in '([{' else -1
    deepest = max(deepest, depth)
  if deepest > DEEPEST:
    raise ValueError(f'nested deeper than {DEEPEST}')
  return ast.parse(text.strip(), FILENAME, 'eval').body


class _Reader:
  """Turns trees into values until its budget of nodes is spent."""

  def __init__(self):
    self.left = NODES

  def spend(self, cost):
    self.left -= cost
    if self.left < 0:
      raise ValueError('too large')

  def value(self, node, depth):
    self.spend(1)
    if depth > DEEPEST:
      raise ValueError(f'nested deeper than {DEEPEST}')
    t, inner = type(node), lambda x: self.value(x, depth + 1)
    if t is ast.Constant and node.value is not Ellipsis:
      return node.value
    if t is ast.List:
      return [inner(x) for x in node.elts]
    if t is ast.Tuple:
      return tuple([inner(x) for x in node.elts])
    if t is ast.Set:
      return {inner(x) for x in node.elts}
    if t is ast.Dict and None not in node.keys:
      pairs = zip(node.keys, node.values, strict=True)
      return {inner(k): inner(v) for k, v in pairs}
    if t is ast.Name and node.id in ('inf', 'nan'):
      return float(node.id)
    if t is ast.UnaryOp and type(node.op) in (ast.UAdd, ast.USub):
      return _signed(node.op, inner(node.operand))
    if t is ast.BinOp and type(node.op) in (ast.Add, ast.Sub):
      return _complex(node.op, inner(node.left), inner(node.right))
    if t is ast.Call and type(node.func) is ast.Name:
      return self.built(node.func.id, *self.arguments(node, depth))
    raise ValueError(f'{t.__name__} is not a literal')

  def arguments(self, node, depth=0):
    names = [k.arg for k in node.keywords]
    if None in names or any(type(x) is ast.Starred for x in node.args):
      raise ValueError('a star in the arguments')
    if len(set(names)) < len(names):
      raise ValueError('an argument twice')
    args = [self.value(x, depth + 1) for x in node.args]
    return args, {k.arg: self.value(k.value, depth + 1) for k in node.keywords}

  def built(self, name, args, kwargs):
    """`name(*args, **kwargs)` for the few constructors that only copy."""
    types = [type(x) for x in args]
    if name == 'dict' and not args:
      return kwargs
    if name == 'range' and set(types) == {int} and not kwargs:
      return range(*args)
    if name == 'float' and len(args) == 1 and not kwargs:
      if types[0] in (str, int, float):
        return float(args[0])
    elif name in COPIES and len(args) <= 1 and not kwargs:
      if not args:
        return COPIES[name]()
      is_raw = types[0] is bytes and name in ('bytes', 'bytearray')
      if (is_raw or types[0] in SEQUENCES) and len(args[0]) <= LONGEST_COPY:
        self.spend(COPY_COST * len(args[0]))
        return COPIES[name](args[0])
    raise ValueError(f'{name}(...) is not a literal')


def _signed(op, x):
  if type(x) not in (int, float, complex):
    raise ValueError('a sign before something that is not a number')
  return -x if type(op) is ast.USub else x


def _complex(op, a, b):
  if type(a) not in (int, float) or type(b) is not complex:
    raise ValueError('arithmetic is not a literal')
  return a + b if type(op) is ast.Add else a - b


def render_call(args, kwargs) -> str:
  """Source of the arguments, as they stand between the parentheses."""
  named = [f'{name}={render(value)}' for name, value in kwargs.items()]
  return ', '.join([render(value) for value in args] + named)


def render(value) -> str:
  """Source of a value that `parse` gave; the same text in every process.

  Sets are sorted: their own order depends on the hash seed of this process,
  and a program may iterate over them. Equal to repr for other plain values.
  """
  t, join = type(value), ', '.join
  if t is int and value.bit_length() > DECIMAL_BITS:
    return hex(value)
  if t is float and not math.isfinite(value):
    return 'nan' if value != value else 'inf' if value > 0 else '-inf'
  if t is list:
    return f'[{join(map(render, value))}]'
  if t is tuple:
    return f'({join(map(render, value))}{"," * (len(value) == 1)})'
  if t is dict:
    return f'{{{join(f"{render(k)}: {render(v)}" for k, v in value.items())}}}'
  if t is set and value:
    return f'{{{join(sorted(map(render, value)))}}}'
  if t is frozenset and value:
    return f'frozenset({{{join(sorted(map(render, value)))}}})'
  if t is collections.deque:
    return f'deque({render(list(value))})'
  if t in (collections.Counter, collections.OrderedDict):
    return f'{t.__name__}({render(dict(value))})'
  if t is complex and not (
    math.isfinite(value.real) and math.isfinite(value.imag)
  ):
    raise ValueError('a complex number that is not finite has no literal')
  return repr(value)
