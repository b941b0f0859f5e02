"""What happens in a fork: a program's calls, one record for each.

Standard library only; part of the worker. Whatever the program does to this
process ends with it. Everything that is needed after the program has run is
bound before, so that a patched builtin changes nothing here.
"""

import collections
import contextlib
import functools
import io
import json
import marshal
import mmap
import os
import posix
import resource
import sys
import time
import types

import isolation
import seccomp
import tracer
import values
import wire

PRINT_CHARACTERS = 8 << 20  # Nobody reads them.
BALLAST_BYTES = 4 << 20  # Released on MemoryError: room to say so.
MESSAGE_CHARACTERS = 160
FLUSH_SECONDS = 0.0005

# Events of what the sandbox denies. A program that swallows the error would
# return another value than outside: its run is 'disallowed', never a value.
DENIED = {
  'open',
  'import',
  'mmap.__new__',
  'gc.get_objects',
  'gc.get_referrers',
  'gc.get_referents',
  'sys._current_frames',
  'builtins.breakpoint',
  'pickle.find_class',
}
DENIED_FAMILIES = (
  'os.',
  'socket.',
  'subprocess.',
  'shutil.',
  'tempfile.',
  'ctypes.',
  'pty.',
  'fcntl.',
  'signal.',
  'urllib.',
  'sqlite3.',
  'resource.',
  'syslog.',
  'glob.',
  'pathlib.',
)
HARMLESS = {'os.putenv', 'os.unsetenv'}  # Only this process sees it.
# Questions about files that raise no event.
UNHEARD = 'stat lstat access getcwd getcwdb readlink statvfs'
LIBRARY = os.path.dirname(os.__file__)
MARKS = [None]  # The running call's events, or None: not armed.

CONSTRUCTORS = {
  '__builtins__': {},
  'collect': lambda *args, **kwargs: (args, kwargs),
  'set': set,
  'frozenset': frozenset,
  'dict': dict,
  'list': list,
  'tuple': tuple,
  'range': range,
  'bytes': bytes,
  'bytearray': bytearray,
  'float': float,
  'Counter': collections.Counter,
  'OrderedDict': collections.OrderedDict,
  'deque': collections.deque,
  'inf': float('inf'),
  'nan': float('nan'),
}


class PrintedTooMuch(BaseException):
  """Past PRINT_CHARACTERS; a BaseException so that few programs swallow it."""


class Sink(io.TextIOBase):
  """Standard output and error of a program: counts, and keeps nothing."""

  encoding = 'utf-8'
  count = 0

  def write(self, text):
    if type(text) is not str:
      raise TypeError('write() argument must be str')
    self.count += len(text)
    if self.count > PRINT_CHARACTERS:
      raise PrintedTooMuch
    return len(text)

  def writable(self):
    return True


SINK, BALLAST = Sink(), mmap.mmap(-1, BALLAST_BYTES)


def to_sink():
  sys.stdout = sys.stderr = sys.__stdout__ = sys.__stderr__ = SINK
  SINK.count = 0


def audit(event, args):
  marks = MARKS[0]
  if marks is None or len(marks) > 3 or event in HARMLESS:
    return
  if event in DENIED or event.startswith(DENIED_FAMILIES):
    about = args[0] if args and type(args[0]) is str else ''
    # Every codec is loaded: a missing one is missing outside too. And Python
    # itself looks for the source of '<string>' and of its library.
    usual = ('encodings.',) if event == 'import' else ('<', LIBRARY)
    if not about.startswith(usual):
      marks.append(f'{event} {about[:60]}'.strip())


def hear():
  """Makes the functions that raise no audit event mark the call too."""
  for name in UNHEARD.split():
    setattr(os, name, _heard(name, getattr(posix, name)))
    setattr(posix, name, getattr(os, name))


def _heard(name, function):
  @functools.wraps(function)
  def call(*args, **kwargs):
    audit(f'os.{name}', args)
    return function(*args, **kwargs)

  return call


def main(control, pipe, header, tools):
  """Reads its frame, gives up its rights, runs the calls; never returns."""
  libc, program = isolation.LIBC, tools['filter']
  if sys.platform == 'linux':
    libc.prctl(isolation.PDEATHSIG, 9, 0, 0, 0)
  data = read_exactly(control, wire.HEADER.size + header.size)
  frame = marshal.loads(data[wire.HEADER.size :])
  os.close(control)
  limit(header, tools['base_bytes'])
  if program and seccomp.install(libc, tools['machine'], program):
    os._exit(1)
  os.write(pipe, wire.READY)  # Without it, nothing of this was a program's.
  run(frame, pipe, header, tools['is_clean'])


