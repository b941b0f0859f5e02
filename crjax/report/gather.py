"""What there is to tell of directories: runs, evaluations, datasets.

A training run has metrics.jsonl, an evaluation report.json, a dataset
manifest.json; all of them are looked for in a directory and below it. A file
that is just being written may end in half a line, which is left out.
"""

import atexit
import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
from typing import NamedTuple

import numpy as np

from crjax import files
from crjax.evals import stats

DEEPEST = 5  # directories below the one that is named
POINTS = 500  # of a curve; more are averaged
SKIPPED = {
  'checkpoints',
  'damaged',
  'export',
  'source',
  'stages',
  'logs',
  'samples',
}
PAIRS = 40  # comparisons of two models


class Found(NamedTuple):
  """Directories by what they hold, in the order of their names."""

  trainings: list
  evaluations: list
  datasets: list


def find(roots) -> Found:
  """Raises FileNotFoundError where there is nothing to report on."""
  found = Found([], [], [])
  marks = zip(
    ('metrics.jsonl', 'report.json', 'manifest.json'), found, strict=True
  )
  marks = list(marks)
  for root in map(local, roots):
    if not root.is_dir():
      raise FileNotFoundError(f'{root} is no directory')
    for folder, folders, inside in os.walk(root):
      depth = len(pathlib.Path(folder).relative_to(root).parts)
      keep = [x for x in sorted(folders) if x not in SKIPPED]
      folders[:] = keep if depth < DEEPEST else []
      for mark, some in marks:
        path = pathlib.Path(folder)
        if mark in inside and path not in some:
          some.append(path)
  if not any(found):
    raise FileNotFoundError(
      f'{", ".join(map(str, roots))}: no metrics.jsonl of a training run, no '
      'report.json of an evaluation and no manifest.json of a dataset in it'
    )
  return found


def local(root) -> pathlib.Path:
  """A directory, or a copy of a bucket's with all but what is skipped."""
  if not files.remote(root):
    return pathlib.Path(root)
  root, skipped = os.fspath(root).rstrip('/'), SKIPPED - {'samples'}
  path = _copy_of(root)
  there = files.walk(path)
  for name, size in files.walk(root).items():
    if there.get(name) != size and not skipped & set(name.split('/')):
      files.copy(f'{root}/{name}', path / name)
  return path


@functools.cache
def _copy_of(root) -> pathlib.Path:
  """The same directory whenever it is asked for; it ends with the process."""
  folder = tempfile.mkdtemp(prefix='crjax-')
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  path = pathlib.Path(folder) / root.rpartition('/')[2]
  path.mkdir()
  return path


def names(given) -> dict:
  """{path: the shortest name that tells it from the others}."""
  parts = [path.absolute().parts for path in given]
  shared = parts[0][:-2]
  if len(parts) > 1:
    shared = pathlib.Path(os.path.commonpath(given)).absolute().parts
  return {
    path: '/'.join(p[len(shared) :]) or p[-1]
    for path, p in zip(given, parts, strict=True)
  }


def read(found: Found) -> dict:
  """Everything but the completions, as JSON: what the page shows at once."""
  named = names([path for some in found for path in some])
  evaluations = [evaluation(p, named[p]) for p in found.evaluations]
  return {
    'trainings': [training(p, named[p]) for p in found.trainings],
    'evaluations': evaluations,
    'datasets': [dataset(p, named[p]) for p in found.datasets],
    'pairs': comparisons(found.evaluations, named),
  }


