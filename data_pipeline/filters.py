"""Which programs and values make no question, and why. Pure functions."""

import ast
import itertools
import random

from crjax.execution import literals
from data_pipeline import identity

MODULES = {
  *('math', 'string', 'collections', 'itertools', 'functools', 're'),
  *('typing', 'bisect', 'heapq'),
}
BANNED = {
  *('exec', 'eval', 'open', 'input', 'hash', 'id', 'globals', 'locals'),
  *('vars', 'random', 'time', 'os', 'sys', 'print', 'compile', 'breakpoint'),
  *('getattr', 'setattr', 'delattr', '__import__'),
}
DUNDERS = {'__init__', '__len__', '__repr__', '__str__', '__eq__'}
LINES, LONGEST = (2, 40), 1200  # characters
MOST_PARAMETERS = 3
CONSTANTS = (0, 1, 2, -1, 10, '', 'a', 'abc', [], {}, (), True)
SEARCHES = 500  # calls of a brute force for the input
# Lines and calls of one of them, then it is given up: more than a case may
# have, and so few that all take a small part of the time a program gets. What
# the processor's time would end would end elsewhere on a busy machine.
SEARCH_EVENTS = 1_000


def static(code: str, entry: str, shortest: int) -> str:
  """Why a program is not executed, or ''."""
  try:
    tree = ast.parse(code)
  except (SyntaxError, ValueError, RecursionError):
    return 'not Python'
  functions = [n for n in tree.body if isinstance(n, ast.FunctionDef)]
  found = [f for f in functions if f.name == entry]
  if len(found) != 1:
    return 'no such function'
  lines = identity.features(code)['lines']
  if not LINES[0] <= lines <= LINES[1]:
    return 'too short or too long'
  if not shortest <= len(code) <= LONGEST:
    return 'too short or too long'
  if reason := next(filter(None, map(_banned, ast.walk(tree))), ''):
    return reason
  return _parameters(found[0])


def _banned(node) -> str:
  if isinstance(node, ast.Import | ast.ImportFrom):
    names = [a.name for a in node.names]
    if isinstance(node, ast.ImportFrom):
      names = [node.module or '']
    return '' if set(names) <= MODULES else f'imports {names[0]}'
  if isinstance(node, ast.Global):
    return 'uses global'
  if isinstance(node, ast.Name) and node.id in BANNED:
    return f'uses {node.id}'
  name = getattr(node, 'attr', getattr(node, 'name', '')) or ''
  if str(name).startswith('__') and name not in DUNDERS:
    return f'uses {name}'
  return ''


def _parameters(function) -> str:
  args = function.args
  if args.vararg or args.kwarg or args.defaults or args.kwonlyargs:
    return 'optional parameters'
  names = {a.arg for a in args.args}
  if not 1 <= len(names) <= MOST_PARAMETERS:
    return 'number of parameters'
  read = {n.id for n in ast.walk(function) if isinstance(n, ast.Name)}
  return '' if names <= read else 'unused parameter'


def value(source: str, limits) -> str:
  """Why an output, given as source, is not asked about, or ''.

  Args:
    limits: longest_output (characters), largest_int, most_items,
      longest_string, deepest, floats (whether they are allowed).
  """
  if len(source) > limits['longest_output']:
    return 'long output'
  try:
    found = literals.parse(source)
  except ValueError:
    return 'not a literal'
  if found is None:
    return 'returns None'
  return _inside(found, limits, 1)


def _inside(x, limits, depth) -> str:
  if isinstance(x, int):
    return 'large int' if abs(x) > limits['largest_int'] else ''
  if isinstance(x, float):
    return '' if limits['floats'] and x == round(x, 6) else 'float'
  if isinstance(x, str | bytes):
    return 'long string' if len(x) > limits['longest_string'] else ''
  if x is None:
    return ''
  if not isinstance(x, list | tuple | dict | set | frozenset):
    return 'type'
  if len(x) > limits['most_items']:
    return 'many items'
  if depth > limits['deepest']:
    return 'deep'
  items = itertools.chain(*x.items()) if isinstance(x, dict) else x
  reasons = (_inside(item, limits, depth + 1) for item in items)
  return next(filter(None, reasons), '')


def is_argument(output: str, args) -> bool:
  """Whether an output is one of the arguments, as it is."""
  return output in {literals.render(a) for a in args}


SEARCH = """

def search_all_(entry, values, grid, wanted, most):
    import copy
    import sys

    class TooLong(BaseException):
        pass

    left = [most]

    def count(frame, event, arg):
        left[0] -= 1
        if left[0] < 0:
            raise TooLong
        return count

    found = []
    for places in grid:
        args = copy.deepcopy([values[i] for i in places])
        left[0] = most
        sys.settrace(count)
        try:
            value = entry(*args)
        except (Exception, TooLong):
            continue
        finally:
            sys.settrace(None)
        for i, one in enumerate(wanted):
            if type(one) is type(value) and one == value and i not in found:
                found.append(i)
    return found
"""


def search(code, entry, outputs, arity, seed) -> tuple[str, str, str]:
  """(program, entry, arguments) of a brute force for inputs.

  It returns the places of the outputs that it has reached with constants, the
  outputs themselves and their first elements, in at most SEARCHES calls of at
  most SEARCH_EVENTS lines and calls.
  """
  wanted = [literals.parse(o) for o in outputs]
  tried = {literals.render(c): c for c in CONSTANTS}
  for one in wanted:
    tried[literals.render(one)] = one
    if isinstance(one, list | tuple | str) and one:
      tried[literals.render(one[0])] = one[0]
  grid = list(itertools.product(range(len(tried)), repeat=arity))
  if len(grid) > SEARCHES:
    grid = random.Random(seed).sample(grid, SEARCHES)
  call = f'{code}\n{SEARCH}\n\ndef search_inputs_(values, grid, wanted):\n'
  most = SEARCH_EVENTS
  call += f'    return search_all_({entry}, values, grid, wanted, {most})\n'
  args = literals.render_call([list(tried.values()), grid, wanted], {})
  return call, 'search_inputs_', args


def difficulty(events: int, depth: int) -> int:
  """The static stand-in for a policy's failures: trace events x depth."""
  return events * (1 + depth)
