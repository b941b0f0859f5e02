"""Gold labels of a recorded call: coverage, next line and variable state.

The trusted side of `tracer`: it reads events as data and runs nothing.

Two semantics. `corrected`: a line is followed within its own frame, and a
comprehension is part of its line, as on Python 3.12 and later (PEP 709), so
that all versions give the same labels. `reval`: what the published labels of
REval (arXiv 2403.16437) mean, defects included: one sequence of lines through
all frames, whose locals may be those of another function. It records
comprehension frames where Python has them, so 3.11 and 3.12+ differ on lines
with comprehensions.
"""

import ast
import functools
from typing import NamedTuple

from crjax.execution import lookup

KINDS = {
  *('call', 'line', 'return', 'exception', 'unwind', 'yield', 'resume'),
  *('stop', 'cleanup'),
}
INLINE = ('<listcomp>', '<setcomp>', '<dictcomp>', '<genexpr>', '<lambda>')
COMPREHENSIONS = ast.ListComp | ast.SetComp | ast.DictComp
# Statements that run nothing of their own when a function is called.
SILENT = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
SILENT |= ast.Global | ast.Nonlocal
RETURNS = -1  # The next line of one that leaves its function.


class Event(NamedTuple):
  """What happened in one frame of the program; see tracer.run."""

  frame: int
  kind: str
  line: int
  changed: dict
  value: list | None


class Step(NamedTuple):
  """One executed line of the entry function."""

  line: int
  event: str  # 'call' (the first step), 'line', 'return' or 'exception'
  changed: dict  # variable -> repr: the parameters, or what the line changed


class Visit(NamedTuple):
  """One execution of a line."""

  frame: int  # -1 where frames are not told apart
  line: int
  next: int | None  # RETURNS; None if the line raised or its frame paused
  state: dict | None  # variables after it: {name: [type, text or None]}


def decode(rows) -> tuple[Event, ...]:
  """The events in what a worker sent; its sender is not trusted.

  Raises ValueError, TypeError or AttributeError for any other shape.
  """
  events = tuple(_event(*row) for row in rows)
  begun = [e.frame for e in events if e.kind == 'call']
  if begun != list(range(len(begun))):
    raise ValueError('frames are not numbered in the order of their calls')
  if any(not 0 <= e.frame < len(begun) for e in events):
    raise ValueError('an event of a frame that was not called')
  return events


def _event(frame, kind, line, changed, value):
  if kind not in KINDS or type(frame) is not int or type(line) is not int:
    raise ValueError(f'not an event: {kind!r:.40}')
  value = [str(value[0]), int(value[1])] if kind == 'call' else _pair(value)
  changed = {str(k): _pair(v) for k, v in changed.items()}
  return Event(frame, kind, line, changed, value)


def _pair(value):
  if value is None:
    return None
  kind, text = value
  return [str(kind), None if text is None else str(text)]


@functools.lru_cache(maxsize=256)  # Many questions are about one program.
def folds(code: str) -> dict[int, int]:
  """{line: first line of the outermost comprehension that it is part of}."""
  first = {}
  for node in ast.walk(ast.parse(code)):  # Breadth first: outer before inner.
    if isinstance(node, COMPREHENSIONS):
      for line in range(node.lineno, node.end_lineno + 1):
        first.setdefault(line, node.lineno)
  return first


def steps(events, code: str) -> tuple[Step, ...]:
  """What the entry's first call did, without the calls and loops inside."""
  first, told, line = folds(code), [], None
  before, now = {}, {}
  for event in events:
    if event.frame != 0:
      continue
    _update(now, event.changed)
    number = first.get(event.line, event.line)
    if event.kind == 'exception' and line is not None:
      told.append(Step(line, 'exception', {}))
    if event.kind not in ('call', 'line', 'return', 'unwind'):
      continue
    if event.kind == 'line' and event.line in first and number == line:
      continue  # Still in the same comprehension.
    if event.kind == 'call' or line is not None:
      changed = {
        name: f'<{kind}>' if text is None else text
        for name, (kind, text) in now.items()
        if before.get(name) != [kind, text] and '.' not in name
      }
      kind = 'return' if event.kind == 'unwind' else event.kind
      told.append(Step(line or number, kind, changed))
    before, line = dict(now), None if event.kind == 'call' else number
  return tuple(told)


def corrected(events, code: str) -> list[Visit]:
  """Executions of lines in their own frames, in the order of their start.

  Frames of comprehensions, generator expressions and lambdas are left out.
  """
  first, visits, frames = folds(code), [], {}
  for event in events:
    if event.kind == 'call':
      inline = event.value[0].rpartition('.')[2] in INLINE
      frames[event.frame] = None if inline else ({}, [], [None])
    if frames[event.frame] is None:
      continue
    variables, pending, last = frames[event.frame]
    _update(variables, event.changed)
    line = first.get(event.line, event.line)
    inside = event.kind == 'line' and event.line in first
    goes_on = event.kind in ('stop', 'cleanup')
    if goes_on or (inside and last == [line]):
      continue  # The line goes on, perhaps with one element more.
    if pending and event.kind in ('line', 'return'):
      following = line if event.kind == 'line' else RETURNS
      done = visits[pending[0]]
      visits[pending[0]] = done._replace(next=following, state=dict(variables))
    pending.clear()
    if event.kind == 'line':
      last[:] = [line]
      pending.append(len(visits))
      visits.append(Visit(event.frame, line, None, None))
  return visits


