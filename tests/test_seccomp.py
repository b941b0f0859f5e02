"""The filters, proved number by number by an interpreter of classic BPF."""

import errno
import struct

import pytest

from crjax.execution import seccomp
from crjax.execution.seccomp import ALLOW, ERRNO, KILL

MACHINES = list(seccomp.AUDIT_ARCH)
NUMBERS = range(1024)  # More than any architecture has.
I386 = 0x40000003
# Which a program must never have, whatever else a list holds.
DANGEROUS = {
  'x86_64': {
    'socket': 41,
    'connect': 42,
    'clone': 56,
    'fork': 57,
    'vfork': 58,
    'execve': 59,
    'kill': 62,
    'ptrace': 101,
    'prctl': 157,
    'mount': 165,
    'io_setup': 206,
    'unshare': 272,
    'process_vm_writev': 311,
    'seccomp': 317,
    'memfd_create': 319,
    'bpf': 321,
    'execveat': 322,
    'userfaultfd': 323,
    'io_uring_setup': 425,
    'pidfd_open': 434,
    'clone3': 435,
  },
  'aarch64': {
    'unshare': 97,
    'ptrace': 117,
    'kill': 129,
    'prctl': 167,
    'socket': 198,
    'connect': 203,
    'clone': 220,
    'execve': 221,
    'process_vm_writev': 271,
    'seccomp': 277,
    'memfd_create': 279,
    'bpf': 280,
    'execveat': 281,
    'userfaultfd': 282,
    'io_uring_setup': 425,
    'pidfd_open': 434,
    'clone3': 435,
  },
}


def interpret(code, number, arch, args=()):
  """What a filter answers to a call; struct seccomp_data is its memory."""
  args = (*args, *[0] * (6 - len(args)))
  data = struct.pack('<IIQ6Q', number, arch, 0, *args)
  register = at = 0
  while True:
    opcode, if_true, if_false, k = code[at]
    at += 1
    if opcode == seccomp.LOAD:
      (register,) = struct.unpack_from('<I', data, k)
    elif opcode == seccomp.JUMP_EQ:
      at += if_true if register == k else if_false
    elif opcode == seccomp.JUMP_GE:
      at += if_true if register >= k else if_false
    elif opcode == seccomp.JUMP_SET:
      at += if_true if register & k else if_false
    else:
      assert opcode == seccomp.RETURN
      return k


def in_child(machine, number, arch=None, args=()):
  """Both filters: the kernel obeys the stricter."""
  arch = arch or seccomp.AUDIT_ARCH[machine]
  filters = seccomp.outer_filter(machine), seccomp.inner_filter(machine)
  answers = [interpret(code, number, arch, args) for code in filters]
  rank = lambda a: 0 if a == KILL else 2 if a == ALLOW else 1
  return min(answers, key=rank)


@pytest.mark.parametrize('machine', MACHINES)
def test_every_number_has_the_answer_of_its_table(machine):
  expected = dict.fromkeys(NUMBERS, KILL)
  allowed = seccomp.COMPUTE[machine] | seccomp.MAPPING[machine]
  expected |= dict.fromkeys(allowed.values(), ALLOW)
  files = seccomp.FILES[machine].values()
  expected |= dict.fromkeys(files, ERRNO | errno.EACCES)
  questions = set(seccomp.QUESTIONS[machine].values())
  questions |= {seccomp.WORKER[machine][name] for name in seccomp.IN_VAIN}
  expected |= dict.fromkeys(questions, ERRNO | errno.EPERM)
  expected[seccomp.IOCTL[machine]] = ERRNO | errno.ENOTTY
  assert {n: in_child(machine, n) for n in NUMBERS} == expected


@pytest.mark.parametrize('machine', MACHINES)
def test_no_table_names_a_number_twice(machine):
  tables = (
    seccomp.COMPUTE,
    seccomp.MAPPING,
    seccomp.WORKER,
    seccomp.FILES,
    seccomp.QUESTIONS,
  )
  numbers = [n for t in tables for n in t[machine].values()]
  numbers.append(seccomp.IOCTL[machine])
  assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize('machine', MACHINES)
def test_dangerous_calls_kill(machine):
  for name, number in DANGEROUS[machine].items():
    assert in_child(machine, number) == KILL, name


@pytest.mark.parametrize('machine', MACHINES)
def test_no_gate_but_the_own_is_open(machine):
  others = {I386, *seccomp.AUDIT_ARCH.values()} - {seccomp.AUDIT_ARCH[machine]}
  for arch in others:
    assert {in_child(machine, n, arch) for n in NUMBERS} == {KILL}
  for first in (seccomp.X32_BIT, 0x80000000, 0xFFFFF000):
    assert {in_child(machine, first + n) for n in NUMBERS} == {KILL}


@pytest.mark.parametrize('machine', MACHINES)
def test_no_memory_becomes_code(machine):
  for number in seccomp.MAPPING[machine].values():
    for protection in range(8):
      answer = in_child(machine, number, args=(0, 4096, protection))
      is_code = protection & seccomp.PROT_EXEC
      assert answer == (ERRNO | errno.EPERM if is_code else ALLOW)


@pytest.mark.parametrize('machine', MACHINES)
def test_the_worker_may_fork_and_nothing_else_of_clone(machine):
  outer, arch = seccomp.outer_filter(machine), seccomp.AUDIT_ARCH[machine]
  clone = seccomp.WORKER[machine]['clone']
  answers = {
    flags: interpret(outer, clone, arch, (flags,))
    for flags in (0x01200011, 0x11, 0x10000011, 0x003D0F00, 0x01200011 | 0x100)
  }
  assert [f for f, a in answers.items() if a == ALLOW] == [0x01200011]
  assert set(answers.values()) == {ALLOW, KILL}


@pytest.mark.parametrize('machine', MACHINES)
def test_jumps_stay_inside_and_the_end_is_an_answer(machine):
  for code in (seccomp.outer_filter(machine), seccomp.inner_filter(machine)):
    assert len(code) < 4096  # BPF_MAXINSNS
    assert code[-1] == (seccomp.RETURN, 0, 0, code[-1][3])
    for at, (_, if_true, if_false, _) in enumerate(code):
      assert at + 1 + max(if_true, if_false) < len(code) or not (
        if_true or if_false
      )
