"""Completions, packed so that a page with 100,000 of them opens at once.

What is filtered by is in columns, which the page holds in memory; what is read
is in chunks of gzipped JSON, each opened when one of its rows is.
"""

import base64
import gzip
import json
import math

import numpy as np

from crjax.execution import Job, Pool

CHUNK = 200  # rows
LONGEST = 20_000  # characters of a text that is shown
MOST = 200_000  # completions on a page
FIELDS = ('text', 'code', 'entry', 'args', 'output', 'answer', 'verdict')
FIELDS += ('detail', 'invocation', 'line', 'var', 'asked', 'gold', 'corrected')
# Also read; `tokens` are a number, or of training the ids of all, left out.
KEPT = (*FIELDS, 'kind', 'mode', 'right', 'reward', 'worth', 'length', 'tokens')
NOTE = 300  # characters
TRACED = 400  # programs whose run is shown, of those that come first
TRACE_STEPS = 120


def sources(found, named) -> list:
  """[(run, step or -1, file)] of all completions, newest samples first."""
  files = []
  for path in found.evaluations:
    if (path / 'items.parquet').exists():
      files.append((named[path], -1, path / 'items.parquet'))
  for path in found.trainings:
    steps = sorted((path / 'samples').glob('step_*.parquet'), reverse=True)
    files += [(named[path], int(p.stem[5:]), p) for p in steps]
  return files


def read(files, most=MOST):
  """(rows, how many were left out, notes); a row knows its `run` and `step`.

  The notes are files that cannot be read.
  """
  import pyarrow  # Slow to import.
  import pyarrow.parquet

  rows, left, notes = [], 0, []
  for run, step, path in files:
    try:
      table = pyarrow.parquet.read_table(path, partitioning=None)
    except (OSError, pyarrow.ArrowException) as error:
      notes.append(f'{path} is damaged: {error}'[:NOTE])
      continue
    if len(rows) + len(table) > most:
      left += len(table)
      continue
    lists = {x.name for x in table.schema if pyarrow.types.is_list(x.type)}
    lists -= {'gold', 'corrected'}
    table = table.select(
      [x for x in KEPT if x in table.column_names and x not in lists]
    )
    rows += [row | {'run': run, 'step': step} for row in table.to_pylist()]
  return rows, left, notes


def traces(rows) -> dict:
  """{(code, entry, args): [[line, what changed]]} of the first few programs."""
  jobs = {}
  for row in rows:
    if row.get('entry') and row.get('args') is not None and row.get('code'):
      key = row['code'], row['entry'], row['args']
      jobs.setdefault(key, Job(*key, True))
      if len(jobs) == TRACED:
        break
  if not jobs:
    return {}
  try:
    with Pool(2) as pool:
      results = pool.run(list(jobs.values()))
  except RuntimeError:  # This machine does not isolate programs: no traces.
    return {}
  return {
    key: [[s.line, s.changed] for s in result.steps[:TRACE_STEPS]]
    for key, result in zip(jobs, results, strict=True)
    if result.steps
  }


def pack(rows, traced) -> tuple[dict, list[str]]:
  """(columns with their names, chunks in base64)."""
  names = {
    name: sorted({str(row.get(name) or '') for row in rows})
    for name in ('run', 'kind', 'mode', 'verdict')
  }
  place = {k: {x: i for i, x in enumerate(v)} for k, v in names.items()}
  column = lambda name: [place[name][str(row.get(name) or '')] for row in rows]
  columns = {
    'run': np.array(column('run'), '<u2'),
    'kind': np.array(column('kind'), '<u2'),
    'mode': np.array(column('mode'), '<u2'),
    'verdict': np.array(column('verdict'), '<u2'),
    'right': np.array([bool(row.get('right')) for row in rows], '<u2'),
    'reward': np.array([reward(row) for row in rows], '<f4'),
    'length': np.array([length(row) for row in rows], '<u4'),
    'step': np.array([row['step'] for row in rows], '<i4'),
  }
  chunks = []
  for start in range(0, len(rows), CHUNK):
    some = [shown(row, traced) for row in rows[start : start + CHUNK]]
    chunks.append(packed(json.dumps(some).encode()))
  index = {
    'n': len(rows),
    'chunk': CHUNK,
    'names': names,
    'types': {k: v.dtype.str[1:] for k, v in columns.items()},
    'columns': {k: packed(v.tobytes()) for k, v in columns.items()},
  }
  return index, chunks


def shown(row, traced) -> dict:
  """What a reader sees of a row; long texts are cut, and say so."""
  found = {}
  for name in FIELDS:
    value = row.get(name)
    if isinstance(value, str) and len(value) > LONGEST:
      value = f'{value[:LONGEST]}\n... {len(value) - LONGEST} characters more'
    if value not in (None, '', []):
      found[name] = value
  key = row.get('code'), row.get('entry'), row.get('args')
  if key in traced:
    found['trace'] = traced[key]
  return found


def reward(row) -> float:
  """As training gave it; of an evaluation, what the answer is worth."""
  value = row.get('reward')
  value = row.get('worth') if value is None else value
  return math.nan if value is None else float(value)


def length(row) -> int:
  """In tokens where they were counted, else in characters."""
  counted = row.get('length'), row.get('tokens')  # Of training; of evaluation.
  known = [n for n in counted if isinstance(n, int)]
  return known[0] if known else len(row.get('text') or '')


def packed(data: bytes) -> str:
  return base64.b64encode(gzip.compress(data, 6, mtime=0)).decode()
