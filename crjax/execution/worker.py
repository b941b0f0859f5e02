"""The other side of `pool.Pool`: one process that forks a child per job.

Started by path with a bare interpreter; standard library only. It reads jobs
from stdin and writes results to stdout, each one line of JSON. A job's child
lowers its own limits, runs the program with no descriptor but one end of a
pipe, and sends its result through it; whatever it does to its interpreter dies
with it, and so do the processes that it leaves behind (on Linux).
"""

import ast
import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

VALUE_BYTES = 4096  # The longest repr that is a value.
REPLY_BYTES = 1 << 20
MAX_STEPS = 2000
VERDICTS = ('ok', 'error', 'timeout', 'memory')  # 'infra' is not for programs.
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class TooManySteps(BaseException):
  """Past the trace limit; a BaseException so that few programs swallow it."""


def serve(stdin, stdout):
  stdout.write('ready\n')
  stdout.flush()
  for line in stdin:
    job = json.loads(line)
    stdout.write(json.dumps(run(job)) + '\n')
    stdout.flush()


def run(job):
  """Forks, waits for at most the wall-clock limit, and returns the result."""
  reader, writer = os.pipe()
  pid = os.fork()
  if pid == 0:
    os.close(reader)
    child(job, writer)
  os.close(writer)
  reply = read_until(reader, time.monotonic() + job['wall_seconds'])
  os.close(reader)
  return verdict(reply, reap(pid))


def reap(pid):
  """Kills and collects the child and all it left; returns its wait status."""
  kill(os.killpg, pid)  # Before its number is free: most leftovers are here.
  kill(os.kill, pid)  # It may have changed its group.
  _, status = os.waitpid(pid, 0)
  while True:  # Orphans came to us: we are their subreaper.
    try:
      found, _ = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
      return status
    if not found:
      with open(f'/proc/self/task/{os.getpid()}/children') as children:
        for orphan in children.read().split():
          kill(os.kill, int(orphan))


def kill(how, pid):
  with contextlib.suppress(ProcessLookupError, PermissionError):
    how(pid, signal.SIGKILL)


def prctl(option, value):
  if sys.platform == 'linux':
    LIBC.prctl(option, value, 0, 0, 0)


def verdict(reply, status):
  if reply is None:
    return {'verdict': 'timeout', 'detail': 'wall-clock limit'}
  try:
    return checked(json.loads(reply))
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
    if reply:  # Only the program itself writes such a thing.
      return {'verdict': 'error', 'detail': 'wrote into the reply'}
  if os.WIFSIGNALED(status):
    number = os.WTERMSIG(status)
    if number in (signal.SIGPROF, signal.SIGXCPU, signal.SIGKILL):
      return {'verdict': 'timeout', 'detail': 'CPU limit'}
    return {'verdict': 'error', 'detail': f'died of signal {number}'}
  return {'verdict': 'error', 'detail': 'exited without a value'}


def checked(found):
  """A reply in the one shape that the pool reads: the sender is not trusted."""
  steps = [
    [int(line), str(event), {str(k): str(v) for k, v in changed.items()}]
    for line, event, changed in found.get('steps', ())
  ]
  if found['verdict'] not in VERDICTS:
    raise ValueError(found['verdict'])
  return {
    'verdict': found['verdict'],
    'value': str(found.get('value', ''))[:VALUE_BYTES],
    'detail': str(found.get('detail', '')),
    'steps': steps,
  }


def read_until(reader, deadline):
  """A line, or what there is at the end of file; None at the deadline.

  The program may have left a process that keeps the pipe open.
  """
  parts, size = [], 0
  while (left := deadline - time.monotonic()) > 0:
    if not select.select([reader], [], [], left)[0]:
      return None
    part = os.read(reader, 1 << 16)
    parts.append(part)
    if not part or part.endswith(b'\n'):
      return b''.join(parts)
    size += len(part)
    if size > REPLY_BYTES:
      return b'{"verdict": "error", "detail": "output limit"}'
  return None


