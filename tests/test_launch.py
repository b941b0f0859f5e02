"""Launchers drive a cloud of directories, see fakecloud.py.

What travels to its machines is HEAD, as it is for a user: commit first.
"""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import time

import pytest

from tests import fakecloud
from tests.conftest import ROOT

TPU, SSH = ROOT / 'launch' / 'tpu.sh', ROOT / 'launch' / 'ssh.sh'
SLICE = ['--name=cr', '--zone=us-east5-a', '--type=v6e-8']
HEAD = subprocess.run(
  ['git', 'rev-parse', '--short=12', 'HEAD'],
  cwd=ROOT,
  text=True,
  capture_output=True,
).stdout.strip()

pytestmark = pytest.mark.skipif(not HEAD, reason='not a git checkout')


class Cloud:
  """A fake cloud of two machines and the launchers that see it."""

  def __init__(self, tmp_path):
    self.path = tmp_path / 'cloud'
    self.shared = tmp_path / 'shared'
    self.shared.mkdir()
    self.env = fakecloud.install(tmp_path / 'bin', self.path, machines=2)
    self.env |= {'SHARED': str(self.shared), 'CRJAX_PATIENCE': '2'}

  def start(self, *args):
    return subprocess.Popen(
      [str(a) for a in args],
      cwd=ROOT,
      env=self.env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )

  def run(self, *args, code=0):
    process = self.start(*args)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == code, output
    return output

  def tpu(self, verb, *args, **kwargs):
    return self.run(TPU, verb, *SLICE, *args, **kwargs)

  def faults(self, *lines):
    (self.path / 'faults').write_text('\n'.join(lines))

  def asked(self, verb) -> int:
    return sum(verb in call for call in fakecloud.calls(self.path))


@pytest.fixture
def cloud(tmp_path):
  found = Cloud(tmp_path)
  yield found
  fakecloud.end(found.path)


def job(text: str) -> list[str]:
  """A command line that runs Python text; `shared` is seen by all machines."""
  head = 'import os, pathlib, sys, time, signal\n'
  shared = 'shared = pathlib.Path(os.environ["SHARED"])\n'
  return ['--', sys.executable, '-c', head + shared + text]


# A run in miniature: it counts its starts in the shared directory.
COUNTING = """
me = pathlib.Path.home().name
with (shared / f'starts-{me}').open('a') as file:
  file.write('x')
starts = len((shared / f'starts-{me}').read_text())
"""


def eventually(condition, seconds=60):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, 'did not happen in time'
    time.sleep(0.1)


def test_a_dry_run_prints_every_command_and_runs_none(cloud):
  command = ['python', '-m', 'crjax.train', '--config=configs/grpo_7b.py']
  args = ['--spot', '--slices=2', '--dry-run', '--', *command]
  lines = cloud.tpu('up', *args).splitlines()
  assert not (cloud.path / 'calls').exists()
  split = [shlex.split(line) for line in lines if not line.startswith('tpu:')]
  verbs = [a[a.index('queued-resources') + 1] for a in split if 'tpus' in a]
  assert verbs == ['create', 'describe', 'scp', 'ssh', 'ssh']
  assert ' '.join(split[0]) == (
    'gcloud compute tpus queued-resources create cr'
    ' --node-count=2 --node-prefix=cr --accelerator-type=v6e-8'
    ' --runtime-version=v2-alpha-tpuv6e --spot --zone=us-east5-a'
  )
  last = split[-1]
  assert f'start {HEAD} -- {" ".join(command)}' in last[-2]
  assert '--node=all' in last and '--worker=all' in last


@pytest.mark.parametrize(
  ('kind', 'image'),
  [('v5litepod-16', 'v2-alpha-tpuv5-lite'), ('v5p-8', 'v2-alpha-tpuv5')],
)
def test_the_image_follows_from_the_type(cloud, kind, image):
  args = ['--name=a', '--zone=z', f'--type={kind}', '--dry-run']
  assert f'--runtime-version={image} ' in cloud.run(TPU, 'create', *args)


def test_a_job_runs_everywhere_and_its_slice_is_deleted(cloud):
  text = COUNTING + 'sys.exit(1 if starts == 1 else 0)'
  output = cloud.tpu('up', '--then-delete', *job(text))
  # Every machine failed once, came back, and was done.
  assert {p.read_text() for p in cloud.shared.iterdir()} == {'xx'}
  assert 'WAITING_FOR_RESOURCES' in output and 'the job is done' in output
  assert not (cloud.path / 'state').exists()
  assert 'costs nothing' in cloud.tpu('delete')


