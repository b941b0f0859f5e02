"""The checkpoints of a run, for people.

  python -m crjax.checkpoint ls runs/grpo_7b
  python -m crjax.checkpoint verify runs/grpo_7b --step=100
  python -m crjax.checkpoint copy runs/grpo_7b gs://bucket/grpo_7b

`ls` looks at the sizes of files; `verify` reads every file and every array, and
ends with status 1 if any is damaged. `copy` takes the newest checkpoint (or
--step) and what an export or a resumed run needs beside it; it appears whole or
not at all, and the same command goes on where it was stopped. Either directory
may be in a bucket.
"""

import argparse
import datetime
import json
import logging
import sys

from etils import epath
import rich.box
import rich.console
import rich.table

from crjax import files
from crjax.checkpoint import manifest, store

COMMIT = 'commit_success.txt'  # What Orbax takes for the end of a write.
SAME = ('task', 'model', 'data', 'seed')  # of a config, for it to be one run
COLUMNS = ('step', 'date', 'GB', 'numbers', 'integrity')


def steps_of(workdir) -> list[int]:
  """The steps of whole checkpoints; Orbax names what it writes otherwise."""
  path = store.directory(workdir)
  names = files.listdir(path)
  found = sorted(int(name) for name in map(_bare, names) if name.isdigit())
  kept = [x for x in found if finished(path / str(x))]
  if not kept:
    raise FileNotFoundError(f'{path} holds no checkpoints: {names}')
  return kept


def finished(path) -> bool:
  """Whether a checkpoint is whole; without a rename, its last file says so."""
  return not files.remote(path) or (path / COMMIT).exists()


def choose(workdir, step) -> int:
  """`step`, or the newest where it is None; FileNotFoundError without it."""
  steps = steps_of(workdir)
  if step is not None and step not in steps:
    raise FileNotFoundError(
      f'no checkpoint {step} in {store.directory(workdir)}; found {steps}'
    )
  return steps[-1] if step is None else step


def ls(workdir) -> rich.table.Table:
  """One line a checkpoint."""
  table = rich.table.Table(*COLUMNS, box=rich.box.SIMPLE, title=str(workdir))
  for step in steps_of(workdir):
    path = store.directory(workdir) / str(step)
    table.add_row(*(str(x) for x in (step, *describe(path))))
  return table


def describe(path):
  """(date, GB, the numbers it was kept by, state of integrity)."""
  written = json.loads(files.read_bytes(path / '_CHECKPOINT_METADATA'))
  seconds = written['commit_timestamp_nsecs'] * 1e-9
  date = datetime.datetime.fromtimestamp(seconds).isoformat(' ', 'minutes')
  size = sum(files.walk(path).values()) / 1e9
  numbers = path / 'metrics' / 'metrics'
  found = json.loads(numbers.read_text()) if numbers.exists() else {}
  text = ' '.join(f'{k} {v:.4g}' for k, v in found.items())
  if manifest.read(path) is None:
    state = 'no checksums: try verify'
  elif wrong := manifest.damage(path, hashes=False):
    state = f'DAMAGED: {manifest.told(wrong)}'
  else:
    state = 'sizes are right'
  return date, f'{size:.3f}', text, state


def verify(workdir, step=None) -> dict[int, list[str]]:
  """{step: what is damaged} of all checkpoints, or of one; [] for nothing."""
  chosen = steps_of(workdir) if step is None else [choose(workdir, step)]
  found = {}
  for one in chosen:
    path = store.directory(workdir) / str(one)
    found[one] = manifest.damage(path) + manifest.unreadable(path)
    by = 'its hashes' if manifest.hashed(path) else 'no hashes to compare with'
    print(
      f'step {one}: ' + '; '.join(found[one] or [f'whole, by arrays and {by}'])
    )
  return found


def copy(workdir, to, step=None) -> int:
  """Copies a checkpoint and what belongs to it; returns its step.

  Raises:
    ValueError: the source is damaged, or `to` holds another run.
  """
  step = choose(workdir, step)
  source = store.directory(workdir) / str(step)
  target = store.directory(to) / str(step)
  if wrong := manifest.damage(source):
    raise ValueError(f'{source} is damaged: {manifest.told(wrong)}')
  _copy_beside(epath.Path(workdir), epath.Path(to))
  if files.exists(target) and finished(target):
    if wrong := manifest.damage(target):
      raise ValueError(f'{target} is there, damaged: {manifest.told(wrong)}')
    return step
  # No name that Orbax reads as a step, or as one of its own to clean up.
  draft = target
  if not files.remote(target):
    draft = target.with_name(f'copy_of_{step}')
  _copy_tree(source, draft)
  but = (COMMIT,) if files.remote(target) else ()
  if wrong := manifest.damage(draft, but=but):
    raise ValueError(f'{draft} differs: {manifest.told(wrong)}; remove it')
  if files.remote(target):
    files.copy(source / COMMIT, target / COMMIT)
  else:
    draft.rename(target)
  return step


def _copy_tree(source, to):
  """Copies what is not there in its size yet; the commit's file is not."""
  there = files.walk(to) if files.exists(to) else {}
  for name, size in sorted(files.walk(source).items()):
    last = files.remote(to) and name == COMMIT
    if there.get(name) != size and not last:
      files.copy(source / name, to / name)


def _copy_beside(run, to):
  """Copies config.json and `source`; what is there must be of the same run."""
  names = [f'source/{name}' for name in files.walk(run / 'source')]
  for name in ('config.json', *names):
    here, there = files.read_bytes(run / name), to / name
    if not files.exists(there):
      files.write_text(there, here.decode())
    elif _meant(name, here) != _meant(name, files.read_bytes(there)):
      raise ValueError(
        f'{there} differs from {run / name}: it is of another run. Choose '
        'another directory'
      )


def _meant(name, data):
  """Of a config what makes it one run: a resumed one may change the rest."""
  if name != 'config.json':
    return data
  found = json.loads(data)
  return [found.get(k) for k in SAME]


def _bare(name) -> str:
  return name.rstrip('/')  # TensorFlow lists a bucket's directories with it.


def main():
  parser = argparse.ArgumentParser(prog='python -m crjax.checkpoint')
  verbs = parser.add_subparsers(dest='verb', required=True)
  for verb in ('ls', 'verify', 'copy'):
    one = verbs.add_parser(verb)
    one.add_argument('workdir', help='of a run of crjax.train')
    if verb == 'copy':
      one.add_argument('to', help='the other directory')
    if verb != 'ls':
      one.add_argument('--step', type=int)
  args = parser.parse_args()
  logging.getLogger('absl').setLevel(logging.ERROR)  # Orbax is talkative.
  try:
    if args.verb == 'ls':
      rich.console.Console().print(ls(args.workdir))
    elif args.verb == 'copy':
      step = copy(args.workdir, args.to, args.step)
      print(f'step {step} of {args.workdir} is in {args.to}, verified')
    elif any(verify(args.workdir, args.step).values()):
      sys.exit(1)
  except (OSError, ValueError) as error:
    sys.exit(f'crjax.checkpoint: {error}')


if __name__ == '__main__':
  main()
