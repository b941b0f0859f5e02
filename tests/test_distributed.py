"""Two processes of two devices each train what one process of four trains."""

import dataclasses
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from crjax import checkpoint, hf, model
from tests.conftest import ROOT

SHAPE = model.Config(V=512, L=1, D=32, F=48, N=2, K=1, H=16, tied=True)
SHARED = {'mesh': (2, 2, 1), 'save_every': 2}


def command(config, smoke_data, workdir, **values):
  flags = [f'--config.{k}={v}' for k, v in (SHARED | values).items()]
  path = ROOT / 'configs' / f'{config}.py'
  return [
    sys.executable,
    '-m',
    'crjax.train',
    f'--config={path}',
    f'--config.workdir={workdir}',
    *flags,
  ]


def together(args, *, processes: int):
  """Outputs of the processes of one run over four devices.

  They find each other as the tasks of a Slurm job step do.
  """
  devices = 4 // processes
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    'SLURM_JOB_ID': str(os.getpid()),  # Chooses the port.
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(processes),
  }
  if processes > 1:
    args = [*args, '--distributed']
  running = [
    subprocess.Popen(
      args,
      cwd=ROOT,
      env=env | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    for i in range(processes)
  ]
  try:
    outputs = [process.communicate(timeout=300)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  for process, output in zip(running, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs


@pytest.fixture(scope='module')
def policy(tmp_path_factory, smoke_data):
  path = tmp_path_factory.mktemp('policy') / 'hf'
  params = jax.device_get(model.init(SHAPE, jax.random.key(0)))
  hf.save(path, SHAPE, params, source_dir=smoke_data / 'tokenizer')
  return path


@pytest.mark.parametrize('task', ['sft', 'grpo'])
def test_two_processes_train_what_one_trains(
  task, smoke_data, policy, tmp_path
):
  values = {'model': policy, 'tokenizer': ''}
  if task == 'sft':
    values |= {
      'data': smoke_data / 'sft_train.parquet',
      'epochs': 0.4,
      'packed': True,
      'length': 400,
      'micro': 2,
    }
  else:
    values |= {
      'data': smoke_data / 'rl_train.parquet',
      'steps': 4,
      'questions': 4,
      'groups': 4,
      'rollouts': 4,
      'completion_length': 16,
      'samples_every': 2,
    }
  runs = {n: tmp_path / str(n) for n in (1, 2)}
  for processes, workdir in runs.items():
    args = command(f'{task}_smoke', smoke_data, workdir, **values)
    outputs = together(args, processes=processes)
    assert 'a fresh run' in outputs[0]
  (step, one), (other, two) = map(checkpoint.restore_params, runs.values())
  assert step == other
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  jax.tree.map(close, one, two)
  lines = [
    (workdir / 'metrics.jsonl').read_text().splitlines()
    for workdir in runs.values()
  ]
  assert len(lines[0]) == len(lines[1]) == step


LOAD_AND_SAVE = """
import re, sys
import jax
from crjax import hf
from crjax.sharding import make_mesh
source, out = sys.argv[1:3]
if '--distributed' in sys.argv:
  jax.distributed.initialize()
mesh = make_mesh((1, 2, 2))
found = hf.inspect(source)
read = lambda: int(re.search(r'rchar: (\\d+)', open('/proc/self/io').read())[1])
before = read()
params = hf.load(found, mesh)
jax.block_until_ready(params)
print('read', read() - before)
with jax.set_mesh(mesh):
  hf.save(out, found.cfg, params, dtype='bfloat16')
"""


def test_each_process_reads_its_share_and_the_first_one_writes(tmp_path):
  cfg = dataclasses.replace(SHAPE, V=16384, D=256, L=2, tied=False)
  params = jax.device_get(model.init(cfg, jax.random.key(0)))
  source = tmp_path / 'source'
  hf.save(source, cfg, params, dtype='bfloat16')
  size = sum(p.stat().st_size for p in source.glob('*.safetensors'))
  for processes in (1, 2):
    out = tmp_path / str(processes)
    args = [sys.executable, '-c', LOAD_AND_SAVE, str(source), str(out)]
    outputs = together(args, processes=processes)
    found = [int(re.search(r'read (\d+)', output)[1]) for output in outputs]
    # All read norm scales, headers, and modules that jax imports late.
    assert max(found) < 1.15 * size / processes
    assert sum(found) > 0.95 * size
    assert {p.name for p in tmp_path.iterdir()} <= {'source', '1', '2'}
    for path in source.iterdir():
      assert path.read_bytes() == (out / path.name).read_bytes()
