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
from crjax.evals import pairs

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
ITEMS = 'items.parquet'
NOTE = 300  # characters


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
  """Everything but the completions, as JSON: what the page shows at once.

  `notes` are the files that could not be read.
  """
  named = names([path for some in found for path in some])
  notes = []
  told = lambda make, paths: [make(path, named[path], notes) for path in paths]
  return {
    'trainings': told(training, found.trainings),
    'evaluations': told(evaluation, found.evaluations),
    'datasets': told(dataset, found.datasets),
    'pairs': comparisons(found.evaluations, named, notes),
    'notes': notes,
  }


def training(path, name, notes) -> dict:
  """Curves, settings and speed of a run."""
  lines = json_lines(path / 'metrics.jsonl', notes)
  config = load(path / 'config.json', notes)
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
    'sandbox': load(path / 'sandbox.json', notes).get('level'),
    **load(path / 'command.json', notes),
  }


def evaluation(path, name, notes) -> dict:
  report = load(path / 'report.json', notes)
  if report and not isinstance(report.get('kinds'), dict):
    notes.append(f'{path / "report.json"} is no report of crjax.evaluate')
    report = {}
  return {**report, 'name': name}


def dataset(path, name, notes) -> dict:
  """The manifest: its numbers, the funnel, the best constant answers."""
  manifest = load(path / 'manifest.json', notes)
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


def comparisons(paths, named, notes) -> list:
  """Paired tests of all evaluations of the same questions, greedy answers."""
  right = {}
  for path in paths:
    if (path / ITEMS).exists():
      try:
        right[path] = pairs.read(path)
      except (OSError, ValueError):
        continue  # `rows.read` tells it.
      except KeyError as error:
        notes.append(f'{path / ITEMS} lacks the column {error}')
  found, done = [], list(right)
  for i, a in enumerate(done):
    for b in done[i + 1 :]:
      both = pairs.compare(right[a], right[b])
      found += [pair | {'a': named[a], 'b': named[b]} for pair in both]
  return found[:PAIRS]


def thinned(points) -> list:
  """At most POINTS points: [[step, mean of its neighbours]]."""
  size = -(-len(points) // POINTS)
  groups = [points[i : i + size] for i in range(0, len(points), size)]
  return [[g[-1][0], sum(y for _, y in g) / len(g)] for g in groups]


def median(values):
  return float(np.median(values)) if values else None


def load(path, notes) -> dict:
  """A JSON file, {} if there is none; a damaged one is {} and a note."""
  if not path.exists():
    return {}
  try:
    found = json.loads(path.read_text('utf-8'))
  except (OSError, ValueError) as error:
    notes.append(f'{path} is damaged: {error}'[:NOTE])
    return {}
  if not isinstance(found, dict):
    notes.append(f'{path} is damaged: no JSON object')
    return {}
  return found


def json_lines(path, notes) -> list:
  """The whole lines of metrics.jsonl; those that are damaged are a note."""
  lines, odd = [], []
  for number, line in enumerate(path.read_text('utf-8').split('\n')[:-1], 1):
    try:
      row = json.loads(line)
      lines.append({'step': int(row['step'])} | numbers(row))
    except (ValueError, LookupError, TypeError, AttributeError):
      odd.append(number)
  if odd:
    notes.append(f'{path}: {len(odd)} damaged lines, the first is {odd[0]}')
  return lines


def numbers(row) -> dict:
  return {
    k: v
    for k, v in row.items()
    if isinstance(v, int | float) and not isinstance(v, bool)
  }
