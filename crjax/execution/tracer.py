"""Records what a call does, line by line, in every frame of its program.

Standard library only and no import of crjax: the sandbox loads this file by
path and runs it in the child that runs the program. What it records is plain
data for JSON; `labels` makes sense of it on the trusted side.

Tracing must not change what a program returns. So no code of the program runs
here: the text of a value is its repr only if it is made of plain builtins all
the way down. And no frame is kept alive: a frame's state is in its own hook.
"""

import itertools
import opcode
import sys

FILENAME = '<program>'  # with which a program is compiled
MOST_EVENTS = 10_000
MOST_CHARACTERS = 1 << 20  # of the record as JSON, about
LONGEST = 300  # characters of a value's text; a longer one has no text
DEEPEST = 400  # frames of the program on top of each other
HEADROOM = 400  # recursion that the hooks need on top of the program's

TEXTS = {str, bytes, bytearray}
SCALARS = {type(None), bool, float, complex, range}
SEQUENCES = {list, tuple, set, frozenset}
# Instructions at the end of a loop and at a yield; 3.13 may tell the next one.
ENDS = ('FOR_ITER', 'SEND', 'END_FOR', 'END_SEND')
PAUSES = ('YIELD_VALUE', 'RESUME')
# Even the name of a class can be an attribute that its metaclass computes.
NAME, CLASS_DICT = (type.__dict__[x].__get__ for x in ('__name__', '__dict__'))


class Stopped(BaseException):
  """The trace ended before the program; not many programs swallow it.

  `kind` is the verdict: 'timeout', 'output_limit' or 'unsupported'.
  """

  def __init__(self, kind, detail):
    super().__init__(detail)
    self.kind = kind


def run(function, args, kwargs, rows):
  """Calls `function(*args, **kwargs)`, fills `rows`, and returns the value.

  Args:
    rows: an empty list that gets [frame, kind, line, changed, value] for each
      event in the frames of the program, in the order of time; also when an
      exception escapes.
      frame: the number of the call; a generator keeps its own.
      kind: call, line, return, exception, unwind (an exception leaves the
        frame), yield, resume, stop (a loop meets StopIteration) or cleanup (an
        event of a line that does not really run).
      changed: the locals that differ from those at the frame's event before,
        {name: [type, text]}; no text (None) where it is too long or not made
        of builtins; None instead of the pair for a name that is gone. So are
        the attributes of objects of the program's own classes: 'self.size'.
      value: [type, text] of what is returned, yielded or raised (no text); of
        a call [qualified name, number of the caller or -1].

  Raises:
    Stopped: at a limit, or when the program ends the tracing.
    Whatever the program raises.
  """
  start, stopped = hook(rows)
  limit = sys.getrecursionlimit()
  sys.setrecursionlimit(limit + HEADROOM)
  sys.settrace(start)
  try:
    return function(*args, **kwargs)
  finally:
    lost = sys.gettrace() is not start
    sys.settrace(None)
    sys.setrecursionlimit(limit)
    if stopped:  # Again: the program may have swallowed it.
      raise stopped[0]
    if lost and sys.exc_info()[0] is not MemoryError:
      raise Stopped('unsupported', 'the program ended its own trace')


def hook(rows):
  """(the function for sys.settrace, the list that gets what stopped it)."""
  active, stopped = [], []
  count, left = itertools.count(), MOST_CHARACTERS

  def stop(kind, detail):
    stopped.append(Stopped(kind, detail))
    raise stopped[0]

  def tell(number, kind, line, changed, value):
    nonlocal left
    rows.append([number, kind, line, changed, value])
    left -= 40 + sum(map(size, changed.items())) + len(str(value))
    if len(rows) > MOST_EVENTS:
      stop('timeout', f'more than {MOST_EVENTS} trace events')
    if left < 0:
      stop('output_limit', f'a trace of more than {MOST_CHARACTERS} characters')

  def start(frame, event, arg):
    if event != 'call' or frame.f_code.co_filename != FILENAME:
      return None
    if frame.f_trace is not None:  # A generator goes on.
      return frame.f_trace(frame, 'resume', None)
    return follow(next(count))(frame, 'call', None)

  def follow(number):
    seen, kind, line = {}, None, None  # those of the event before

    def local(frame, event, arg):
      nonlocal kind, line
      value = None
      if event == 'call':
        value = [frame.f_code.co_qualname, active[-1] if active else -1]
        kind, line = event, frame.f_code.co_firstlineno
      else:
        kind, value = classify(frame, event, arg, kind)
        line = frame.f_lineno or line  # Some bytecode has no line.
      if kind in ('call', 'resume'):
        active.append(number)
        if len(active) > DEEPEST:
          stop('unsupported', f'more than {DEEPEST} calls deep')
      elif kind in ('return', 'yield', 'unwind'):
        active.pop()
      tell(number, kind, line, changes(frame, seen), value)
      return local

    return local

  return start, stopped