def test_every_step_can_be_repeated(cloud):
  text = COUNTING + 'time.sleep(600)'
  for verb, *args in 2 * [('create',), ('wait',), ('setup',)]:
    cloud.tpu(verb, *args)
  for _ in range(2):
    cloud.tpu('start', *job(text))
  assert cloud.asked('create') == 1
  eventually(lambda: len(list(cloud.shared.iterdir())) == 2)
  assert cloud.tpu('status').count('running') == 2
  other = cloud.tpu('start', *job('pass'), code=1)
  assert 'another job runs here' in other
  assert cloud.tpu('stop').count('stopped') == 2
  assert cloud.tpu('status').count('stopped') == 2
  assert {p.read_text() for p in cloud.shared.iterdir()} == {'x'}
  cloud.tpu('delete')


def test_a_refused_request_says_what_to_do(cloud):
  cloud.faults('create quota')
  output = cloud.tpu('up', *job('pass'), code=2)
  assert 'RESOURCE_EXHAUSTED' in output and 'check the quota of v6e-8' in output
  cloud.tpu('up', '--then-delete', *job('pass'))  # The same command again.


def test_lost_connections_are_tried_again(cloud):
  cloud.tpu('create')
  cloud.tpu('wait')
  cloud.faults('scp lost', 'scp lost', 'ssh lost')
  output = cloud.tpu('setup')
  assert output.count('connection lost') == 3
  cloud.faults(*5 * ['ssh lost'])
  cloud.tpu('status', code=255)


def test_a_preempted_job_goes_on_elsewhere(cloud):
  text = COUNTING + 'time.sleep(600 if starts == 1 else 0)'
  process = cloud.start(TPU, 'up', *SLICE, '--spot', *job(text))
  eventually(lambda: len(list(cloud.shared.iterdir())) == 2)
  (cloud.path / 'state').write_text('SUSPENDED')
  output = process.communicate(timeout=120)[0]
  assert process.returncode == 0, output
  assert 'a preemption?' in output
  assert {p.read_text() for p in cloud.shared.iterdir()} == {'xx'}
  assert cloud.asked('create') == 2


def test_a_dead_machine_is_replaced(cloud):
  text = COUNTING + 'time.sleep(600 if starts == 1 else 0)'
  process = cloud.start(TPU, 'up', *SLICE, *job(text))
  eventually(lambda: len(list(cloud.shared.iterdir())) == 2)
  (cloud.path / 'm1' / 'dead').touch()
  output = process.communicate(timeout=120)[0]
  assert process.returncode == 0, output
  assert 'does not answer, look 2 of 2' in output
  assert cloud.asked('create') == 2


@pytest.mark.parametrize(
  ('code', 'says'), [(2, 'wrong config or data'), (3, 'the run diverged')]
)
def test_what_no_second_try_mends_is_not_tried_again(cloud, code, says):
  text = COUNTING + f"print('no such file'); sys.exit({code})"
  output = cloud.tpu('up', *job(text), code=2)
  assert 'no such file' in output and 'the job failed' in output
  assert f'failed, code {code}: {says}' in output
  assert {p.read_text() for p in cloud.shared.iterdir()} == {'x'}


def test_a_stopped_job_may_save(cloud):
  text = (
    COUNTING
    + "end = lambda *_: ((shared / f'saved-{me}').touch(), sys.exit(75))"
    '\nsignal.signal(signal.SIGTERM, end)\n(shared / f"up-{me}").touch()'
    '\ntime.sleep(600)'
  )
  cloud.tpu('create')
  cloud.tpu('wait')
  cloud.tpu('setup')
  cloud.tpu('start', *job(text))
  eventually(lambda: len(list(cloud.shared.glob('up-*'))) == 2)
  assert cloud.tpu('stop').count('stopped, code 75') == 2
  assert len(list(cloud.shared.glob('saved-*'))) == 2


def test_secrets_travel_as_a_closed_file(cloud, tmp_path):
  secret = 'hf_0123456789'
  refused = cloud.tpu('start', '--', 'train', f'--hf_token={secret}', code=2)
  assert 'use --env-file' in refused
  env_file = tmp_path / 'env'
  env_file.write_text(f'HF_TOKEN={secret}\n')
  text = (
    "(shared / pathlib.Path.home().name).write_text(os.environ['HF_TOKEN'])"
  )
  output = cloud.tpu('up', f'--env-file={env_file}', *job(text))
  assert {p.read_text() for p in cloud.shared.iterdir()} == {secret}
  assert secret not in output
  assert secret not in (cloud.path / 'calls').read_text()
  for machine in ('m0', 'm1'):
    mode = (cloud.path / machine / 'crjax' / 'env').stat().st_mode
    assert mode & 0o777 == 0o600


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['fly'], 'unknown command fly'),
    (['create', '--nmae=x'], 'unknown option --nmae=x'),
    (['create', '--name=x', '--zone=z'], 'create needs --type'),
    (['create', '--name=x', '--zone=z', '--type=v9-8'], 'no runtime known'),
    (['setup', *SLICE, '--commit=nope'], '--commit=nope is no commit'),
    (['start', *SLICE], 'start needs a command after --'),
  ],
)
def test_wrong_use_names_what_is_wrong(cloud, args, message):
  assert message in cloud.run(TPU, *args, code=2)
  assert not (cloud.path / 'calls').exists()