def run(frame, pipe, header, is_clean):
  """Writes a record for each call, as long as they may share this process.

  Records of quick calls are written together: each write wakes the worker.
  """
  sink, ballast, most = SINK, BALLAST, PRINT_CHARACTERS
  source, entry, trace = frame['code'], frame['entry'], frame['trace']
  write, leave, now, code = os.write, os._exit, time.monotonic, None
  ready, since, last = b'', now(), len(frame['args']) - 1
  for i, args in enumerate(frame['args']):
    code, scope, record = call(code, source, entry, args, trace, ballast)
    if sink.count > most:  # Swallowed, or not.
      record = wire.PRINTED + 'what it prints'
    data = record.encode('utf-8', 'backslashreplace')
    if len(data) > header.record_bytes:
      data = wire.PRINTED.encode() + b'the result'
    data = header.token + data
    ready += wire.LENGTH.pack(len(data)) + data
    is_usual = record[0] in (wire.VALUE, wire.RAISED) and not ballast.closed
    ends = i == last or not is_usual or not is_clean(scope)
    if ends or now() - since > FLUSH_SECONDS:
      while ready:
        ready = ready[write(pipe, ready) :]
      since = now()
    if ends:
      break  # The others, if any, are run elsewhere.
    to_sink()
  leave(0)


def read_exactly(fd, size):
  data = bytearray()
  while len(data) < size:
    part = os.read(fd, size - len(data))
    if not part:
      os._exit(1)
    data += part
  return bytes(data)


def limit(header, base_bytes):
  seconds = header.cpu_us * header.calls // 10**6 + 2  # Behind the worker's.
  with contextlib.suppress(ValueError, OSError):  # No such limit on macOS.
    isolation.lower(resource.RLIMIT_AS, base_bytes + (header.memory_mb << 20))
  isolation.lower(resource.RLIMIT_CPU, seconds)
  if os.getuid():
    isolation.lower(resource.RLIMIT_NPROC, 0)


def _make_call():
  """`call`, with everything that it uses after the program ran bound now."""
  module, modules, join = types.ModuleType, sys.modules, wire.FIELD.join
  show, texts, dumps = repr, values.text, json.dumps
  trace_run, evaluate, execute, build = tracer.run, eval, exec, compile
  is_callable, kind, marks_of = callable, type, MARKS
  Everything, Memory, Unsupported = (
    BaseException,
    MemoryError,
    (values.Unsupported),
  )
  Stopped = tracer.Stopped

  def call(code, source, entry, args, trace, ballast):
    """(code, scope, record) of one call in a fresh module."""
    phase, steps, marks, scope = 'compile', [], [], {}
    try:
      if code is None:
        code = build(source, '<program>', 'exec', dont_inherit=True)
      marks_of[0] = marks
      fresh = modules['program'] = module('program')
      scope = fresh.__dict__
      phase = 'define'
      execute(code, scope)
      phase = 'args'
      names = CONSTRUCTORS if entry else scope | {'collect': COLLECT}
      args, kwargs = evaluate(
        build(f'collect({args}\n)', '<args>', 'eval', dont_inherit=True),
        dict(names),
      )
      if not entry:
        value = (list(args), kwargs)
      elif not is_callable(scope.get(entry)):
        raise NameError(f'no function {entry!r}')
      else:
        phase = 'call'
        if trace:
          value = trace_run(scope[entry], args, kwargs, steps)
        else:
          value = scope[entry](*args, **kwargs)
      phase = 'encode'
      fields = [texts(value, True), texts(value, False), shown(show, value)]
      fields.append(dumps(steps) if trace else '')
      record = wire.VALUE + join(fields)
    except Unsupported as error:
      record = wire.UNSUPPORTED + error.args[0]
    except Stopped as error:
      record = wire.STOPPED + join([error.kind, str(error)])
    except Everything as error:
      marks_of[0] = value = args = kwargs = None
      if kind(error) is Memory:
        ballast.close()
      told = describe(kind(error), error)
      del error
      record = wire.RAISED + join([phase, *told, dumps(steps) if trace else ''])
    marks_of[0] = None
    if marks:
      record = wire.TAINTED + '; '.join(marks)
    return code, scope, record

  return call


COLLECT = CONSTRUCTORS['collect']


def shown(show, value):
  """repr; an int of more digits than Python prints is shown in hex."""
  try:
    return show(value)
  except ValueError:
    return hex(value) if type(value) is int else '...'


def _make_describe():
  """`describe`, which runs no code of the program: classes can lie."""
  name, arguments = type.__getattribute__, BaseException.args.__get__
  free, kind, show, plain = (
    BaseException.with_traceback,
    type,
    repr,
    (int, float, bool),
  )

  def describe(t, error):
    """[name, message] of an exception."""
    free(error, None)  # The frames, and all that they hold.
    args = arguments(error)
    message = args[0] if args else ''
    if kind(message) is int and len(args) > 1:  # OSError(2, 'No such file').
      message = args[1]
    if kind(message) in plain:
      message = show(message)
    elif kind(message) is not str:
      message = ''
    told = [name(t, '__name__'), message[:MESSAGE_CHARACTERS]]
    return [text.replace(wire.FIELD, ' ') for text in told]

  return describe


describe = _make_describe()
call = _make_call()
