"""A run that has diverged: how it is seen, and the batch that is kept of it.

Numbers of a step are the same on every process, so all of them stop at the same
one. The checkpoint that stays is from before it: the numbers of a step are read
before its state is saved, and no state is saved that is not finite.
`python -m crjax.replay` runs the batch again.
"""

import collections
import io
import math
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from crjax import cluster, files
from crjax.sharding import gather

STEPS = 20  # So many in a row must be bad, and so many made the best mean.
FIRST = ('loss', 'grad_norm')  # What must be finite.


def make_check(workdir, *, by_loss: bool):
  """check(step, numbers, batch): ends the run, and keeps the batch, if need be.

  A number of FIRST that is not finite ends it. So does, `by_loss`, a loss that
  was for STEPS steps above twice the lowest mean of STEPS steps by more than a
  nat: a policy loss has no such scale.
  """
  last, best = collections.deque(maxlen=STEPS), [math.inf]

  def check(step: int, numbers, batch):
    strange = [name for name in FIRST if not math.isfinite(numbers[name])]
    last.append(float(numbers['loss']))
    why = f'{strange} not finite' if strange else ''
    if by_loss and not why and len(last) == STEPS:
      best[0] = min(best[0], sum(last) / STEPS)
      if min(last) > 2 * best[0] + 1:
        why = f'a loss above {min(last):.3g}, after a mean of {best[0]:.3g}'
    if why:
      if jax.process_index() == 0:
        keep(workdir, step, why, batch)
      stop(workdir, step, why)

  return check


def check_state(workdir, step: int, params):
  """Ends the run if the parameters that are to be saved are not finite."""
  if not bool(gather(finite(params))):
    stop(workdir, step, 'parameters that are not finite and are not saved')


@jax.jit
def finite(params):
  ok = [jnp.isfinite(x).all() for x in jax.tree.leaves(params)]
  return jnp.stack(ok).all()


def stop(workdir, step: int, why: str):
  print(
    f'diverged: step {step} has {why}.\n'
    f'Look at it with `python -m crjax.replay {workdir}`. The same command '
    'continues from the last checkpoint, and meets the same batch: lower '
    'config.lr or config.max_norm, or take a bad row out of the data, in '
    'another config.workdir that starts from an export of this one',
    file=sys.stderr,
    flush=True,
  )
  raise SystemExit(cluster.DIVERGED)


def keep(workdir, step: int, why: str, batch):
  """Writes the NamedTuple of host arrays that step `step` was given."""
  folder = f'{workdir}/diverged'
  if not files.remote(folder):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
  with files.writer(f'{folder}/step_{step:08d}.npz') as file:
    np.savez(file, step=step, why=why, **batch._asdict())


def kept(workdir, step: int | None, form):
  """(step, why, batch of the NamedTuple `form`) of a run; the newest first.

  Raises FileNotFoundError naming the steps that there are.
  """
  folder = f'{workdir}/diverged'
  names = [x for x in files.listdir(folder) if x.endswith('.npz')]
  there = {int(x[len('step_') : -len('.npz')]): x for x in names}
  step = max(there, default=None) if step is None else step
  if step not in there:
    raise FileNotFoundError(
      f'{folder} keeps no batch of step {step}; found {sorted(there)}'
    )
  data = files.read_bytes(f'{folder}/{there[step]}')
  with np.load(io.BytesIO(data)) as found:
    fields = {name: found[name] for name in form._fields}
    return step, str(found['why']), form(**fields)
