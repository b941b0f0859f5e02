"""The other side of `pool.Pool`: forks a child for each frame it is sent.

Started by path with a bare interpreter; standard library only, never jax. It
imports what programs may use, isolates itself, tests that, reports, and then
serves frames. It never holds a frame: the child reads its own off the socket,
so that nothing passes from one program to the next through this heap.
"""

import contextlib
import ctypes
import encodings
import gc
import importlib
import json
import marshal
import os
import platform
import random
import resource
import select
import signal
import socket
import sys
import time
import warnings

import child
import hygiene
import isolation
import seccomp
import wire

# What a program may import. All else is refused: nothing can be opened.
MODULES = """abc array ast base64 binascii bisect calendar cmath codecs
collections.abc contextlib copy dataclasses datetime decimal enum errno
fractions functools gc graphlib hashlib heapq html inspect io itertools json
keyword math numbers operator os.path pprint queue random re reprlib statistics
string struct sys textwrap threading time traceback types typing unicodedata
weakref zlib _strptime"""
# What this process needs and a program does not: for it they are not there.
HIDDEN = """ctypes _ctypes socket _socket select selectors mmap marshal
child hygiene isolation seccomp tracer values wire"""
# Not `resource`: wait4 looks for it.
CLOSING_SECONDS = 0.2


def main():
  control, config = int(sys.argv[1]), json.loads(sys.argv[2])
  be_first_victim()
  load(config['modules'], config['paths'])
  link = socket.socket(fileno=control)
  buffer = bytearray(wire.REPLY_BYTES)
  base_bytes = size_of_this_process()
  null = os.open(os.devnull, os.O_WRONLY)
  held, missing = isolation.isolate(config['uid'], config['without'])
  sys.addaudithook(child.audit)
  outer, inner = self_tested(config['without'], held, missing)
  machine = platform.machine()
  report = {
    'level': isolation.level(held),
    'held': held,
    'missing': missing,
    'python': platform.python_version(),
    'system': f'{platform.system()} {platform.release()} {machine}',
  }
  tools = {'filter': inner, 'machine': machine, 'base_bytes': base_bytes}
  hide()
  warm()
  os.dup2(null, 2)  # So far it went to the one who starts this.
  os.close(null)
  if outer and seccomp.install(isolation.LIBC, machine, outer):
    os._exit(1)  # It passed its test before.
  tools['is_clean'] = hygiene.make_is_clean()
  gc.collect()
  gc.freeze()  # No collection in a child copies what is here.
  text = json.dumps(report).encode()
  link.sendall(wire.LENGTH.pack(len(text)) + text)
  serve(link, memoryview(buffer), tools)


def load(more, paths):
  """Imports what programs may import, every text codec included.

  A codec that is loaded on demand would be missing later, and a program that
  swallows the LookupError would return another value than outside.
  """
  sys.path += [path for path in paths if path not in sys.path]
  for name in [*MODULES.split(), *more]:
    importlib.import_module(name)
  for file in os.listdir(encodings.__path__[0]):
    name, _, ending = file.partition('.')
    if ending == 'py' and name not in ('mbcs', 'oem', 'cp65001'):  # Windows'.
      importlib.import_module(f'encodings.{name}')
  warnings.simplefilter('ignore')


def be_first_victim():
  """Where memory runs out, the kernel ends this before the trainer."""
  with (
    contextlib.suppress(OSError),  # Not Linux.
    open('/proc/self/oom_score_adj', 'w') as file,
  ):
    file.write('1000')


def size_of_this_process() -> int:
  try:
    with open('/proc/self/statm') as file:
      return int(file.read().split()[0]) * resource.getpagesize()
  except OSError:  # Not Linux.
    return 1 << 32


def self_tested(without, held, missing):
  """(outer, inner) filters if they hold in a child that tries them; or Nones.

  With both, opening a file must be denied and making a socket must kill.
  """
  machine = platform.machine()
  if sys.platform != 'linux' or machine not in seccomp.AUDIT_ARCH:
    missing['seccomp'] = f'not for {sys.platform} on {machine}'
    return None, None
  if 'seccomp' in without:
    missing['seccomp'] = 'left out on request'
    return None, None
  outer, kept = seccomp.packed(seccomp.outer_filter(machine))
  inner, kept_too = seccomp.packed(seccomp.inner_filter(machine))
  outer.buffer, inner.buffer = kept, kept_too
  number = {'x86_64': 41, 'aarch64': 198}[machine]  # socket(2)
  pid = os.fork()
  if not pid:
    for program in (outer, inner):
      if seccomp.install(isolation.LIBC, machine, program):
        os._exit(1)
    try:
      os.open('/', os.O_RDONLY)
    except PermissionError:
      isolation.LIBC.syscall(number, 2, 1, 0)
    os._exit(2)
  _, status = os.waitpid(pid, 0)
  if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGSYS:
    held['seccomp'] = f'allow-list, self-test passed, {outer.length} + ' + (
      f'{inner.length} instructions'
    )
    return outer, inner
  missing['seccomp'] = (
    'the kernel takes no filter'
    if os.waitstatus_to_exitcode(status) == 1
    else f'self-test failed with status {status}'
  )
  return None, None


