"""A trace as calls within calls: what each line found, made and called."""

import ast
import collections
import functools
from typing import NamedTuple

from crjax.execution import labels


class Visit(NamedTuple):
  """One execution of a line; states are {name: [type, text or None]}."""

  line: int
  occ: int  # which execution of the line, from 1, over the whole run
  next: int | None
  before: dict | None  # None: not known, as the line before raised
  after: dict | None
  calls: list  # of Frame, what the line called of the program itself


class Frame(NamedTuple):
  """One call of a function of the program."""

  name: str
  args: dict  # {name: text or None}
  visits: list
  value: str | None  # what it returned, as source


def entry(events, code: str) -> Frame:
  """The first call, and in its visits all others that can be told.

  Comprehensions and lambdas are part of their lines, and generators, which
  pause, are left out.
  """
  found = labels.corrected(events, code)
  calls = {e.frame: e for e in events if e.kind == 'call'}
  returns = {e.frame: e.value[1] for e in events if e.kind == 'return'}
  paused = {e.frame for e in events if e.kind == 'yield'}
  frames, state, times = {}, {}, collections.Counter()
  for number, call in calls.items():
    args = {k: v[1] for k, v in call.changed.items() if v and '.' not in k}
    name = call.value[0].rpartition('.')[2]
    frames[number] = Frame(name, args, [], returns.get(number))
    state[number] = {k: v for k, v in call.changed.items() if v}
  for visit in found:
    times[visit.line] += 1
    frame = frames[visit.frame]
    if not frame.visits and visit.frame not in paused:
      parent = _teller(calls, calls[visit.frame].value[1])
      if parent in frames and frames[parent].visits:
        frames[parent].visits[-1].calls.append(frame)
    frame.visits.append(
      Visit(
        visit.line,
        times[visit.line],
        visit.next,
        state[visit.frame],
        visit.state,
        [],
      )
    )
    state[visit.frame] = visit.state
  return frames[0]


def _teller(calls, number):
  """The nearest caller that is a function of its own."""
  while number >= 0:
    name = calls[number].value[0].rpartition('.')[2]
    if name not in labels.INLINE:
      return number
    number = calls[number].value[1]
  return -1


@functools.lru_cache(maxsize=64)
def nodes(code: str) -> dict:
  """{line: the statement that starts there}."""
  walked = ast.walk(ast.parse(code))
  return {n.lineno: n for n in walked if isinstance(n, ast.stmt)}


def changes(before, after) -> dict | None:
  """{name: text} of what differs and has a text; None where it is not known."""
  if before is None or after is None:
    return None
  return {
    name: pair[1]
    for name, pair in after.items()
    if before.get(name) != pair and pair[1] is not None
  }


def enters(node, visit) -> bool:
  """Whether a visit of a loop or branch goes on in its body."""
  first, last = node.body[0].lineno, node.body[-1].end_lineno
  return visit.next is not None and first <= visit.next <= last


def names_in(node) -> list[str]:
  """Names that an expression reads, in order, attributes of self with them."""
  found = [ast.unparse(n) for n in ast.walk(node) if isinstance(n, ast.Name)]
  dotted = [
    ast.unparse(n)
    for n in ast.walk(node)
    if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name)
  ]
  return list(dict.fromkeys([*found, *dotted]))
