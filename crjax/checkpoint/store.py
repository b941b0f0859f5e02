"""Saves a run's state behind its back, and finds the newest that is whole."""

import errno
import importlib.util
import json
import math
import shutil
import threading

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from crjax import files, masters
from crjax.checkpoint import manifest
from crjax.sharding import all_processes, wait

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SEEN_AS_FULL = ('No space left', 'Disk quota', 'File too large')


class Unwritten(OSError):
  """A checkpoint could not be written; names the directory and the fix."""


class Manager(ocp.CheckpointManager):
  """Orbax's, which also adds manifests and says what to do on errors."""

  _following = _failed = None

  def follow(self, step: int):
    """Waits elsewhere for a step that is being written; adds its manifest."""

    def work():
      path = self.directory / str(step)
      try:
        super(Manager, self).wait_until_finished()
      except Exception as error:  # Whatever ended the thread that writes.
        self._failed = error
        return
      try:
        if jax.process_index() == 0:
          manifest.seal(path)
      except OSError as error:
        print(f'{path} has no manifest: {error}', flush=True)

    self._following = threading.Thread(target=work, name='follow')
    self._following.start()

  def check(self):
    """Raises Unwritten if a save has failed meanwhile; waits for none."""
    if self._failed:
      raise failure(self.directory, self._failed) from self._failed

  def wait_until_finished(self):
    """Waits for what is being written; `save` and `close` do so first.

    Raises Unwritten if that failed.
    """
    try:
      super().wait_until_finished()
    except Exception as error:  # As above.
      raise failure(self.directory, error) from error
    if self._following:
      self._following.join()


def open_manager(workdir, *, keep: int | None, best: str = '') -> Manager:
  """Manages `workdir`/checkpoints and keeps the newest `keep` (None: all).

  `best` names one of the numbers that `save` gets: the checkpoint where it was
  highest is kept beside the newest; with a minus before it, where lowest.
  """
  policy, score = policies.LatestN(keep), None
  if best:
    score = lambda numbers: _score(numbers, best)
    one = policies.BestN(
      get_metric_fn=score, n=1, keep_checkpoints_without_metrics=False
    )
    policy = policies.AnyPreservationPolicy([policy, one])
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy, best_fn=score, cleanup_tmp_directories=True
  )
  return Manager(directory(workdir), options=options)


def directory(workdir) -> epath.Path:
  """Where the checkpoints of a run are.

  Raises ValueError if it is a bucket, and what Orbax asks it with is missing.
  """
  path = epath.Path(workdir)
  if files.remote(workdir) and not _can_ask_buckets():
    raise ValueError(
      f'{workdir}: Orbax needs google-cloud-storage for a bucket. Install it: '
      'pip install google-cloud-storage'
    )
  return (path if files.remote(workdir) else path.absolute()) / 'checkpoints'


def _can_ask_buckets() -> bool:
  try:  # Its parents need not be there either.
    return importlib.util.find_spec('google.cloud.storage') is not None
  except ModuleNotFoundError:
    return False


def save(manager, step: int, state, position: dict, numbers=None):
  """Starts writing; returns once the device arrays have been copied.

  Waits for the save before this one. A step that is already there is left
  alone.

  Args:
    position: the data iterator's `get_state()`, plain JSON.
    numbers: {name: float}, the same on all processes, for the manager's `best`.

  Raises:
    Unwritten: this save failed, or the one before it.
  """
  if step in manager.all_steps():
    return
  args = ocp.args.Composite(
    state=ocp.args.StandardSave(state), data=ocp.args.JsonSave(position)
  )
  manager.wait_until_finished()
  try:
    manager.save(step, args=args, metrics=numbers)
  except OSError as error:
    raise failure(manager.directory, error) from error
  manager.follow(step)


def failure(path, error) -> Unwritten:
  """What to raise where a checkpoint could not be written."""
  text = str(error).strip() or type(error).__name__
  full = getattr(error, 'errno', None) in FULL
  if full or any(words in text for words in SEEN_AS_FULL):
    free = ''
    if not files.remote(path):
      free = f', {shutil.disk_usage(path).free / 1e9:.3g} GB are free'
    text = (
      f'the disk or its quota is full{free}. Make room, or set a lower '
      '--config.keep; `python -m crjax.checkpoint ls` shows what they take'
    )
  return Unwritten(
    f'{path}: a checkpoint cannot be written: {text}. Those that are there are '
    'whole: the same command continues from the newest'
  )


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


def _score(numbers, best: str) -> float:
  """What `best` says of a checkpoint's numbers; NaN is worse than any."""
  value = numbers[best.removeprefix('-')]
  value = -value if best.startswith('-') else value
  return -math.inf if math.isnan(value) else value


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


def write_json(path, value):
  """Writes atomically; readers see the old file or the new one."""
  files.write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')