def classify(frame, event, arg, before):
  """(kind of the event, its value); `before` is the kind of the last one."""
  if event == 'exception':
    # A loop or `yield from` that meets the end of an iterator: no exception.
    ends = arg[0] is StopIteration and operations(frame)[0] in ENDS
    return 'stop' if ends else 'exception', [NAME(arg[0]), None]
  if event == 'line':
    return 'cleanup' if is_cleanup(frame) else 'line', None
  if event == 'resume':
    return 'resume', None
  name = operations(frame)[0]
  if name.startswith('RETURN_'):
    return 'return', describe(arg)
  if name in PAUSES and before != 'exception':
    return 'yield', describe(arg)
  return 'unwind', None


def is_cleanup(frame):
  """Whether a line seems to run only because an exception is passed on.

  RERAISE has the line of a `pass` or `break` before it that has no instruction
  of its own. On Python 3.11 it may have the line of the instruction before it,
  which did not run. (One case is left there: `if x: pass` at the end of a
  `finally`, when an exception passes.)
  """
  pair = operations(frame)
  if pair[0] != 'RERAISE':
    return pair == ['COPY', 'POP_EXCEPT']
  at = frame.f_lasti
  line = [x for a, b, x in frame.f_code.co_lines() if a < at <= b]
  return line == [frame.f_lineno]


def operations(frame):
  """Names of the instruction that runs, and the one behind it."""
  code, i = frame.f_code.co_code, frame.f_lasti
  return [opcode.opname[x] for x in (code + bytes(2))[i : i + 4 : 2]]


def changes(frame, seen):
  """{name: [type, text] or None if gone} against `seen`, which is updated."""
  now = {}
  module = frame.f_globals.get('__name__')
  for name, value in frame.f_locals.items():
    if name.startswith(('.', '__')):  # The iterator of a comprehension.
      continue
    now[name] = describe(value)
    for attribute, inner in attributes(value, module).items():
      now[f'{name}.{attribute}'] = describe(inner)
  changed = {k: v for k, v in now.items() if seen.get(k) != v}
  changed |= {k: None for k in seen if k not in now}
  seen.clear()
  seen.update(now)
  return changed


def describe(value):
  """[name of the type, text or None]; the text is Python source."""
  kind, text = type(value), None
  if room(value, LONGEST) >= 0:
    try:
      text = repr(value)
    except ValueError:  # More digits than the program allows.
      return [NAME(kind), None]
    if len(text) > LONGEST:
      text = None
  return [NAME(kind), text]


def room(value, left):
  """At most what the text of a value leaves of `left`; negative for no text.

  Looks at no more of a value than that, so that a snapshot of a large one is
  as cheap as that of a small one, and at exact builtins only.
  """
  kind = type(value)
  if kind in TEXTS:
    return left - len(value) - 2
  if kind is int:
    return left - value.bit_length() // 4
  if kind in SCALARS:
    return left - 1
  if kind in SEQUENCES:
    items = iter(value)
  elif kind is dict:
    items = itertools.chain.from_iterable(value.items())
  else:
    return -1
  left -= 2  # Also what ends the descent into a list that holds itself.
  for item in items:
    if left < 0:
      break
    left = room(item, left - 1)
  return left


def attributes(value, module):
  """The attributes of an object of a class of the program."""
  if CLASS_DICT(type(value)).get('__module__') != module:
    return {}
  try:
    found = object.__getattribute__(value, '__dict__')
  except AttributeError:  # A class with slots.
    return {}
  return found if type(found) is dict else {}


def size(item):
  """About the length of a change in JSON."""
  name, value = item
  return len(name) + 12 + len(str(value))
