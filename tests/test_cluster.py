"""Bad days of a job of one or two processes: each ends as it should."""

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from crjax import checkpoint, cluster, hf, model
from tests.conftest import ROOT

# Runs that would take minutes, saving rarely.
COMMON = {
  'mesh': (2, 1, 1),
  'save_every': 100000,
  'schedule': 'constant',  # Whatever the number of steps to come.
  'warmup': 0,
}
SFT = COMMON | {'epochs': 60, 'batch': 8, 'length': 256}  # All rows fit.
GRPO = {'questions': 4, 'groups': 4, 'rollouts': 2, 'completion_length': 16}
VALUES = {'sft': SFT, 'grpo': COMMON | GRPO | {'steps': 1000}}
SHAPE = model.Config(V=512, L=1, D=32, F=48, N=2, K=1, H=16, tied=True)
ROWS = 120  # Of the fixture smoke_data.
STEP_SECONDS = 600  # For a first step on a very busy machine of two cores.


class Job:
  """The processes of a training run of two devices, started and watched."""

  def __init__(
    self, smoke_data, workdir, processes, *, task='sft', code=None, **values
  ):
    self.workdir = workdir
    file = 'sft_train' if task == 'sft' else 'rl_train'
    data = {
      'data': smoke_data / f'{file}.parquet',
      'tokenizer': smoke_data / 'tokenizer',
      'workdir': workdir,
    }
    values = VALUES[task] | data | values
    args = [
      sys.executable,
      *(['-c', code] if code else ['-m', 'crjax.train']),
      f'--config={ROOT / "configs" / f"{task}_smoke.py"}',
      *(f'--config.{k}={v}' for k, v in values.items()),
    ]
    flag = '--xla_force_host_platform_device_count'
    env = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'{flag}={2 // processes}',
    }
    if processes > 1:
      args.append('--distributed')
      port = 20000 + (os.getpid() + len(str(workdir))) % 20000
      env |= {
        'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
        'JAX_NUM_PROCESSES': str(processes),
      }
    self.processes = [
      subprocess.Popen(
        args,
        cwd=ROOT,
        env=env | ({'JAX_PROCESS_ID': str(i)} if processes > 1 else {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
      )
      for i in range(processes)
    ]

  def steps(self) -> int:
    path = self.workdir / 'metrics.jsonl'
    lines = path.read_text().splitlines() if path.exists() else []
    return max(
      (json.loads(x)['step'] for x in lines if x[-1] == '}'), default=0
    )

  def wait_for(self, step: int):
    end = time.monotonic() + STEP_SECONDS
    while self.steps() < step:
      assert time.monotonic() < end, f'no step {step} in time'
      assert all(p.poll() is None for p in self.processes), self.outputs()
      time.sleep(0.05)

  def outputs(self, seconds=STEP_SECONDS):
    return [p.communicate(timeout=seconds)[0] for p in self.processes]

  def codes(self):
    return [p.returncode for p in self.processes]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    for process in self.processes:
      process.kill()


def finish(smoke_data, workdir, processes, steps, *, task='sft', **values):
  """Trains to `steps` and returns the outputs and the parameters."""
  values |= {'watchdog': 600}
  if task == 'sft':
    values |= {'epochs': (steps * SFT['batch'] + 1) / ROWS}
  else:
    values |= {'steps': steps}
  with Job(smoke_data, workdir, processes, task=task, **values) as job:
    outputs = job.outputs()
  assert job.codes() == [0] * processes, outputs
  step, params = checkpoint.restore_params(workdir)
  assert step == steps
  return outputs, params


@pytest.fixture(scope='module')
def policy(tmp_path_factory, smoke_data):
  path = tmp_path_factory.mktemp('policy') / 'hf'
  params = jax.device_get(model.init(SHAPE, jax.random.key(0)))
  hf.save(path, SHAPE, params, source_dir=smoke_data / 'tokenizer')
  return path


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_sigterm_saves_and_the_run_resumes(smoke_data, tmp_path, processes):
  with Job(smoke_data, tmp_path / 'a', processes) as job:
    job.wait_for(3)
    job.processes[-1].send_signal(signal.SIGTERM)
    outputs = job.outputs()
  assert job.codes() == [cluster.SAVED] * processes, outputs
  assert all('told to stop: saved step' in output for output in outputs)
  stopped, _ = checkpoint.restore_params(job.workdir)
  outputs, resumed = finish(smoke_data, job.workdir, processes, stopped + 3)
  assert f'resumed at step {stopped}' in outputs[0]
  assert not list(job.workdir.glob('processes/*'))
  _, straight = finish(smoke_data, tmp_path / 'b', processes, stopped + 3)
  jax.tree.map(np.testing.assert_array_equal, resumed, straight)


@pytest.mark.slow
def test_a_stalled_neighbour_is_named_and_the_job_ends(smoke_data, tmp_path):
  with Job(smoke_data, tmp_path, 2, watchdog=60) as job:
    job.wait_for(2)
    time.sleep(20)  # Both have left a note.
    job.processes[1].send_signal(signal.SIGSTOP)
    output = job.processes[0].communicate(timeout=STEP_SECONDS)[0]
    # Gloo may give up waiting before the watchdog does.
    assert job.processes[0].returncode in (1, cluster.HUNG), output
  first, second = table(output)
  assert first.startswith('process 1')
  assert second.startswith('process 0')


@pytest.mark.slow
def test_a_killed_neighbour_is_named_and_nothing_is_lost(smoke_data, tmp_path):
  with Job(smoke_data, tmp_path / 'a', 2, save_every=2) as job:
    job.wait_for(5)
    pid = job.processes[1].pid
    job.processes[1].kill()
    began = time.monotonic()
    output = job.processes[0].communicate(timeout=STEP_SECONDS)[0]
  assert time.monotonic() - began < 120
  assert job.processes[0].returncode not in (0, 2, cluster.SAVED), output
  host = socket.gethostname()
  assert f'process 1 ({host}, pid {pid}) has not been heard of' in output
  assert table(output)[0].startswith('process 1')
  assert_nothing_is_lost(smoke_data, job, tmp_path / 'b')


# A run in which process 1 stops for good in the {when}-th call of a function.
STALLED = """
import importlib, os, runpy, sys, time
module, name, owner = {where!r}
found = importlib.import_module(module)
found = getattr(found, owner) if owner else found
real, calls = getattr(found, name), []
def stalled(*args, **kwargs):
  calls.append(None)
  while len(calls) == {when} and os.environ['JAX_PROCESS_ID'] == '1':
    time.sleep(1)
  return real(*args, **kwargs)
setattr(found, name, stalled)
sys.argv = ['crjax.train', *sys.argv[1:]]
runpy.run_module('crjax.train', run_name='__main__', alter_sys=True)
"""
REWARD = ('crjax.rewards', 'score', ''), 'judge'
SOURCE = ('crjax.data', '__next__', 'Batches'), 'run'


@pytest.mark.slow
@pytest.mark.parametrize(
  ('where', 'phase', 'task'),
  [(*REWARD, 'grpo'), (*SOURCE, 'sft')],
  ids=['reward', 'source'],
)
def test_what_stalls_is_named_and_nothing_is_lost(
  where, phase, task, smoke_data, policy, tmp_path
):
  values = {'save_every': 2, 'watchdog': 60}
  if task == 'grpo':
    values |= {'model': policy, 'tokenizer': ''} | GRPO
  code = STALLED.format(where=where, when=10)
  job = Job(smoke_data, tmp_path / 'a', 2, task=task, code=code, **values)
  with job:
    job.wait_for(2)
    began = time.monotonic()
    outputs = job.outputs()
  # The bound, what is left of ten steps, and a pause for the others to speak.
  assert time.monotonic() - began < 240
  assert cluster.HUNG in job.codes(), outputs
  assert all(code not in (0, 2, cluster.SAVED) for code in job.codes())
  stuck = outputs[1]
  assert 'watchdog: no step in' in stuck
  line = table(stuck)[0]
  assert line.startswith(f'process 1 ({socket.gethostname()}')
  assert f'> {phase} (' in line
  assert f'in {phase}' in stuck  # The stacks.
  assert table(outputs[0])[0].startswith('process 1'), outputs[0]
  assert_nothing_is_lost(smoke_data, job, tmp_path / 'b', task, **values)


def table(output) -> list[str]:
  """The lines about processes, those that hold the others up first."""
  assert 'those that hold the others up first:' in output, output
  lines = output.split('those that hold the others up first:')[1].split('\n')
  return [line.strip() for line in lines if line.startswith('  process ')]


def assert_nothing_is_lost(smoke_data, job, straight, task='sft', **values):
  """The job, started again, becomes what it would have been undisturbed."""
  kept, _ = checkpoint.restore_params(job.workdir)
  assert kept >= 2
  go = functools.partial(finish, smoke_data, task=task, **values)
  outputs, resumed = go(job.workdir, 2, kept + 2)
  assert f'resumed at step {kept}' in outputs[0]
  _, whole = go(straight, 2, kept + 2)
  jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.slow
def test_a_source_that_never_answers_is_named(smoke_data, tmp_path):
  """While a run begins there is a watch already."""
  code = STALLED.format(where=('crjax.data', 'examples', ''), when=1)
  with Job(smoke_data, tmp_path, 2, code=code, watchdog=30) as job:
    outputs = job.outputs()
  assert job.codes()[1] == cluster.HUNG, outputs
  (line,) = [x for x in table(outputs[1]) if x.startswith('process 1')]
  assert '> open_examples (' in line


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(smoke_data, tmp_path):
  code = STALLED.format(where=SOURCE[0], when=4).replace(
    'time.sleep(1)', "raise OSError('no such disk')"
  )
  with Job(smoke_data, tmp_path, 2, code=code) as job:
    began = time.monotonic()
    outputs = job.outputs()
  assert time.monotonic() - began < STEP_SECONDS
  assert job.codes()[1] == 1
  assert 'lost: OSError: no such disk' in outputs[1]
  assert job.codes()[0] not in (0, 2, cluster.SAVED)
  assert 'its end, by OSError: no such disk' in outputs[0]


def test_half_of_the_addresses_is_an_error(monkeypatch):
  for name in cluster.NAMES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  with pytest.raises(ValueError, match='JAX_COORDINATOR_ADDRESS'):
    cluster.join()
