"""The layers that a worker puts around itself, once, before the first program.

Standard library only; loaded by path in the worker. A layer that the machine
refuses costs that layer alone, and its reason stands in the report. seccomp
holds data and verdicts without the others; they hold them without seccomp, but
leave the kernel's surface open (see `level`).
"""

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import sys

# sched.h, sys/mount.h, linux/prctl.h, linux/landlock.h
NAMESPACES = {
  'net': 0x40000000,
  'ipc': 0x08000000,
  'uts': 0x04000000,
  'mnt': 0x00020000,
  'cgroup': 0x02000000,
  'pid': 0x20000000,
}
NEWUSER = 0x10000000
RDONLY, NOSUID, NODEV, NOEXEC, REMOUNT, PRIVATE = 1, 2, 4, 8, 32, 0x44000
DETACH = 2
PDEATHSIG, SET_DUMPABLE, CAPBSET_DROP, NO_NEW_PRIVS = 1, 4, 24, 38
CAPABILITY_VERSION_3 = 0x20080522
NUMBERS = {
  'x86_64': {'capset': 126, 'pivot_root': 155, 'ruleset': 444, 'restrict': 446},
  'aarch64': {'capset': 91, 'pivot_root': 41, 'ruleset': 444, 'restrict': 446},
}
# Access rights to files that an ABI of Landlock knows.
LANDLOCK_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
LIMITS = {
  'RLIMIT_CORE': 0,
  'RLIMIT_MSGQUEUE': 0,
  'RLIMIT_MEMLOCK': 0,
  'RLIMIT_FSIZE': 0,
  'RLIMIT_NOFILE': 16,
  'RLIMIT_STACK': 8 << 20,
}
LAYERS = (
  'seccomp',
  'net',
  'ipc',
  'uts',
  'mnt',
  'cgroup',
  'pid',
  'root',
  'uid',
  'capabilities',
  'no_new_privs',
  'landlock',
  'rlimits',
)
MEANING = {
  3: 'seccomp allow-list and a network of its own',
  2: 'seccomp allow-list',
  1: 'namespaces or Landlock, but the whole kernel is in reach',
  0: 'limits of time and memory only',
}

LIBC = ctypes.CDLL(None, use_errno=True)


def isolate(uid: int, without) -> tuple[dict, dict]:
  """Puts on every layer but seccomp; (held, missing) by name, with a text.

  Args:
    uid: who the worker becomes if it is root now.
    without: names of LAYERS to leave out, to see what the others hold.
  """
  if sys.platform != 'linux':
    reason = f'no such thing on {sys.platform}'
    missing = dict.fromkeys(LAYERS[1:-1], reason)
    return limits(), missing
  held, missing = namespaces(without)
  steps = {
    'root': lambda: empty_root() if 'mnt' in held else skip('no mount ns'),
    'pid': lambda: become_child() if 'pid' in held else skip(missing['pid']),
    'uid': lambda: leave_root(uid),
    'capabilities': drop_capabilities,
    'no_new_privs': no_new_privs,
    'landlock': landlock,
  }
  for name, step in steps.items():
    try:
      if name in without:
        skip('left out on request')
      held[name] = step() or 'on'
    except OSError as error:
      missing[name] = error.strerror or str(error)
      held.pop(name, None)
  if 'rlimits' not in without:
    held |= limits()
  call('prctl', SET_DUMPABLE, 0, 0, 0, 0)
  if 'pid' in held:  # Only now: a change of the uid clears it.
    call('prctl', PDEATHSIG, signal.SIGKILL, 0, 0, 0)
  return held, missing


def skip(reason):
  raise OSError(0, reason)


def call(name, *args):
  """A function of libc that gives -1 on failure; raises OSError."""
  args = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
  result = getattr(LIBC, name)(*args)
  if result < 0:
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
  return result


def syscall(name, *args):
  numbers = NUMBERS.get(platform.machine())
  if numbers is None:
    raise OSError(0, f'unknown processor {platform.machine()}')
  return call('syscall', numbers[name], *args)


