"""Eight host devices for every test, and what several tests share."""

import os
import pathlib
import subprocess
import sys

os.environ.setdefault('JAX_PLATFORMS', 'cpu')  # Set: for accelerator tests.
os.environ['XLA_FLAGS'] = ' '.join(
  [
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
  ]
).strip()
os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'
os.environ['HF_HUB_OFFLINE'] = '1'  # No test reads what it does not bring.
# Test processes share the cores; torch and tokenizers would each take all.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('MKL_NUM_THREADS', '1')
os.environ.setdefault('TOKENIZERS_PARALLELISM', 'false')

import pytest  # After the devices are set.

ROOT = pathlib.Path(__file__).parents[1]


def load(path, mesh=(1, 1, 1)):
  """(Config, numpy parameters) of a checkpoint, by way of a mesh."""
  import jax

  from crjax import hf
  from crjax.sharding import gather, make_mesh

  devices = jax.devices()[: max(1, mesh[0] * mesh[1] * mesh[2])]
  found = hf.inspect(path)
  return found.cfg, gather(hf.load(found, make_mesh(mesh, devices)))


@pytest.fixture(scope='session')
def assets() -> pathlib.Path:
  """Real tokenizers, configs, weights and benchmark files; not in the repo."""
  path = pathlib.Path(
    os.environ.get('CRJAX_ASSETS', ROOT.parent / 'shared' / 'assets')
  )
  if not path.is_dir():
    pytest.skip(f'no assets at {path}; set CRJAX_ASSETS to their directory')
  return path


@pytest.fixture(scope='session')
def smoke_data(tmp_path_factory) -> pathlib.Path:
  """A small dataset, built as a user builds it."""
  out = tmp_path_factory.mktemp('data') / 'small'
  sizes = {'sft_train': 120, 'rl_train': 40, 'test': 20}
  subprocess.run(
    [
      sys.executable,
      '-m',
      'data_pipeline.build',
      f'--config={ROOT / "configs" / "data_smoke.py"}',
      f'--config.out={out}',
      '--config.candidates=150',
      '--config.chunk=50',
      '--config.largest_share=0.2',
      *(f'--config.splits.{k}={v}' for k, v in sizes.items()),
    ],
    cwd=ROOT,
    check=True,
  )
  return out