def reval(events, code: str) -> list[Visit]:
  """The states of REval: one a change of line, whichever frame it is in.

  Its tracer (`dynamics.py`) takes the locals at `line` events only, so that a
  return or an exception on another line than the state before has none.
  """
  variables, states = {}, []
  for event in events:
    mine = variables.setdefault(event.frame, {})
    _update(mine, event.changed)
    if event.kind in ('call', 'resume'):
      continue
    if not states or states[-1][0] != event.line:
      states.append((event.line, {}))
    if event.kind in ('line', 'cleanup'):
      states[-1] = event.line, dict(mine)
  after = [*states[1:], *states[-1:]]  # The last one is its own successor.
  return [
    Visit(-1, line, following if i + 1 < len(states) else RETURNS, state)
    for i, ((line, _), (following, state)) in enumerate(
      zip(states, after, strict=True)
    )
  ]


MODES = {'corrected': corrected, 'reval': reval}


def _update(variables, changed):
  for name, pair in changed.items():
    if pair is None:
      variables.pop(name, None)
    else:
      variables[name] = pair


@functools.lru_cache(maxsize=256)
def statements(code: str) -> frozenset[int]:
  """First lines of the statements that can run when a function is called."""
  found = set()
  for function in ast.walk(ast.parse(code)):
    if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
      inner = [n for x in function.body for n in ast.walk(x)]
      found |= {
        node.lineno
        for node in inner
        if isinstance(node, ast.stmt)
        and not isinstance(node, SILENT)
        and not (isinstance(node, ast.AnnAssign) and node.value is None)
        and not (isinstance(node, ast.Expr) and _constant(node.value))
      }
  return frozenset(found)


def _constant(node):
  return isinstance(node, ast.Constant)


def gold(events, code, question, mode='corrected') -> list[str] | None:
  """The right answers to a question as texts, None for no question.

  Args:
    question: {'kind': 'coverage', 'path' or 'state', 'line'}; and for states
      'var'; 'occ' as for `path`, where one execution is meant.

  Returns:
    ['YES'] or ['NO']; line numbers; `value; type` or ['Nil'].
  """
  line, occ = question['line'], question.get('occ')
  if question['kind'] == 'coverage':
    runs = coverage(events, code, line, mode)
    return None if runs is None else ['YES' if runs else 'NO']
  if question['kind'] == 'path':
    found = path(events, code, line, occ=occ, mode=mode)
    return None if found is None else [str(x) for x in found]
  found = state(events, code, line, question['var'], occ=occ, mode=mode)
  if found is None:
    return None
  return [f'{text}; {kind}' for kind, text in found] or ['Nil']


def coverage(events, code, line, mode='corrected') -> bool | None:
  """Whether the line ran; None where no such question makes sense.

  Corrected: only first lines of statements can be asked about, and lines of
  lambdas and of loops inside expressions count.
  """
  if mode == 'reval':
    return line in {visit.line for visit in reval(events, code)}
  if line not in statements(code):
    return None
  first = folds(code)
  lines = [e.line for e in events if e.kind == 'line']
  return first.get(line, line) in {first.get(x, x) for x in lines}


def path(events, code, line, *, occ=None, mode='corrected') -> list | None:
  """Numbers of the lines that may follow, in order; [-1] if it never runs.

  Args:
    occ: which execution of the line, from 1; by default any of them.

  Returns:
    RETURNS (-1) stands for the end of the line's function (corrected) or of
    the program (reval). None: no question, as the line only ever raised or
    paused, is no statement, or did not run that often.
  """
  visits = _visits(events, code, line, occ, mode)
  if not visits:
    return [RETURNS] if visits == [] else None
  found = {visit.next for visit in visits} - {None}
  return sorted(found) or None


def state(events, code, line, var, *, occ=None, mode='corrected'):
  """[[type, text]] of what `var` may be after the line; [] if it never runs.

  Args:
    var: a name, an attribute, a subscript or a tuple of them, as source.
    occ: which execution of the line, from 1; by default any of them.

  Returns:
    Distinct values; [] means Nil. None: no question, as for `path` and for
    values that have no text, or a variable that does not exist there.
    In mode 'reval' one that does not exist is Nil.
  """
  visits = _visits(events, code, line, occ, mode)
  if not visits:
    return visits
  states = [visit.state for visit in visits if visit.state is not None]
  node = ast.parse(var, mode='eval').body
  try:
    if mode == 'reval':
      found = lookup.values(node, states, exact=False)
    else:
      found = [v for s in states for v in lookup.values(node, [s], exact=True)]
  except LookupError:
    return None
  distinct = [list(pair) for pair in dict.fromkeys(map(tuple, found))]
  return distinct if distinct or mode == 'reval' else None


def _visits(events, code, line, occ, mode):
  """Executions of the line, [] if there is none, None for no question."""
  first = folds(code)
  if mode == 'corrected':
    if line not in statements(code):
      return None
    line = first.get(line, line)
  visits = [v for v in MODES[mode](events, code) if v.line == line]
  if occ is None or not visits:
    return visits
  return visits[occ - 1 : occ] or None
