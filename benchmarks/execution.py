"""How many checks a second: the sandbox beside what other graders do.

  python -m benchmarks.execution [--checks=2000] [--workers=1] [--json=FILE]

A check runs a small program on given arguments and compares the value. Every
way gets the same checks in the same run. `subprocess` is one fresh interpreter
a check; `manager` is the scheme of human-eval and CRUXEval, a Manager and a
Process a check, with their temporary directory and alarm (written anew for this
comparison, without the guards that unset functions of `os`). CPU
counts all processes; it says more than the clock on a busy machine.
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import pathlib
import platform
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time

from crjax.execution import Case, Pool, check_all, literals, values

PROGRAMS = {
  """def f(text, n):
  out = []
  for i, c in enumerate(text):
    if i % n == 0:
      out.append(c.upper())
    else:
      out.append(c)
  return ''.join(out)""": lambda r: (word(r), r.randint(1, 5)),
  """def f(nums):
  total, seen = 0, {}
  for x in nums:
    seen[x] = seen.get(x, 0) + 1
    if seen[x] > 1:
      total += x
  return total, sorted(seen)""": lambda r: (numbers(r),),
  """def f(a, b):
  while b:
    a, b = b, a % b
  return {'gcd': a, 'odd': bool(a % 2)}""": lambda r: (
    r.randint(1, 10**6),
    r.randint(1, 10**6),
  ),
  """import re
def f(text):
  words = re.findall('[a-m]+', text)
  return max(words, key=len, default=None), len(words)""": lambda r: (word(r),),
  """def f(rows):
  return [list(x) for x in zip(*rows)]""": lambda r: (
    [numbers(r)[:4] for _ in range(3)],
  ),
}


def word(r):
  return ''.join(r.choices('abcdefghijklmnopqrstuvwxyz', k=r.randint(5, 20)))


def numbers(r):
  return [r.randint(-99, 99) for _ in range(r.randint(5, 20))]


def make_cases(count):
  """Cases with right answers, program by program, 16 calls of each at once."""
  r, cases = random.Random(0), []
  scopes = {program: {} for program in PROGRAMS}
  for program, scope in scopes.items():
    exec(program, scope)  # Ours, a few lines above.
  while len(cases) < count:
    for program, draw in PROGRAMS.items():
      for _ in range(16):
        args = draw(r)
        call = f'f({literals.render_call(args, {})})'
        cases.append(Case(program, call, repr(scopes[program]['f'](*args))))
  return cases[:count]


def sandboxed(share, workers):
  def run(cases):
    with Pool(workers, share=share) as pool:
      check_all(cases[:16], pool=pool)  # As warm as in the middle of a run.
      sessions = [link.process.pid for link in pool._links]
      with Clock(lambda: sum(map(cpu_of_session, sessions))) as clock:
        verdicts = check_all(cases, pool=pool)
      return clock, sum(v.kind == 'pass' for v in verdicts)

  return run


def output_only(cases):
  """What a check of a predicted output costs: nothing is executed."""
  gold = [values.texts(literals.parse(c.expected))[0] for c in cases]
  with Clock() as clock:
    found = [values.texts(literals.parse(c.expected))[0] for c in cases]
    right = sum(map(values.equal, found, gold))
  return clock, right


def by_subprocess(cases):
  right = 0
  with Clock() as clock:
    for case in cases:
      source = f'{case.program}\nassert {case.call} == {case.expected}'
      command = [sys.executable, '-I', '-S', '-c', source]
      right += subprocess.run(command).returncode == 0
  return clock, right


def by_manager(cases):
  """A Manager's list and a forked Process a check, as human-eval does it."""
  right = 0
  with Clock() as clock:
    for case in cases:
      with multiprocessing.Manager() as manager:
        result = manager.list()
        process = multiprocessing.Process(target=grade, args=(case, result))
        process.start()
        process.join(timeout=4)
        if process.is_alive():
          process.kill()
        right += list(result) == ['passed']
  return clock, right


