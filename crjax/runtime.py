"""What JAX and XLA are told before they start: in one place, with the reasons.

A variable that is set in the environment stays as it is. Of the many XLA flags
that circulate none is here: a flag belongs here with the measurement that it
earns its place by, and unknown ones end the process.
"""

import os
import pathlib

import jax

ENVIRONMENT = {
  # By default a quarter of a GPU is kept from JAX; nothing else runs on it.
  'XLA_PYTHON_CLIENT_MEM_FRACTION': '0.95',
}
CACHE = '~/.cache/crjax/xla'


def prepare():
  """Call before the first use of a device."""
  for name, value in ENVIRONMENT.items():
    os.environ.setdefault(name, value)
  if jax.config.jax_compilation_cache_dir is None:
    # A 7B step compiles for minutes, at every start and resume. The directory
    # also keeps what XLA's autotuner found on GPUs. A host of CPUs compiles
    # fast, and its programs are of one kind of CPU: not kept.
    jax.config.update('jax_compilation_cache_dir', _cache())


def _cache() -> str | None:
  if jax.config.jax_platforms == 'cpu' or not _accelerated():
    return None
  return str(pathlib.Path(CACHE).expanduser())


def _accelerated() -> bool:
  """Whether there is a TPU or GPU, without starting JAX's backends."""
  nodes = ('/dev/accel0', '/dev/vfio/0', '/dev/nvidiactl')
  return any(map(os.path.exists, nodes))