def child(job, writer):
  """Runs in the fork and never returns."""
  send, leave = os.write, os._exit  # The program may replace them.
  try:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setpgid(0, 0)
    close_all_but(writer)
    data = json.dumps(reply_to(job)).encode() + b'\n'
    while data:
      data = data[send(writer, data) :]
  finally:
    leave(0)


def close_all_but(writer):
  """Leaves no way to the worker's own streams: a forged line there would
  become the result of another job."""
  null = os.open(os.devnull, os.O_RDWR)
  for fd in (0, 1, 2):
    os.dup2(null, fd)
  os.closerange(3, writer)
  os.closerange(writer + 1, os.sysconf('SC_OPEN_MAX'))


def reply_to(job):
  try:
    limit(job)
    return execute(job)
  except MemoryError:
    return {'verdict': 'memory', 'detail': 'memory limit'}
  except RecursionError as error:
    return {'verdict': 'error', 'detail': f'RecursionError: {error}'}
  except TooManySteps:
    return {'verdict': 'timeout', 'detail': f'more than {MAX_STEPS} steps'}
  except BaseException as error:  # The sandbox turns every failure into data.
    return {
      'verdict': 'error',
      'detail': f'{type(error).__name__}: {str(error)[:200]}',
    }


def limit(job):
  seconds, size = job['cpu_seconds'], job['memory_mb'] << 20
  whole = max(int(seconds + 0.999), 1)
  lower(resource.RLIMIT_CPU, whole)
  lower(resource.RLIMIT_AS, size)
  lower(resource.RLIMIT_FSIZE, 0)
  lower(resource.RLIMIT_CORE, 0)
  lower(resource.RLIMIT_NOFILE, 16)
  signal.setitimer(signal.ITIMER_PROF, seconds)  # Finer than whole seconds.
  signal.signal(signal.SIGPROF, signal.SIG_DFL)


def lower(which, value):
  _, hard = resource.getrlimit(which)
  if hard != resource.RLIM_INFINITY:
    value = min(value, hard)
  resource.setrlimit(which, (value, value))


def execute(job):
  """Runs the program, calls its entry, and describes the value."""
  code = compile(job['code'], '<program>', 'exec')
  scope = {'__name__': 'program'}
  exec(code, scope)
  entry = scope.get(job['entry'])
  if not callable(entry):
    return {'verdict': 'error', 'detail': f'no function {job["entry"]!r}'}
  args, kwargs = eval(
    compile(f'_collect({job["args"]})', '<arguments>', 'eval'),
    scope | {'_collect': lambda *args, **kwargs: (args, kwargs)},
  )
  steps = []
  if job['trace']:
    value = trace(entry, args, kwargs, steps, folds(job['code']))
  else:
    value = entry(*args, **kwargs)
  text = repr(value)
  if len(text.encode('utf-8', 'replace')) > VALUE_BYTES:
    return {'verdict': 'error', 'detail': 'value longer than 4 KB'}
  return {'verdict': 'ok', 'value': text, 'steps': steps}


def folds(code):
  """{line: first line of the outermost comprehension that it is part of}.

  Python 3.12 inlines comprehensions (PEP 709): an event per element, in the
  caller's frame. Folded into one line, 3.11 and later give one trace.
  """
  first = {}
  for node in ast.walk(ast.parse(code)):  # Breadth first: outer before inner.
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp):
      for line in range(node.lineno, node.end_lineno + 1):
        first.setdefault(line, node.lineno)
  return first


def trace(entry, args, kwargs, steps, first):
  """Calls `entry` and appends [line, event, {variable: repr}] to `steps`.

  First a 'call' step with the parameters; then one step per executed line of
  the entry's own frame, with the variables that the line changed.
  Comprehensions and inner calls belong to their line.
  """
  code, seen, line = entry.__code__, {}, [None]

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
    return entry(*args, **kwargs)
  finally:
    sys.settrace(None)


if __name__ == '__main__':
  sys.setrecursionlimit(1000)
  ast.parse('0')  # Warm what every child needs before forking.
  prctl(PR_SET_CHILD_SUBREAPER, 1)
  results = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)
  serve(sys.stdin, results)
