"""Finds the newest checkpoint that is whole, and reads it onto any mesh."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from crjax import files, masters
from crjax.checkpoint import manifest
from crjax.checkpoint.store import directory
from crjax.sharding import all_processes, wait


def restore(manager, abstract_state):
  """(state, position) of the newest whole checkpoint, or None if there is none.

  Damaged ones that are newer are moved to `damaged` beside `checkpoints`, and
  named on stdout; all processes of a run come to the same decision.

  Args:
    manager: see `open_manager`.
    abstract_state: shapes, dtypes and shardings, of whatever mesh.

  Raises:
    ValueError: the stored arrays have another shape, as the config changed
      under the run; or no checkpoint is whole, and nothing has been moved.
  """
  damaged = {}
  for step in sorted(manager.all_steps(), reverse=True):
    path = manager.directory / str(step)
    found, wrong = None, _damage(path)
    if not wrong:
      found, wrong = _read(path, abstract_state)
    if not wrong:
      _set_aside(manager, damaged, step)
      return found
    damaged[step] = wrong
  if damaged:
    raise ValueError(
      f'no checkpoint in {manager.directory} is whole:\n{_lines(damaged)}\n'
      'Bring one from elsewhere (python -m crjax.checkpoint copy FROM TO), or '
      'remove that directory to train from the start'
    )
  return None


def _damage(path) -> str:
  """What differs from the manifest; each process reads its share of files."""
  share = (jax.process_index(), jax.process_count())
  return agree(manifest.told(manifest.damage(path, share=share)))


def _read(path, abstract_state):
  """((state, position), '') of a checkpoint, or (None, how it is damaged)."""
  found, error = None, None
  try:
    # The handlers alone wait for no other process: one of them may fail.
    args = ocp.args.StandardRestore(abstract_state)
    state = ocp.StandardCheckpointHandler().restore(path / 'state', args=args)
    position = ocp.JsonCheckpointHandler().restore(path / 'data')
    found = state, position
  except (ValueError, KeyError, OSError) as caught:
    error = caught
  wrong = ''
  if error is not None and not manifest.hashed(path):
    wrong = manifest.told(manifest.unreadable(path))
  if wrong := agree(wrong):
    return None, wrong
  if isinstance(error, OSError):
    raise error
  if error is not None:
    raise ValueError(
      f'{path} does not fit this config: {error}\n'
      'Resume with the config the run started with (see config.json there) '
      'or choose another --config.workdir'
    ) from error
  return found, ''


def agree(text: str) -> str:
  """The text of the first process that has one, for all; '' if none has."""
  return next(filter(None, all_processes([text])), '')


def _set_aside(manager, damaged, step):
  """Moves damaged checkpoints out of the way of those to come."""
  if not damaged:
    return
  aside = manager.directory.parent / 'damaged'
  if jax.process_index() == 0:
    for name in damaged:
      files.move(manager.directory / str(name), aside / str(name))
  wait('set aside')
  manager.reload()
  lost = max(damaged) - step
  print(
    f'Damaged checkpoints, kept in {aside}:\n{_lines(damaged)}\nGoing on from '
    f'step {step} instead of {max(damaged)}: {lost} steps are trained again',
    flush=True,
  )


def _lines(damaged) -> str:
  return '\n'.join(f'  step {k}: {damaged[k]}' for k in sorted(damaged))


def restore_params(workdir, step: int | None = None, shardings=None):
  """(step, trained parameters) of a run directory; the newest by default.

  Their mean where the run kept one, the halves of split masters joined.
  Numpy float32, or, where `shardings` are given (a tree like the parameters),
  arrays on their devices.

  Raises:
    FileNotFoundError: there is no such checkpoint; names those there are.
    ValueError: files of it lack or have another size than when saved.
  """
  path = directory(workdir)
  if not path.is_dir():
    raise FileNotFoundError(
      f'{path} does not exist: --workdir must be the directory of a run of '
      '`python -m crjax.train`'
    )
  with ocp.CheckpointManager(path) as manager:
    steps = sorted(manager.all_steps())
    step = manager.latest_step() if step is None else step
    if step not in steps:
      raise FileNotFoundError(f'no checkpoint {step} in {path}; found {steps}')
  if wrong := manifest.damage(path / str(step), hashes=False):
    raise ValueError(
      f'checkpoint {step} in {path} is damaged: {manifest.told(wrong)}\nTake '
      f'another --step of {steps}, once `python -m crjax.checkpoint verify` '
      'calls it whole'
    )
  with ocp.PyTreeCheckpointer() as reader:
    item = path / str(step) / 'state'
    state = reader.metadata(item).item_metadata.tree
    name = 'ema' if 'ema' in state else 'params'
    whole = _restore(reader, item, name, state[name], shardings)
    if name == 'params' and 'low' in state:
      low = _restore(reader, item, 'low', state['low'], shardings)
      whole = jax.jit(masters.join)(whole, low)
      whole = jax.device_get(whole) if shardings is None else whole
    return step, whole


def _restore(reader, item, name, tree, shardings):
  """One part of a state; `shardings` may be of more leaves than it has."""
  if shardings is None:
    how = jax.tree.map(lambda _: ocp.RestoreArgs(np.ndarray), tree)
  else:
    of = dict(jax.tree.leaves_with_path(shardings))
    how = jax.tree.map_with_path(
      lambda path, _: ocp.ArrayRestoreArgs(sharding=of[path]), tree
    )
  args = ocp.args.PyTreeRestore(
    {name: tree}, restore_args={name: how}, partial_restore=True
  )
  return reader.restore(item, args)[name]
