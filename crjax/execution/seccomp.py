"""The system calls that a program may make, as two classic BPF filters.

Standard library only. The worker installs the outer filter on itself once, for
what it and its children need; every child stacks the inner one, which takes
back what only the worker needs. The kernel obeys the stricter answer.
`tests/test_seccomp.py` proves the filters call by call without a kernel.
"""

import ctypes
import errno
import struct

AUDIT_ARCH = {'x86_64': 0xC000003E, 'aarch64': 0xC00000B7}
X32_BIT = 0x40000000  # Numbers of the x32 gate, which shares AUDIT_ARCH.
ALLOW, ERRNO, KILL = 0x7FFF0000, 0x00050000, 0x80000000
CLONE_FORK = 0x01200011  # fork(): CHILD_SETTID | CHILD_CLEARTID | SIGCHLD
PROT_EXEC = 4
SET_MODE_FILTER, SPEC_ALLOW = 1, 4  # seccomp(2)
# Offsets in struct seccomp_data, opcodes of linux/bpf_common.h.
NUMBER, ARCH, ARG0, ARG2 = 0, 4, 16, 32
LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

# What a program may do: use the processor, its memory and its descriptors.
COMPUTE = {
  'x86_64': {
    'brk': 12,
    'munmap': 11,
    'write': 1,
    'read': 0,
    'exit_group': 231,
    'close': 3,
    'futex': 202,
    'clock_gettime': 228,
    'poll': 7,
    'fstat': 5,
    'lseek': 8,
    'rt_sigaction': 13,
    'rt_sigprocmask': 14,
    'rt_sigreturn': 15,
    'select': 23,
    'sched_yield': 24,
    'mremap': 25,
    'madvise': 28,
    'nanosleep': 35,
    'getpid': 39,
    'exit': 60,
    'gettimeofday': 96,
    'getrusage': 98,
    'times': 100,
    'getuid': 102,
    'getgid': 104,
    'geteuid': 107,
    'getegid': 108,
    'getppid': 110,
    'sigaltstack': 131,
    'gettid': 186,
    'time': 201,
    'restart_syscall': 219,
    'clock_getres': 229,
    'clock_nanosleep': 230,
    'getrandom': 318,
    'membarrier': 324,
    'rseq': 334,
  },
  'aarch64': {
    'brk': 214,
    'munmap': 215,
    'write': 64,
    'read': 63,
    'exit_group': 94,
    'close': 57,
    'futex': 98,
    'clock_gettime': 113,
    'ppoll': 73,
    'fstat': 80,
    'lseek': 62,
    'rt_sigaction': 134,
    'rt_sigprocmask': 135,
    'rt_sigreturn': 139,
    'pselect6': 72,
    'sched_yield': 124,
    'mremap': 216,
    'madvise': 233,
    'nanosleep': 101,
    'getpid': 172,
    'exit': 93,
    'gettimeofday': 169,
    'getrusage': 165,
    'times': 153,
    'getuid': 174,
    'getgid': 176,
    'geteuid': 175,
    'getegid': 177,
    'getppid': 173,
    'sigaltstack': 132,
    'gettid': 178,
    'restart_syscall': 128,
    'clock_getres': 114,
    'clock_nanosleep': 115,
    'getrandom': 278,
    'membarrier': 283,
    'rseq': 293,
  },
}
# Allowed, but not with PROT_EXEC: no machine code is ever mapped.
MAPPING = {
  'x86_64': {'mmap': 9, 'mprotect': 10},
  'aarch64': {'mmap': 222, 'mprotect': 226},
}
# The worker's own. Those that a child may ask for in vain answer EPERM.
WORKER = {
  'x86_64': {
    'wait4': 61,
    'clone': 56,
    'kill': 62,
    'pipe2': 293,
    'prlimit64': 302,
    'recvfrom': 45,
    'sendto': 44,
    'prctl': 157,
    'readv': 19,
    'set_robust_list': 273,
    'seccomp': 317,
  },
  'aarch64': {
    'wait4': 260,
    'clone': 220,
    'kill': 129,
    'pipe2': 59,
    'prlimit64': 261,
    'recvfrom': 207,
    'sendto': 206,
    'prctl': 167,
    'readv': 65,
    'set_robust_list': 99,
    'seccomp': 277,
  },
}
IN_VAIN = ('pipe2', 'prlimit64', 'recvfrom')
# EACCES: imports and code that looks at files fail as they do without rights.
FILES = {
  'x86_64': {
    'open': 2,
    'stat': 4,
    'lstat': 6,
    'access': 21,
    'getcwd': 79,
    'readlink': 89,
    'statfs': 137,
    'getdents64': 217,
    'openat': 257,
    'newfstatat': 262,
    'readlinkat': 267,
    'faccessat': 269,
    'statx': 332,
    'openat2': 437,
    'faccessat2': 439,
  },
  'aarch64': {
    'getcwd': 17,
    'statfs': 43,
    'faccessat': 48,
    'openat': 56,
    'getdents64': 61,
    'readlinkat': 78,
    'newfstatat': 79,
    'statx': 291,
    'openat2': 437,
    'faccessat2': 439,
  },
}
# EPERM: harmless questions.
QUESTIONS = {
  'x86_64': {
    'pipe': 22,
    'dup': 32,
    'dup2': 33,
    'uname': 63,
    'fcntl': 72,
    'umask': 95,
    'sysinfo': 99,
    'getpgrp': 111,
    'getgroups': 115,
    'getpgid': 121,
    'getsid': 124,
    'getpriority': 140,
    'sched_getparam': 143,
    'sched_getscheduler': 145,
    'sched_getaffinity': 204,
    'eventfd2': 290,
    'dup3': 292,
    'getcpu': 309,
    'close_range': 436,
  },
  'aarch64': {
    'eventfd2': 19,
    'dup': 23,
    'dup3': 24,
    'fcntl': 25,
    'sched_getscheduler': 120,
    'sched_getparam': 121,
    'sched_getaffinity': 123,
    'getpriority': 141,
    'getpgid': 155,
    'getsid': 156,
    'getgroups': 158,
    'uname': 160,
    'umask': 166,
    'getcpu': 168,
    'sysinfo': 179,
    'close_range': 436,
  },
}
IOCTL = {'x86_64': 16, 'aarch64': 29}


