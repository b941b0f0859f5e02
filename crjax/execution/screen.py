"""Programs that may share a process with another call of themselves.

A static look at the source, so no boundary: a program that it lets through
still runs in the sandbox, and cannot forge a verdict. It keeps out what could
carry something from one call to the next, the state of `random` included.
"""

import ast
import functools

from crjax.execution import literals


def _words(text):
  return frozenset(text.split())


NAMES = _words("""
  eval exec compile open input globals locals vars breakpoint id
  __import__ __builtins__ memoryview setattr delattr
""")
ATTRIBUTES = _words("""
  __init__ __repr__ __str__ __eq__ __ne__ __lt__ __le__ __gt__
  __ge__ __hash__ __len__ __iter__ __next__ __getitem__ __setitem__ __contains__
  __add__ __sub__ __mul__ __call__ __enter__ __exit__ __name__ __doc__
  __post_init__ __bool__ __neg__ __abs__ __missing__ __reversed__
""")
MODULES = _words("""
  abc array base64 binascii bisect calendar cmath collections copy
  dataclasses datetime decimal enum fractions functools hashlib heapq itertools
  json keyword math numbers operator re string struct textwrap
  types typing unicodedata
""")


@functools.lru_cache(maxsize=4096)
def unsafe(source: str) -> str:
  """Why a program's calls each need a process of their own; '' if not."""
  if len(source) > literals.LONGEST:
    return 'too long to be looked at'
  try:
    tree = ast.parse(source, literals.FILENAME)
    return next(filter(None, map(_fault, ast.walk(tree))), '')
  except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
    return type(error).__name__


def _fault(node):
  if isinstance(node, ast.Import):
    names = [alias.name for alias in node.names]
  elif isinstance(node, ast.ImportFrom):
    names = [node.module or '']
  elif isinstance(node, ast.Name) and node.id in NAMES:
    return f'uses {node.id}'
  elif isinstance(node, ast.Attribute):
    name = node.attr
    if name.startswith('__') and name not in ATTRIBUTES:
      return f'uses .{name}'
    return ''
  else:
    return ''
  foreign = [n for n in names if n.split('.')[0] not in MODULES]
  return f'imports {foreign[0]}' if foreign else ''