def training(path, name) -> dict:
  """Curves, settings and speed of a run."""
  lines = json_lines(path / 'metrics.jsonl')
  config = load(path / 'config.json')
  series = {}
  for key in sorted({key for line in lines for key in line} - {'step', 'time'}):
    points = [(x['step'], x[key]) for x in lines if x.get(key) is not None]
    if len(points) > 1 and all(math.isfinite(y) for _, y in points):
      series[key] = thinned(points)
  middle = lambda key: median([x[key] for x in lines if x.get(key) is not None])
  task = config.get('task', 'run')
  return {
    'name': name,
    'task': task,
    'steps': lines[-1]['step'] if lines else 0,
    'total': config.get('steps'),
    'series': series,
    'seconds': sum(x.get('time/step_s') or 0 for x in lines),
    'tokens': sum(x.get('tokens') or 0 for x in lines),
    'tokens_per_s': middle('perf/tokens_per_s'),
    'step_s': middle('time/step_s'),
    'memory': {
      k: max(x.get(k) or 0 for x in lines) for k in series if k.endswith('_gb')
    },
    'config': config,
    'sandbox': load(path / 'sandbox.json').get('level'),
    **load(path / 'command.json'),
  }


def evaluation(path, name) -> dict:
  report = load(path / 'report.json')
  return {'name': name, **report}


def dataset(path, name) -> dict:
  """The manifest: its numbers, the funnel, the best constant answers."""
  manifest = load(path / 'manifest.json')
  summary = manifest.get('summary') or manifest
  return {
    'name': name,
    'manifest': manifest,
    'funnel': funnel(summary, manifest.get('rows')),
    'constant': summary.get('constant_baseline') or {},
    'versions': manifest.get('versions') or {},
  }


def funnel(summary, rows) -> list:
  """[(what, how many)]: candidates, what was dropped and why, what is kept."""
  found = []
  for field, word in (('dropped_programs', 'dropped'), ('inputs', 'inputs')):
    counts = summary.get(field, {}).items()
    counts = sorted(counts, key=lambda pair: -pair[1])
    found += [(f'{word}: {name}', count) for name, count in counts]
  if summary.get('candidates'):
    found.insert(0, ('candidates', summary['candidates']))
  kept = rows or {}
  return found + [(f'kept: {name}', count) for name, count in kept.items()]


def comparisons(paths, named) -> list:
  """Paired tests of all evaluations of the same data, greedy answers."""
  import datasets

  datasets.disable_progress_bars()
  right = {}
  for path in paths:
    items = path / 'items.parquet'
    if items.exists():
      columns = ['id', 'kind', 'mode', 'right', 'verdict']
      table = datasets.Dataset.from_parquet(
        str(items), columns=columns, keep_in_memory=True
      ).to_dict()
      rows = zip(*(table[c] for c in columns), strict=True)
      right[path] = {
        (kind, i): ok
        for i, kind, mode, ok, verdict in rows
        if mode == 'greedy' and verdict != 'infra'
      }
  found, done = [], list(right)
  for i, a in enumerate(done):
    for b in done[i + 1 :]:
      for kind in sorted({kind for kind, _ in right[a]}):
        found += pair(kind, named[a], right[a], named[b], right[b])
  return found[:PAIRS]


def pair(kind, name_a, a, name_b, b) -> list:
  """[the comparison], or [] where the two have no items in common."""
  shared = sorted(key for key in a if key in b and key[0] == kind)
  if not shared:
    return []
  x, y = np.array([a[k] for k in shared]), np.array([b[k] for k in shared])
  exact, boot = stats.mcnemar(x, y), stats.paired(x, y, seed=0)
  return [
    {
      'kind': kind,
      'a': name_a,
      'b': name_b,
      'n': len(shared),
      'difference': boot['difference'],
      'ci95': boot['ci95'],
      'only_a': exact['only_a'],
      'only_b': exact['only_b'],
      'p': exact['p'],
    }
  ]


def thinned(points) -> list:
  """At most POINTS points: [[step, mean of its neighbours]]."""
  size = -(-len(points) // POINTS)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [[g[-1][0], sum(y for _, y in g) / len(g)] for g in groups]


def median(values):
  return float(np.median(values)) if values else None


def load(path) -> dict:
  """A JSON file, {} if there is none; ValueError names a damaged one."""
  if not path.exists():
    return {}
  try:
    return json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def json_lines(path) -> list:
  """The whole lines of a JSONL file."""
  text = path.read_text('utf-8')
  return [json.loads(line) for line in text.split('\n')[:-1] if line]
