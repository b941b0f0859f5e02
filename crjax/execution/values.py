"""Canonical texts of data values. Standard library only.

Two values are compared as two strings, so that the one who compares never
holds an object that a program made. Used on both sides: by a worker on what
the program returned, by us on the literal that was expected.
"""

import collections
import math

DEEPEST = 64  # nested containers
INT_BITS = 160_000
NAN = 'f\x01'  # Strings are written with repr: no other text has this byte.


class Unsupported(Exception):
  """Not a value of an exact builtin type, or too deep or too large a one."""


def _make_text():
  """`text(value, py)`, with everything it calls bound now.

  A program that replaces `sorted` or `collections.Counter` in its process then
  changes nothing here.
  """
  kind, order, hexed, bits = type, sorted, float.hex, int.bit_length
  form, finite, items = int.__format__, math.isfinite, dict.items
  quote, quote_bytes = str.__repr__, bytes.__repr__
  whole, join, raw = int, ','.join, bytes
  dicts = {
    dict: '{',
    collections.OrderedDict: 'od{',
    collections.defaultdict: 'dd{',
    collections.Counter: 'cn{',
  }
  ordered, deque = collections.OrderedDict, collections.deque
  deepest, largest, unsupported = DEEPEST, INT_BITS, Unsupported
  nan = NAN

  def integer(x):
    if bits(x) > largest:
      raise unsupported(f'an int of more than {largest} bits')
    return 'i' + form(x, 'x')  # Hex: decimal digits have a limit.

  def inexact(x, py):
    if x != x:
      return nan
    if py and finite(x) and x == whole(x):
      return integer(whole(x))
    return 'f' + hexed(x)

  def pairs(x, py, depth, is_ordered):
    found = [
      text(k, py, depth + 1) + ':' + text(v, py, depth + 1) for k, v in items(x)
    ]
    return join(found if is_ordered else order(found)) + '}'

  def text(x, py, depth=0):
    """Canonical text of x; raises Unsupported."""
    if depth > deepest:
      raise unsupported(f'nested deeper than {deepest}')
    t = kind(x)
    inner = lambda: [text(v, py, depth + 1) for v in x]
    if x is None:
      return 'N'
    if t is str:
      return 's' + quote(x)
    if t is bool:
      return ('i1' if x else 'i0') if py else ('T' if x else 'F')
    if t is int:
      return integer(x)
    if t is list:
      return '[' + join(inner()) + ']'
    if t is tuple:
      return '(' + join(inner()) + ')'
    if t in dicts:
      head = '{' if py else dicts[t]
      return head + pairs(x, py, depth, not py and t is ordered)
    if t is float:
      return inexact(x, py)
    if t is set or t is frozenset:
      head = '<' if py or t is set else 'fs<'
      return head + join(order(inner())) + '>'
    if t is bytes:
      return 'b' + quote_bytes(x)
    if t is bytearray:
      return ('b' if py else 'B') + quote_bytes(raw(x))
    if t is complex:
      if py and x.imag == 0:
        return inexact(x.real, py)
      return f'c({inexact(x.real, py)},{inexact(x.imag, py)})'
    if t is deque:
      return 'dq[' + join(inner()) + ']'
    if t is range:
      ends = (x.start, x.stop, x.step)
      if py:  # Ranges are equal as sequences.
        ends = (x[0], x[-1], x.step) if x else ()
        ends = ends[:1] if x and x[0] == x[-1] else ends
      return 'rg(' + join(map(integer, ends)) + ')'
    raise unsupported('a result of a type that is not data')

  return text


text = _make_text()


def texts(value) -> tuple[str, str]:
  """(py, strict) texts of a value; equal texts without NaN mean equality.

  py: Python's `==`: 1 == 1.0 == True, a set equals a frozenset, dicts of all
  kinds are equal whatever their order. strict: types count at every depth,
  -0.0 is not 0.0, an OrderedDict has an order. Raises Unsupported.
  """
  return text(value, True), text(value, False)


def equal(a: str, b: str) -> bool:
  """Whether two texts of one kind say that the values are equal."""
  return a == b and NAN not in a