class Program(ctypes.Structure):
  """struct sock_fprog: a filter as the kernel takes it."""

  _fields_ = [('length', ctypes.c_ushort), ('code', ctypes.c_void_p)]


def outer_filter(machine):
  """What worker and child need together: [(opcode, if true, if false, k)]."""
  code = _gates(machine)
  own = {k: v for k, v in WORKER[machine].items() if k != 'clone'}
  for number in (COMPUTE[machine] | own).values():
    code += _answer(number, ALLOW)
  for number in MAPPING[machine].values():
    code += [
      (JUMP_EQ, 0, 4, number),
      (LOAD, 0, 0, ARG2),
      (JUMP_SET, 0, 1, PROT_EXEC),
      (RETURN, 0, 0, ERRNO | errno.EPERM),
      (RETURN, 0, 0, ALLOW),
    ]
  code += [
    (JUMP_EQ, 0, 4, WORKER[machine]['clone']),
    (LOAD, 0, 0, ARG0),
    (JUMP_EQ, 0, 1, CLONE_FORK),
    (RETURN, 0, 0, ALLOW),
    (RETURN, 0, 0, KILL),
  ]
  for number in FILES[machine].values():
    code += _answer(number, ERRNO | errno.EACCES)
  for number in QUESTIONS[machine].values():
    code += _answer(number, ERRNO | errno.EPERM)
  code += _answer(IOCTL[machine], ERRNO | errno.ENOTTY)
  return [*code, (RETURN, 0, 0, KILL)]


def inner_filter(machine):
  """Takes the worker's own calls away again; short, as each child adds it."""
  code = _gates(machine)
  for name, number in WORKER[machine].items():
    code += _answer(number, ERRNO | errno.EPERM if name in IN_VAIN else KILL)
  return [*code, (RETURN, 0, 0, ALLOW)]


def _gates(machine):
  """Kills on calls by another gate (i386, x32); loads the call's number."""
  code = [
    (LOAD, 0, 0, ARCH),
    (JUMP_EQ, 1, 0, AUDIT_ARCH[machine]),
    (RETURN, 0, 0, KILL),
    (LOAD, 0, 0, NUMBER),
  ]
  if machine == 'x86_64':
    code += [(JUMP_GE, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
  return code


def _answer(number, answer):
  return [(JUMP_EQ, 0, 1, number), (RETURN, 0, 0, answer)]


def packed(code):
  """(Program, the buffer that it points to and that must outlive it)."""
  raw = b''.join(struct.pack('<HBBI', *instruction) for instruction in code)
  buffer = ctypes.create_string_buffer(raw, len(raw))
  return Program(len(code), ctypes.addressof(buffer)), buffer


def install(libc, machine, program) -> int:
  """Adds a filter to this process for good; 0, or -1 if the kernel refused."""
  number = WORKER[machine]['seccomp']
  return libc.syscall(
    number, SET_MODE_FILTER, SPEC_ALLOW, ctypes.byref(program)
  )
