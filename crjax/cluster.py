"""The processes of one job: how they find each other, and how they end.

`jax.distributed` does the work; it knows the machines of a TPU pod by itself,
and those of other launchers by three environment variables.
"""

import os

import jax

NAMES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


def join():
  """Joins the other processes of this job, before JAX sees any device.

  launch/ssh.sh and launch/slurm.sbatch set NAMES; where none is set, JAX looks
  for a TPU pod, Slurm or Open MPI itself.

  Raises:
    ValueError: some of NAMES are set and others not.
  """
  found = {name: os.environ.get(name) for name in NAMES}
  if not any(found.values()):
    jax.distributed.initialize()
    return
  if missing := [name for name, value in found.items() if not value]:
    raise ValueError(f'{missing} must be set too: {NAMES} belong together')
  address, count, index = found.values()
  jax.distributed.initialize(address, int(count), int(index))
