"""What the layers say of themselves, and what is done where they lack."""

import os
import subprocess
import sys

import pytest

from crjax.execution import Job, Pool, isolation
from tests.conftest import ROOT

JOB = Job('def f(x):\n  return x + 1', 'f', '1')
NAMESPACES = ('net', 'ipc', 'uts', 'mnt', 'cgroup', 'pid')
PROBE = ['-m', 'crjax.execution', 'probe']
# A container's profile: refuses these calls, for good, and runs a command.
LOCKED = """
import ctypes, errno, os, platform, sys
from crjax.execution import isolation, seccomp as s
machine = platform.machine()
unshare = {'x86_64': 272, 'aarch64': 97}[machine]
known = {
  'seccomp': s.WORKER[machine]['seccomp'],
  'landlock': isolation.NUMBERS[machine]['ruleset'],
  'unshare': unshare,
}
code = [(s.LOAD, 0, 0, s.NUMBER)]
for name in sys.argv[1].split(','):
  code += [(s.JUMP_EQ, 0, 1, known[name]),
           (s.RETURN, 0, 0, s.ERRNO | errno.EPERM)]
program, kept = s.packed([*code, (s.RETURN, 0, 0, s.ALLOW)])
isolation.no_new_privs()
assert s.install(isolation.LIBC, machine, program) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def locked(calls, *arguments):
  return subprocess.run(
    [sys.executable, '-c', LOCKED, calls, *arguments],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


@pytest.fixture(scope='module')
def report():
  with Pool(1, min_level=0) as pool:
    return pool.report


def test_programs_are_held_by_seccomp_here(report):
  assert report['level'] >= 2, isolation.table(report)
  assert 'self-test passed' in report['held']['seccomp']
  for name in ('no_new_privs', 'capabilities', 'rlimits'):
    assert name in report['held']


def test_every_layer_is_held_or_says_why_not(report):
  for name in isolation.LAYERS:
    assert (name in report['held']) != bool(report['missing'].get(name))
  assert not set(report['held']) - set(isolation.LAYERS)


def test_with_namespaces_the_world_is_empty(report):
  if report['level'] < 3:
    pytest.skip(f'level {report["level"]}: {report["missing"]}')
  assert report['held']['root'] == 'empty, read-only'
  assert not report['held']['uid'].endswith(' 0')
  assert set(NAMESPACES) <= set(report['held'])


@pytest.mark.parametrize(
  ('without', 'level'),
  [
    (('seccomp',), 1),
    (isolation.LAYERS, 0),
  ],
)
def test_below_the_level_nothing_runs_unless_it_is_asked_for(without, level):
  with pytest.raises(RuntimeError) as caught:
    Pool(1, without=without)
  for part in (
    f'at level {level}, and level 2 is asked for',
    'seccomp       MISSING: left out on request',
    f'--config.sandbox_min_level={level}',
    isolation.MEANING[level],
  ):
    assert part in str(caught.value)
  with Pool(1, without=without, min_level=level) as pool:
    assert pool.report['level'] == level
    assert pool.run([JOB])[0].value == '2'


@pytest.mark.parametrize('layer', isolation.LAYERS)
def test_a_layer_that_is_missing_costs_no_other(report, layer):
  with Pool(1, without=[layer], min_level=0) as pool:
    assert pool.run([JOB])[0].value == '2'
    held = set(pool.report['held'])
  implied = {'mnt': {'root'}, 'no_new_privs': set(), 'uid': set()}
  lost = {layer} | implied.get(layer, set())
  if layer == 'no_new_privs' and 'uid' in report['held']:
    lost |= {'landlock', 'seccomp'} - held  # Both ask for it or for root.
  assert held == set(report['held']) - lost


def test_a_container_without_namespaces_is_level_2():
  run = locked('unshare', *PROBE)
  assert run.returncode == 0, run.stderr
  assert run.stdout.startswith('isolation level 2')
  assert 'net           MISSING: Operation not permitted' in run.stdout


def test_a_container_without_seccomp_is_refused():
  """With the report, the way out, and exit status 1."""
  run = locked('seccomp', *PROBE)
  assert run.returncode == 1
  assert 'seccomp       MISSING: the kernel takes no filter' in run.stderr
  assert '--config.sandbox_min_level=1' in run.stderr


def test_a_machine_without_any_layer_is_refused_and_can_be_trusted():
  everything = 'seccomp,landlock,unshare'
  run = locked(everything, *PROBE)
  assert run.returncode == 1
  assert 'isolates programs at level 0' in run.stderr
  assert locked(everything, *PROBE, '--min-level=0').returncode == 0
  code = 'from crjax.execution import *\nwith Pool(1, min_level=0) as pool:\n'
  code += f'  assert pool.run([Job(*{tuple(JOB)})])[0].value == "2"'
  run = locked(everything, '-c', code)
  assert run.returncode == 0, run.stderr


def test_the_probe_prints_every_layer():
  run = subprocess.run(
    [sys.executable, *PROBE], cwd=ROOT, capture_output=True, text=True
  )
  assert run.returncode == 0, run.stderr
  for name in isolation.LAYERS:
    assert f'\n{name:14}' in run.stdout
  assert os.linesep.join(run.stdout.splitlines()).startswith('isolation level')


@pytest.mark.skipif(os.getuid() != 0, reason='only root can become another')
def test_another_user_is_isolated_too():
  code = f"""import os, sys
sys.path.insert(0, {str(ROOT)!r})
from crjax.execution import Job, Pool
os.setgroups([]); os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
with Pool(1) as pool:
  assert pool.run([Job(*{tuple(JOB)})])[0].value == '2'
  print(pool.report)"""
  run = subprocess.run(
    [sys.executable, '-c', code], cwd='/', capture_output=True, text=True
  )
  if 'PermissionError' in run.stderr:
    pytest.skip(f'another user cannot read python here: {run.stderr[-200:]}')
  assert run.returncode == 0, run.stderr
  assert "'uid 65534'" in run.stdout
