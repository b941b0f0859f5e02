"""Saves a run's state behind its back."""

import errno
import importlib.util
import json
import math
import shutil
import threading

from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from crjax import files
from crjax.checkpoint import manifest

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
        print(f'{path} has no checksums: {error}', flush=True)

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
    preservation_policy=policy,
    best_fn=score,
    cleanup_tmp_directories=True,
    # Where one cannot be made, Orbax's threads would wait 20 minutes for it.
    async_options=ocp.options.AsyncOptions(
      create_directories_asynchronously=False
    ),
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
  except Exception as error:
    if isinstance(error, OSError) or _of_tensorflow(error):
      raise failure(manager.directory, error) from error
    raise
  manager.follow(step)


def _of_tensorflow(error) -> bool:
  """Whether it comes from a bucket: such errors are no OSErrors."""
  return type(error).__module__.startswith('tensorflow')


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
    f'{path}: a checkpoint cannot be written: {text.splitlines()[0]}. Those '
    'that are there are whole: the same command continues from the newest'
  )


def _score(numbers, best: str) -> float:
  """What `best` says of a checkpoint's numbers; NaN is worse than any."""
  value = numbers[best.removeprefix('-')]
  value = -value if best.startswith('-') else value
  return -math.inf if math.isnan(value) else value


def write_json(path, value):
  """Writes atomically; readers see the old file or the new one."""
  files.write_text(path, json.dumps(value, indent=2, sort_keys=True) + '\n')