@pytest.fixture
def hosts(cloud, tmp_path):
  path = tmp_path / 'nodes.txt'
  path.write_text('# two\nm0\n\nme@m1\n')
  for machine in ('m0', 'm1'):
    (cloud.path / machine).mkdir()
  return f'--hosts={path}'


JOINED = """
from crjax import cluster
cluster.join()
import jax
(shared / str(jax.process_index())).write_text(str(jax.device_count()))
"""


def test_ssh_machines_join_one_another(cloud, hosts):
  port = 20000 + os.getpid() % 20000
  cloud.env |= {'JAX_PLATFORMS': 'cpu'}
  cloud.env['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'
  args = ['--lead=localhost', f'--port={port}', *job(JOINED)]
  cloud.run(SSH, 'up', hosts, *args)
  eventually(lambda: cloud.run(SSH, 'status', hosts).count('done') == 2)
  assert {p.name: p.read_text() for p in cloud.shared.iterdir()} == {
    '0': '4',
    '1': '4',
  }


def test_ssh_dry_run_and_a_machine_that_is_down(cloud, hosts):
  command = ['--', 'python', '-m', 'crjax.train', '--config=configs/grpo_7b.py']
  lines = cloud.run(SSH, 'up', hosts, '--dry-run', *command).splitlines()
  assert not (cloud.path / 'calls').exists()
  split = [shlex.split(line) for line in lines if not line.startswith('ssh:')]
  assert ' '.join(a[0] for a in split) == 'git scp ssh scp ssh ssh ssh'
  assert 'JAX_COORDINATOR_ADDRESS=m0:29400' in split[-1][-1]
  assert 'JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 python' in split[-1][-1]
  (cloud.path / 'm1' / 'dead').touch()
  assert 'me@m1: status failed' in cloud.run(SSH, 'status', hosts, code=1)


SLURM = {
  'scontrol': """case $1 in
  show) echo n0; echo n1 ;;
  *) echo "$@" >> "$SHARED/q" ;;
esac""",
  'scancel': 'pkill -TERM -f "$SHARED/node"',
  # Both nodes of the step; the code of the step is that of the last to fail.
  'srun': """while [[ $1 = --* ]]; do shift; done
for i in 0 1; do SLURM_PROCID=$i "$@" & pids="$pids $!"; done
code=0
for p in $pids; do wait $p || code=$?; done
exit $code""",
}


@pytest.fixture
def slurm(cloud, tmp_path):
  for name, text in SLURM.items():
    path = tmp_path / 'bin' / name
    path.write_text(f'#!/bin/bash\n{text}\n')
    path.chmod(0o755)
  cloud.env |= {
    'SLURM_JOB_ID': '7',
    'SLURM_NNODES': '2',
    'SLURM_JOB_NODELIST': 'n[0-1]',
  }

  def run(text, code, **env):
    script = cloud.shared / 'node.py'
    script.write_text(job(text)[-1])
    cloud.env |= env
    return cloud.run('bash', 'launch/slurm.sbatch', 'python', script, code=code)

  return run


def test_slurm_tells_nodes_apart_and_requeues_what_failed(cloud, slurm):
  text = """
names = ('COORDINATOR_ADDRESS', 'NUM_PROCESSES', 'PROCESS_ID')
found = [os.environ[f'JAX_{n}'] for n in names]
(shared / f'n{found[2]}').write_text(' '.join(found))
sys.exit(int(os.environ['CODE']))
"""
  queue = cloud.shared / 'q'
  slurm(text, 0, CODE='0')
  for i in '01':
    assert (cloud.shared / f'n{i}').read_text() == f'n0:20007 2 {i}'
  slurm(text, 2, CODE='2')
  slurm(text, 3, CODE='3')
  assert not queue.exists()
  slurm(text, 0, CODE='75')
  assert queue.read_text() == 'requeue 7\n'
  slurm(text, 1, CODE='1', SLURM_RESTART_COUNT='20')
  assert queue.read_text() == 'requeue 7\n'


def test_shell_scripts_are_clean():
  shellcheck = shutil.which(
    'shellcheck',
    path=os.pathsep.join(
      [str(pathlib.Path(sys.executable).parent), os.environ['PATH']]
    ),
  )
  if shellcheck is None:
    pytest.skip('no shellcheck; requirements-dev.txt has it')
  scripts = [*ROOT.glob('launch/*.sh'), ROOT / 'launch' / 'slurm.sbatch']
  found = subprocess.run(
    [shellcheck, *map(str, scripts)], capture_output=True, text=True
  )
  assert not found.returncode, found.stdout
