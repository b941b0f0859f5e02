"""Which lines a call runs, and what they change. Standard library only.

A worker loads this file by path and calls `run`; the trusted side reads what
came back with `decode`.
"""

import ast
import sys
from typing import NamedTuple

VALUE_BYTES = 4096  # The longest repr in a step.
MAX_STEPS = 2000


class Step(NamedTuple):
  """One executed line of the entry function."""

  line: int
  event: str  # 'call' (the first step), 'line', 'return' or 'exception'
  changed: dict  # variable -> repr: the parameters, or what the line changed


class TooManySteps(BaseException):
  """Past the trace limit; a BaseException so that few programs swallow it."""


def decode(rows) -> tuple[Step, ...]:
  """The steps in what a worker sent; its sender is not trusted.

  Raises ValueError, TypeError or AttributeError for any other shape.
  """
  return tuple(
    Step(int(line), str(event), {str(k): str(v) for k, v in changed.items()})
    for line, event, changed in rows
  )


def run(source, function, args, kwargs, steps):
  """Calls `function` and appends [line, event, {variable: repr}] to `steps`.

  First a 'call' step with the parameters; then one step per executed line of
  the function's own frame, with the variables that the line changed.
  Comprehensions and inner calls belong to their line.
  """
  code, seen, line, first = function.__code__, {}, [None], folds(source)

  def snapshot(frame):
    return {k: repr(v)[:VALUE_BYTES] for k, v in frame.f_locals.items()}

  def close(frame, event):
    now = snapshot(frame)
    if line[0] is not None:
      changed = {k: v for k, v in now.items() if seen.get(k) != v}
      steps.append([line[0], event, changed])
      if len(steps) > MAX_STEPS:
        raise TooManySteps
    seen.clear()
    seen.update(now)

  def local(frame, event, arg):
    if event == 'line':
      number = first.get(frame.f_lineno, frame.f_lineno)
      if number == line[0] and frame.f_lineno in first:
        return local  # Still in the same comprehension.
      close(frame, 'line')
      line[0] = number
    elif event == 'return':
      close(frame, 'return')
    elif event == 'exception' and line[0] is not None:
      steps.append([line[0], 'exception', {}])
    return local

  def start(frame, event, arg):
    if frame.f_code is code and not steps:
      seen.update(snapshot(frame))
      steps.append([code.co_firstlineno, 'call', dict(seen)])
      return local
    return None

  sys.settrace(start)
  try:
    return function(*args, **kwargs)
  finally:
    sys.settrace(None)


def folds(source):
  """{line: first line of the outermost comprehension that it is part of}.

  Python 3.12 inlines comprehensions (PEP 709): an event per element, in the
  caller's frame. Folded into one line, 3.11 and later give one trace.
  """
  first = {}
  for node in ast.walk(ast.parse(source)):  # Breadth first: outer before inner.
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp):
      for line in range(node.lineno, node.end_lineno + 1):
        first.setdefault(line, node.lineno)
  return first
