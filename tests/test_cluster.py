"""Bad days of a job of one or two processes: each ends as it should."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from crjax import checkpoint, cluster
from tests.conftest import ROOT

# A run that would take minutes, saving rarely.
VALUES = {
  'mesh': (2, 1, 1),
  'epochs': 60,
  'save_every': 100000,
  'batch': 8,
  'length': 256,  # All rows fit.
  'schedule': 'constant',  # Whatever the number of steps to come.
  'warmup': 0,
}
ROWS = 120  # Of the fixture smoke_data.
STEP_SECONDS = 180  # For a first step on a busy machine of two cores.


class Job:
  """The processes of a training run of two devices, started and watched."""

  def __init__(self, smoke_data, workdir, processes, **values):
    self.workdir = workdir
    data = {
      'data': smoke_data / 'sft_train.parquet',
      'tokenizer': smoke_data / 'tokenizer',
      'workdir': workdir,
    }
    values = VALUES | data | values
    args = [
      sys.executable,
      '-m',
      'crjax.train',
      f'--config={ROOT / "configs" / "sft_smoke.py"}',
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


def finish(smoke_data, workdir, processes, steps):
  """Trains to `steps` and returns the parameters."""
  epochs = (steps * VALUES['batch'] + 1) / ROWS
  with Job(smoke_data, workdir, processes, epochs=epochs) as job:
    outputs = job.outputs()
  assert job.codes() == [0] * processes, outputs
  step, params = checkpoint.restore_params(workdir)
  assert step == steps
  return outputs, params


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
    assert job.processes[0].returncode == cluster.HUNG, output
  assert 'watchdog: no step in' in output
  first, second = output.split('those that hold the others up first:')[1].split(
    '\n'
  )[1:3]
  assert first.strip().startswith('process 1'), output
  assert second.strip().startswith('process 0')
  assert 'Thread' in output and 'sft.py' in output  # The stacks.


@pytest.mark.slow
def test_a_killed_neighbour_ends_the_job(smoke_data, tmp_path):
  with Job(smoke_data, tmp_path, 2, save_every=2) as job:
    job.wait_for(5)
    job.processes[1].kill()
    output = job.processes[0].communicate(timeout=STEP_SECONDS)[0]
    assert job.processes[0].returncode not in (0, cluster.SAVED), output
  kept, _ = checkpoint.restore_params(tmp_path)
  assert kept >= 2
  outputs, _ = finish(smoke_data, tmp_path, 2, kept + 2)
  assert f'resumed at step {kept}' in outputs[0]


def test_half_of_the_addresses_is_an_error(monkeypatch):
  for name in cluster.NAMES:
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv('JAX_NUM_PROCESSES', '2')
  with pytest.raises(ValueError, match='JAX_COORDINATOR_ADDRESS'):
    cluster.join()