def namespaces(without):
  held, missing = {}, {}
  if os.getuid():
    try:
      own_user_namespace()
    except OSError as error:
      missing['user'] = error.strerror
  for name, flag in NAMESPACES.items():  # One by one: a refusal costs one.
    try:
      if name in without:
        skip('left out on request')
      call('unshare', flag)
      held[name] = 'its own'
    except OSError as error:
      missing[name] = error.strerror
  return held, missing


def own_user_namespace():
  uid, gid = os.getuid(), os.getgid()
  call('prctl', SET_DUMPABLE, 1, 0, 0, 0)  # Else its own maps are not its own.
  call('unshare', NEWUSER)
  for name, text in {
    'setgroups': 'deny',
    'uid_map': f'{uid} {uid} 1',
    'gid_map': f'{gid} {gid} 1',
  }.items():
    with open(f'/proc/self/{name}', 'w') as file:
      file.write(text)


def empty_root():
  """Swaps the file system for an empty one that nothing can be written to.

  It is mounted over this file's directory: that exists, and nobody outside
  this mount namespace sees it.
  """
  place = os.path.dirname(os.path.abspath(__file__)).encode()
  call('mount', b'none', b'/', None, PRIVATE, None)
  options = b'size=4k,nr_inodes=4,mode=555'
  call('mount', b'tmpfs', place, b'tmpfs', NOSUID | NODEV | NOEXEC, options)
  os.chdir(place)
  flags = REMOUNT | RDONLY | NOSUID | NODEV | NOEXEC
  call('mount', b'tmpfs', place, b'tmpfs', flags, b'size=4k')
  syscall('pivot_root', b'.', b'.')
  call('umount2', b'.', DETACH)
  os.chdir('/')
  return 'empty, read-only'


def become_child():
  """Goes on as process 1 of the pid namespace; the outer half only waits."""
  pid = os.fork()
  if not pid:
    return 'its own'
  os.closerange(0, 64)  # The control socket above all: its end is our end.
  _, status = os.waitpid(pid, 0)
  os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def leave_root(uid):
  if os.getuid() == 0:
    for capability in range(64):
      if LIBC.prctl(CAPBSET_DROP, capability, 0, 0, 0):
        break
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
  return f'uid {os.getuid()}'


def drop_capabilities():
  header = struct.pack('<II', CAPABILITY_VERSION_3, 0)
  syscall('capset', header, bytes(24))
  return 'none'


def no_new_privs():
  call('prctl', NO_NEW_PRIVS, 1, 0, 0, 0)


def landlock():
  """Handles every right that the kernel knows, and grants none."""
  abi = syscall('ruleset', 0, 0, 1)
  rights = (1 << LANDLOCK_RIGHTS.get(abi, 16)) - 1
  # Files; TCP from ABI 4; signals and abstract sockets from ABI 6.
  size = 24 if abi >= 6 else 16 if abi >= 4 else 8
  handled = struct.pack('<QQQ', rights, 3, 3)[:size]
  fd = syscall('ruleset', handled, size, 0)
  try:
    syscall('restrict', fd, 0)
  finally:
    os.close(fd)
  return f'grants nothing, ABI {abi}'


def limits() -> dict:
  for name, value in LIMITS.items():
    with contextlib.suppress(AttributeError, ValueError, OSError):
      lower(getattr(resource, name), value)
  return {'rlimits': 'on'}


def lower(which, value):
  """Sets both limits, as far down as they are not lower already."""
  _, hard = resource.getrlimit(which)
  if hard != resource.RLIM_INFINITY:
    value = min(value, hard)
  resource.setrlimit(which, (value, value))


def level(held) -> int:
  """0-3, see MEANING."""
  if 'seccomp' in held:
    return 3 if 'net' in held else 2
  return int(any(name in held for name in (*NAMESPACES, 'landlock')))


def table(report) -> str:
  """The report of a worker for people."""
  lines = [
    f'isolation level {report["level"]} ({MEANING[report["level"]]}), '
    f'python {report["python"]}, {report["system"]}',
    f'{"layer":14}state',
  ]
  for name in LAYERS:
    state = report['held'].get(name)
    reason = report['missing'].get(name, 'unknown')
    lines.append(f'{name:14}{state or f"MISSING: {reason}"}')
  if 'user' in report['missing']:
    lines.append(f'{"user":14}MISSING: {report["missing"]["user"]}')
  return '\n'.join(lines)