def grade(case, result):
  """In a directory of its own, under an alarm, with its output swallowed."""
  with (
    tempfile.TemporaryDirectory() as directory,
    contextlib.redirect_stdout(io.StringIO()),
    contextlib.redirect_stderr(io.StringIO()),
  ):
    os.chdir(directory)
    signal.setitimer(signal.ITIMER_REAL, 3.0)
    try:
      exec(f'{case.program}\nassert {case.call} == {case.expected}', {})
      result.append('passed')
    except Exception as error:
      result.append(f'failed: {error}')
    finally:
      signal.setitimer(signal.ITIMER_REAL, 0)
      os.chdir('/')


class Clock:
  """Seconds by the clock and of processor time, children's included.

  `more` adds the time of processes that are not collected meanwhile.
  """

  def __init__(self, more=lambda: 0.0):
    self.more = more

  def __enter__(self):
    self.cpu, self.seconds = -self.used(), -time.perf_counter()
    return self

  def __exit__(self, *_):
    self.seconds += time.perf_counter()
    self.cpu += self.used()

  def used(self):
    total = self.more()
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
      usage = resource.getrusage(who)
      total += usage.ru_utime + usage.ru_stime
    return total


def cpu_of_session(session) -> float:
  """Of the living processes of a session and what they have collected."""
  ticks = 0
  for file in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):  # It has just ended.
      fields = file.read_text().rpartition(')')[2].split()
      if int(fields[3]) == session:
        ticks += sum(map(int, fields[11:15]))
  return ticks / os.sysconf('SC_CLK_TCK')


def measure(run, cases):
  clock, right = run(cases)
  return {
    'checks': len(cases),
    'right': right,
    'per_second': len(cases) / clock.seconds,
    'cpu_ms': clock.cpu / len(cases) * 1000,
  }


def main():
  parser = argparse.ArgumentParser('python -m benchmarks.execution')
  parser.add_argument('--checks', type=int, default=2000)
  parser.add_argument('--workers', type=int, default=1)
  parser.add_argument('--json', type=pathlib.Path)
  args = parser.parse_args()
  cases = make_cases(args.checks)
  few = cases[:: max(len(cases) // 100, 1)]  # Of the slow ways.
  with Pool(1) as pool:
    level = pool.report['level']
  ways = {
    'fork per check': (sandboxed(1, args.workers), cases[: len(cases) // 4]),
    '8 per fork': (sandboxed(8, args.workers), cases),
    '16 per fork': (sandboxed(16, args.workers), cases),
    'output only': (output_only, cases),
    'subprocess': (by_subprocess, few),
    'manager': (by_manager, few),
  }
  rows = {name: measure(run, some) for name, (run, some) in ways.items()}
  base = rows['manager']
  load = os.getloadavg()[0]
  print(
    f'isolation level {level}, {args.workers} worker(s), '
    f'{os.cpu_count()} cores, load {load:.1f}, '
    f'python {platform.python_version()}'
  )
  print(
    f'{"way":16}{"checks/s":>10}{"CPU ms":>9}{"x manager":>11}{"by CPU":>9}'
  )
  for name, row in rows.items():
    if row['right'] != row['checks']:
      sys.exit(f'{name}: {row["right"]} of {row["checks"]} checks are right')
    row['times_manager'] = row['per_second'] / base['per_second']
    row['times_manager_cpu'] = base['cpu_ms'] / row['cpu_ms']
    print(
      f'{name:16}{row["per_second"]:10,.0f}{row["cpu_ms"]:9.3f}'
      f'{row["times_manager"]:11.1f}{row["times_manager_cpu"]:9.1f}'
    )
  if args.json:
    report = {'level': level, 'workers': args.workers, 'load': load}
    args.json.write_text(json.dumps(report | {'ways': rows}, indent=2) + '\n')


if __name__ == '__main__':
  main()
