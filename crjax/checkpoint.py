"""Orbax checkpoints of a run: asynchronous, atomic, complete enough to resume.

A checkpoint holds the whole state (parameters, optimizer, step, sampling key)
and the position of the data iterator. Orbax writes into a temporary directory
and renames it, so a killed process leaves either a whole checkpoint or none.
"""

import json
import pathlib

import jax
import numpy as np
import orbax.checkpoint as ocp

from crjax import files, masters


def open_manager(workdir, *, keep: int | None) -> ocp.CheckpointManager:
  """Manages `workdir`/checkpoints and keeps the newest `keep` (None: all)."""
  options = ocp.CheckpointManagerOptions(max_to_keep=keep)
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
  return ocp.CheckpointManager(path, options=options)


def save(manager, step: int, state, position: dict):
  """Starts writing; returns once the device arrays have been copied.

  `position` is the data iterator's `get_state()`, plain JSON. A step that is
  already there is left alone.
  """
  if step in manager.all_steps():
    return
  args = ocp.args.Composite(
    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position)
  )
  manager.save(step, args=args)


def restore(manager, abstract_state):
  """(state, position) of the newest checkpoint, or None if there is none.

  `abstract_state` gives shapes, dtypes and shardings. Raises ValueError if the
  stored arrays have another shape: the config changed under the run.
  """
  step = manager.latest_step()
  if step is None:
    return None
  args = ocp.args.Composite(
    state=ocp.args.StandardRestore(abstract_state),
    data=ocp.args.JsonRestore(),
  )
  try:
    found = manager.restore(step, args=args)
  except (ValueError, KeyError) as error:
    raise ValueError(
      f'{manager.directory}/{step} does not fit this config: {error}\n'
      'Resume with the config the run started with (see config.json there) '
      'or choose another --config.workdir'
    ) from error
  return found['state'], found['data']


def restore_params(workdir, step: int | None = None, shardings=None):
  """(step, trained parameters) of a run directory; the newest by default.

  Their mean where the run kept one, the halves of split masters joined.
  Numpy float32, or, where `shardings` are given (a tree like the parameters),
  arrays on their devices. Raises FileNotFoundError naming the steps there are.
  """
  path = pathlib.Path(workdir).absolute() / 'checkpoints'
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


def write_json(path, value):
  """Writes atomically; readers see the old file or the new one."""
  files.write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')