def hide():
  for name in HIDDEN.split():
    sys.modules.pop(name, None)
  sys.argv, sys.path[:] = [''], []
  sys.path_importer_cache.clear()
  os.environ.clear()


def warm():
  """Runs the path of a call until it is as ready as it gets.

  Children copy every page that they write, which is most of what a call costs.
  """
  child.to_sink()
  child.hear()
  random.seed(0)
  marshal.loads(marshal.dumps({'a': [1, 'b']}))
  source = 'def f(x):\n  return [x, {x: (1.5, {x})}]'
  for args, trace in (('1', False), ("'a'", True), ('[]', False)) * 20:
    _, _, record = child.call(None, source, 'f', args, trace, child.BALLAST)
    record.encode()
  sys.modules.pop('program')
  random.seed(0)


def serve(link, view, tools):
  """One frame, one fork, one reply; until the pool closes its end."""
  # Not os.fork: its hooks double the page faults and seed `random` anew. This
  # process has one thread, which is what the hooks would care for.
  fork, control = ctypes.PyDLL(None).fork, link.fileno()
  peek = socket.MSG_PEEK | socket.MSG_WAITALL
  while True:
    head = link.recv(wire.HEADER.size, peek)
    if len(head) < wire.HEADER.size:
      os._exit(0)
    header = wire.Header._make(wire.HEADER.unpack(head))
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
      try:
        os.close(reader)
        child.main(control, writer, header, tools)
      finally:
        os._exit(1)
    os.close(writer)
    end, size, is_ready = watch(pid, reader, control, header, view)
    if end != wire.ENDED or not is_ready:
      kill(pid)
    os.close(reader)
    status, cpu_us, is_late = reap(pid)
    if not is_ready:  # Part of the frame may still be on the socket.
      os._exit(1)
    if is_late and end == wire.ENDED:
      end = wire.CLOSED
    link.sendall(wire.REPLY.pack(size, end, status, cpu_us))
    link.sendall(view[:size])
    view[:size] = bytes(size)


def watch(pid, reader, control, header, view):
  """Reads records into view within the limits; (end, bytes, is_ready)."""
  events = select.poll()
  events.register(reader, select.POLLIN)
  events.register(control, 0)  # Only its end: the pool is gone.
  cpu_s, wall_s = header.cpu_us / 1e6, header.wall_us / 1e6
  size = record = 0
  spent, deadline = 0.0, time.monotonic() + wall_s
  wait_s, is_ready = min(wall_s, cpu_s + 0.005), False
  while True:
    found = events.poll(max(wait_s * 1000, 1))
    if any(fd == control for fd, _ in found):
      kill(pid)
      os._exit(0)
    if found:
      if not is_ready:
        is_ready = os.read(reader, 1) == wire.READY
        if not is_ready:
          return wire.ENDED, 0, False
        continue
      limit = record + wire.LENGTH.size + header.record_bytes + 64
      count = os.readv(reader, [view[size : min(limit, len(view))]])
      size += count
      whole = end_of_records(view, record, size)
      if not count:
        return wire.ENDED, size, True
      if whole > record:  # The next call has limits of its own.
        record, spent = whole, cpu_of(pid)
        deadline = time.monotonic() + wall_s
      elif size >= min(limit, len(view)):
        return wire.OUTPUT, size, True
    now = time.monotonic()
    used = cpu_of(pid) - spent
    if used >= cpu_s:
      return wire.CPU, size, is_ready
    if now >= deadline:
      return wire.WALL, size, is_ready
    wait_s = min(cpu_s - used + 0.001, deadline - now)


def end_of_records(view, record, size) -> int:
  """Where the last complete record ends."""
  while size - record >= wire.LENGTH.size:
    (length,) = wire.LENGTH.unpack_from(view, record)
    if size - record < wire.LENGTH.size + length:
      break
    record += wire.LENGTH.size + length
  return record


def cpu_of(pid) -> float:
  """Seconds of processor time that a child has used."""
  try:
    return time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED, per process
  except OSError:  # It has ended, or this is not Linux: RLIMIT_CPU is left.
    return 0.0


def kill(pid):
  with contextlib.suppress(ProcessLookupError):
    os.kill(pid, signal.SIGKILL)


def reap(pid):
  """(wait status, microseconds of processor time, whether we had to kill it).

  A program that has closed the pipe, and goes on, is not waited for.
  """
  deadline, is_late = time.monotonic() + CLOSING_SECONDS, False
  while True:
    found, status, usage = os.wait4(pid, os.WNOHANG)
    if found:
      used = usage.ru_utime + usage.ru_stime
      return status, int(used * 1e6), is_late
    if time.monotonic() > deadline:
      kill(pid)
      is_late = True
    time.sleep(0.0002)


if __name__ == '__main__':
  main()
