"""Many checks with hangs, bombs and shot workers: right, and nothing leaks."""

import collections
import os
import random
import signal
import subprocess
import threading

import pytest

from crjax.execution import Case, Pool, check_all

KINDS = {
  'def f(x):\n  while x: x += 1': 'timeout',
  'def f(x):\n  a = [x]\n  while True: a.extend(a)': 'memory',
}
LOOP, BOMB = KINDS


def cases(count, seed):
  """5 % infinite loops, 2 % memory bombs, the rest honest; some wrong."""
  r, made = random.Random(seed), []
  honest = [
    f'def f(x):\n  return [x * {k} + i for i in range({k})]' for k in range(40)
  ]
  for i in range(count):
    draw = r.random()
    if draw < 0.07:
      program = LOOP if draw < 0.05 else BOMB
      made.append((Case(program, f'f({i + 1})', '1'), KINDS[program]))
    else:
      k, right = r.randrange(40), r.random() < 0.7
      value = [i * k + j for j in range(k)]
      expected = value if right else [*value, 'no']
      case = Case(honest[k], f'f({i})', repr(expected))
      made.append((case, 'pass' if right else 'wrong'))
  return made


def sessions(pool):
  """[(pid, state)] of all processes that the workers started."""
  ids = ','.join(str(link.process.pid) for link in pool._links)
  command = ['ps', '-o', 'pid=,stat=', '-s', ids]
  found = subprocess.run(command, capture_output=True, text=True).stdout.split()
  return list(zip(found[::2], found[1::2], strict=True))


def memory_kb():
  with open('/proc/self/status') as file:
    return next(int(s.split()[1]) for s in file if s.startswith('VmRSS'))


@pytest.mark.parametrize(
  'count', [400, pytest.param(10_000, marks=pytest.mark.slow)]
)
def test_shots_hangs_and_bombs_cost_no_honest_verdict(count, tmp_path):
  made = cases(count, seed=count)
  os.environ['TMPDIR'] = str(tmp_path)
  shots, stop, r = [], threading.Event(), random.Random(1)
  rounds = 4
  with Pool(2, cpu_seconds=0.1, memory_mb=64) as pool:
    check_all([case for case, _ in made[:40]], pool=pool)
    descriptors, sizes = sorted(os.listdir('/proc/self/fd')), []

    def shoot():
      """A worker, its inner half or a running child, now and then."""
      while not stop.wait(r.uniform(0.2, 1.2)):
        pid, _ = r.choice(sessions(pool) or [(None, '')])
        if pid:
          try:
            os.kill(int(pid), signal.SIGKILL)
            shots.append(pid)
          except ProcessLookupError:
            pass

    shooter = threading.Thread(target=shoot)
    shooter.start()
    found = []
    for part in range(rounds):
      some = made[part * count // rounds : (part + 1) * count // rounds]
      found += check_all([case for case, _ in some], pool=pool)
      sizes.append(memory_kb())
    stop.set()
    shooter.join()
    check_all([made[0][0]], pool=pool)  # Whoever was shot last is replaced.
    states = [state for _, state in sessions(pool)]
    assert sorted(os.listdir('/proc/self/fd')) == descriptors
    assert not [state for state in states if state.startswith('Z')]
    assert len(states) <= 4
  wrong = collections.Counter(
    (kind, verdict.kind)
    for (_, kind), verdict in zip(made, found, strict=True)
    if verdict.kind != kind
  )
  print(f'{count} checks, {len(shots)} shots, {sum(wrong.values())} infra, kB:')
  print(sizes)
  # A hang that is shot in both its tries is infra, which is never a reward.
  assert all(pair[1] == 'infra' for pair in wrong), wrong
  assert not [pair for pair in wrong if pair[0] in ('pass', 'wrong')], wrong
  assert sum(wrong.values()) <= 0.01 * count
  assert shots
  assert sizes[-1] - sizes[0] < 8_000 + count  # kB; the verdicts are kept.
  assert not list(tmp_path.iterdir())
  del os.environ['TMPDIR']
