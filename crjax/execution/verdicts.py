"""One case, one verdict: a program, a call of it, and what it should return.

All three may be hostile. The call and the expected value are parsed as data,
never executed as given; the program runs in the sandbox, which is never told
what was expected.
"""

import ast
import atexit
import functools
import os
import sys
from typing import NamedTuple

from crjax.execution import literals, values
from crjax.execution.pool import Pool
from crjax.execution.results import Job

KINDS = (
  'pass',
  'wrong',
  'timeout',
  'memory',
  'exception',
  'syntax',
  'disallowed',
  'crash',
  'output_limit',
  'unsupported',
  'bad_answer',
  'infra',
)
MODES = ('py', 'strict')


class Verdict(NamedTuple):
  """What a case is worth; only 'pass' is one, and 'infra' says nothing."""

  kind: str  # one of KINDS
  detail: str = ''
  value: str = ''  # repr of what the program returned
  cpu_s: float = 0.0


class Case(NamedTuple):
  """For `check_all`; the arguments of `check`."""

  program: str
  call: str
  expected: str
  entry: str = 'f'


def check(
  program,
  call,
  expected,
  *,
  entry='f',
  mode='py',
  pool=None,
  two_phase=False,
) -> Verdict:
  """The verdict on `call` of `program` returning `expected`; never raises it.

  Args:
    program: source that defines `entry`.
    call: text of one call `entry(<literals>)`; anything else is 'bad_answer'.
    expected: text of one literal.
    mode: 'py' for Python's `==`, 'strict' where types count at every depth.
    pool: an open Pool; without it, one of this process with two workers that
      starts with the first call and ends with the process.
    two_phase: for evaluations, never for rewards: arguments that are no
      literals are evaluated in a process of their own, and what they are goes
      to the call as data.
  """
  case = Case(program, call, expected, entry)
  return check_all([case], mode=mode, pool=pool, two_phase=two_phase)[0]


def check_all(
  cases, *, mode='py', pool=None, two_phase=False, progress=None
) -> list[Verdict]:
  """`check` of many Cases at once; verdicts in the order of the cases.

  Calls of one program share a process where that is safe, and equal calls run
  once. `progress(done, total)` is told how far it is; `show_progress` prints.
  """
  if mode not in MODES:
    raise ValueError(f'mode={mode!r}: give one of {MODES}')
  pool = pool or _own_pool(os.getpid())
  cases = [Case(*case) for case in cases]
  read = [_read(case) for case in cases]
  if two_phase:
    read = _evaluated(cases, read, pool)
  jobs = [job for job, _ in read if isinstance(job, Job)]
  found = iter(pool.run(jobs, progress))
  return [
    _compared(next(found), expected, mode) if isinstance(job, Job) else job
    for job, expected in read
  ]


def _read(case):
  """(Job, the texts of the expected value), or (Verdict, None or the texts)."""
  texts = None
  if type(case.program) is not str:
    return Verdict('syntax', 'the program is not text'), None
  if type(case.entry) is not str or not case.entry.isidentifier():
    return Verdict('bad_answer', 'entry is not a name'), None
  try:
    texts = values.texts(literals.parse(case.expected))
  except (ValueError, values.Unsupported) as error:
    return Verdict('bad_answer', f'expected: {error}'), None
  try:
    args = literals.render_call(*literals.parse_call(case.call, case.entry))
    return Job(case.program, case.entry, args), texts
  except ValueError as error:
    return Verdict('bad_answer', f'call: {error}'), texts


def _evaluated(cases, read, pool):
  """Phase one: data in the place of arguments that are no literals."""
  waiting, jobs = [], []
  for i, (job, texts) in enumerate(read):
    if texts is not None and not isinstance(job, Job):
      source = _arguments(cases[i])
      if source is not None:
        waiting.append(i)
        jobs.append(Job(cases[i].program, '', source))
  read = list(read)
  for i, result in zip(waiting, pool.run(jobs), strict=True):
    case, texts = cases[i], read[i][1]
    if result.verdict == 'infra':
      read[i] = Verdict('infra', result.detail), texts
    elif result.verdict == 'ok':
      try:
        args, kwargs = literals.parse(result.value)
        args = literals.render_call(args, kwargs)
        read[i] = Job(case.program, case.entry, args), texts
      except ValueError:
        continue  # Not data: the verdict stays what it was.
  return read


def _arguments(case):
  """Source of the arguments as the parser read them; None if not a call."""
  try:
    node = literals.call_tree(case.call, case.entry)
    parts = [ast.unparse(arg) for arg in node.args]
    return ', '.join(parts + [ast.unparse(k) for k in node.keywords])
  except (ValueError, RecursionError):
    return None


def _compared(result, expected, mode):
  if result.verdict != 'ok':
    return Verdict(result.verdict, result.detail, '', result.cpu_s)
  found = result.strict if mode == 'strict' else result.py
  right = values.equal(found, expected[MODES.index(mode)])
  kind = 'pass' if right else 'wrong'
  return Verdict(kind, '', result.value, result.cpu_s)


@functools.cache
def _own_pool(pid):
  """One of each process: a fork of it must not use its parent's workers."""
  pool = Pool(2)
  atexit.register(lambda: pid == os.getpid() and pool.close())
  return pool


def show_progress(done, total):
  """Prints `done` of `total` on one line of standard error."""
  end = '\n' if done == total else ''
  print(
    f'\rchecks: {done:,} of {total:,}', end=end, file=sys.stderr, flush=True
  )
