"""Bad days of a run's storage, and other machines than it was saved on."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from crjax import checkpoint, metrics
from tests.conftest import ROOT

ROWS = 120  # Of the fixture smoke_data.
BATCH = 8
VALUES = {
  'batch': BATCH,
  'length': 256,  # All rows fit.
  'schedule': 'constant',  # Whatever the number of steps to come.
  'warmup': 0,
  'save_every': 2,
}
SECONDS = 400  # For a run of a few steps on a busy machine of two cores.


def start(smoke_data, workdir, *, steps, processes=1, devices=1, **values):
  """The processes of an SFT run to `steps`, so many devices each."""
  values = VALUES | values
  values |= {
    'data': smoke_data / 'sft_train.parquet',
    'tokenizer': smoke_data / 'tokenizer',
    'workdir': workdir,
    'epochs': (steps * BATCH + 1) / ROWS,
  }
  args = [
    sys.executable,
    '-m',
    'crjax.train',
    f'--config={ROOT / "configs" / "sft_smoke.py"}',
    *(f'--config.{k}={v}' for k, v in values.items()),
  ]
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
  }
  if processes > 1:
    args.append('--distributed')
    port = 20000 + (os.getpid() + len(str(workdir)) + steps) % 20000
    env |= {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': str(processes),
    }
  return [
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


def finish(running):
  """[(status, output)] of processes."""
  try:
    outputs = [p.communicate(timeout=SECONDS)[0] for p in running]
  finally:
    for process in running:
      process.kill()
  return [(p.returncode, x) for p, x in zip(running, outputs, strict=True)]


def train(*args, **kwargs):
  """The outputs of a run that succeeds."""
  ended = finish(start(*args, **kwargs))
  assert all(code == 0 for code, _ in ended), ended
  return [output for _, output in ended]


def flip_a_byte(path: pathlib.Path):
  """In the arrays of a checkpoint."""
  parts = (path / 'state').rglob('d/*')
  part = max(parts, key=lambda p: p.stat().st_size)
  data = bytearray(part.read_bytes())
  data[len(data) // 2] ^= 1
  part.write_bytes(data)


@pytest.mark.slow
def test_two_processes_fall_back_to_the_same_checkpoint(smoke_data, tmp_path):
  cut, whole = tmp_path / 'cut', tmp_path / 'whole'
  both = {'processes': 2, 'mesh': (2, 1, 1)}
  train(smoke_data, cut, steps=4, **both)
  flip_a_byte(cut / 'checkpoints' / '4')
  outputs = train(smoke_data, cut, steps=6, **both)
  assert all('SHA-256' in output for output in outputs)
  assert all('Going on from step 2 instead of 4' in x for x in outputs)
  assert all('resumed at step 2' in output for output in outputs)
  assert (cut / 'damaged' / '4' / 'state').is_dir()
  train(smoke_data, whole, steps=6, **both)
  (step, a), (other, b) = map(checkpoint.restore_params, (cut, whole))
  assert step == other == 6
  jax.tree.map(np.testing.assert_array_equal, a, b)
  lines = metrics.read_lines(cut / 'metrics.jsonl')
  assert [line['step'] for line in lines] == list(range(1, 7))
  shutil.rmtree(cut / 'checkpoints' / '4')
  flip_a_byte(cut / 'checkpoints' / '6')
  flip_a_byte(cut / 'checkpoints' / '2')
  shutil.rmtree(cut / 'checkpoints' / '0')
  for code, output in finish(start(smoke_data, cut, steps=8, **both)):
    assert code == 2, output
    assert 'This run cannot start: no checkpoint in' in output
    assert re.search(r'step 2: .*SHA-256(.|\n)*step 6: .*SHA-256', output)
  assert (cut / 'checkpoints' / '6').is_dir()


# Each goes on where the one before it stopped: (processes, devices, mesh).
MACHINES = {
  'devices': [(1, 8, (2, 2, 2)), (1, 2, (1, 2, 1)), (1, 1, (1, 1, 1))],
  'processes': [(2, 1, (2, 1, 1)), (1, 1, (1, 1, 1)), (2, 2, (1, 4, 1))],
}


@pytest.mark.slow
@pytest.mark.parametrize('name', MACHINES)
def test_a_run_resumes_on_other_machines(smoke_data, tmp_path, name):
  moved, whole = tmp_path / 'moved', tmp_path / 'whole'
  for i, (processes, devices, mesh) in enumerate(MACHINES[name]):
    outputs = train(
      smoke_data,
      moved,
      steps=3 * (i + 1),
      processes=processes,
      devices=devices,
      mesh=mesh,
    )
    if i:
      assert all(f'resumed at step {3 * i} ' in output for output in outputs)
  train(smoke_data, whole, steps=9, mesh=(1, 1, 1))
  lines, others = (
    metrics.read_lines(path / 'metrics.jsonl') for path in (moved, whole)
  )
  assert [line['step'] for line in lines] == list(range(1, 10))
  assert [x['tokens'] for x in lines] == [x['tokens'] for x in others]
  losses, wanted = ([x['loss'] for x in y] for y in (lines, others))
  np.testing.assert_allclose(losses, wanted, rtol=2e-5)
  (_, a), (_, b) = map(checkpoint.restore_params, (moved, whole))
  # Where a gradient is nearly zero, rounding is a part of Adam's step.
  close = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=5e-5)
  jax.tree.map(close, a, b)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 8 MB that is all for a run."""
  path = tmp_path / 'disk'
  path.mkdir()
  mount = ['mount', '-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', str(path)]
  if subprocess.run(mount, capture_output=True).returncode:
    pytest.skip('only root may mount a small file system')
  yield path
  subprocess.run(['umount', '-l', str(path)], check=True)


def fill(path: pathlib.Path, left: int):
  """Leaves so many bytes."""
  free = shutil.disk_usage(path).free
  (path / 'ballast').write_bytes(bytes(max(free - left, 0)))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_and_the_next_start_resumes(
  smoke_data, tmp_path, small_disk
):
  full, whole = small_disk / 'run', tmp_path / 'whole'
  shape = {'shape.L': 1, 'shape.D': 32, 'shape.F': 48, 'save_every': 3}
  running = start(smoke_data, full, steps=300, **shape)
  first = full / 'checkpoints' / '3' / 'checksums.json'
  end = time.monotonic() + SECONDS
  while not first.exists():
    assert time.monotonic() < end and running[0].poll() is None
    time.sleep(0.01)
  fill(small_disk, left=200_000)  # Lines of the log fit, a checkpoint does not.
  ((code, output),) = finish(running)
  assert code == 1, output
  last = output.rstrip().splitlines()[-1]
  assert last.startswith(f'sft: {full}/checkpoints: ') and 'Make room' in last
  steps = [
    int(p.name) for p in full.glob('checkpoints/[0-9]*') if p.name.isdigit()
  ]
  kept = max(steps)
  assert kept >= 3
  (small_disk / 'ballast').unlink()
  (output,) = train(smoke_data, full, steps=kept + 3, **shape)
  assert f'resumed at step {kept} ' in output
  train(smoke_data, whole, steps=kept + 3, **shape)
  (_, a), (_, b) = map(checkpoint.restore_params, (full, whole))
  jax.tree.map(np.testing.assert_array_equal, a, b)
