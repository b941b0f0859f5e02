"""Numbers of judged completions, as a table and as files."""

import collections
import json
import os
import pathlib

import numpy as np
import rich.console
import rich.table

from crjax import files
from crjax.evals import official
from crjax.evals.stats import bootstrap, wilson


def summarize(rows, *, seed: int = 0) -> dict:
  """{kind: {n, greedy: numbers, sampled: numbers}} of the rows of `run`.

  Items that our own machinery failed to judge are left out and counted.
  """
  report = {}
  for kind in sorted({row['kind'] for row in rows}):
    of_kind = [row for row in rows if row['kind'] == kind]
    report[kind] = {'n': len({row['id'] for row in of_kind})}
    for mode in ('greedy', 'sampled'):
      some = [row for row in of_kind if row['mode'] == mode]
      report[kind][mode] = _numbers(some, seed)
  return report


def _numbers(rows, seed):
  """Fractions over items, each item the mean of its samples."""
  judged = [row for row in rows if row['verdict'] != 'infra']
  items = collections.defaultdict(list)
  for row in judged:
    items[row['id']].append(row)
  mean = lambda field: np.array(
    [np.mean([row[field] for row in item]) for item in items.values()]
  )
  right = mean('right')
  theirs = [
    np.mean(official.kept([row['official'] for row in item]))
    for item in items.values()
    if 'official' in item[0]
  ]
  samples = max((row['sample'] for row in rows), default=0) + 1
  single = samples == 1
  interval = wilson(right) if single else bootstrap(right, seed)
  return {
    'strict': float(right.mean()) if len(right) else None,
    'ci95': interval,
    'official': float(np.mean(theirs)) if theirs else None,
    'typed': float(mean('typed').mean()) if len(right) else None,
    'format_rate': float(mean('format_ok').mean()) if len(right) else None,
    'truncated': float(mean('truncated').mean()) if len(right) else None,
    'samples': samples,
    'infra': len(rows) - len(judged),
    'too_long': sum(not row['fits'] for row in rows),
  }


def write(out, report, rows):
  """items.parquet first, report.json last: with it, the evaluation is whole."""
  import datasets  # Slow to import.

  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  temporary = out / 'items.tmp'
  datasets.disable_progress_bars()
  datasets.Dataset.from_list(rows).to_parquet(str(temporary))
  os.replace(temporary, out / 'items.parquet')
  text = json.dumps(report, indent=2, sort_keys=True) + '\n'
  files.write_text(out / 'report.json', text)


def show(report):
  settings = report['settings']
  table = rich.table.Table(
    title=f'{settings["model"]} on {settings["data"]}\nstrict accuracy, '
    '95 % interval in brackets, percent'
  )
  columns = (
    'kind',
    'items',
    'decoding',
    'accuracy',
    'official',
    'typed',
    'format',
    'truncated',
    'too long',
    'infra',
  )
  for name in columns:
    table.add_column(name, justify='right')
  percent = lambda x: '-' if x is None else f'{100 * x:.1f}'
  for kind, found in report['kinds'].items():
    for mode in ('greedy', 'sampled'):
      x = found[mode]
      low, high = x['ci95'] or (None, None)
      label = mode if mode == 'greedy' else f'T=1, {x["samples"]} samples'
      table.add_row(
        kind,
        str(found['n']),
        label,
        f'{percent(x["strict"])} [{percent(low)}, {percent(high)}]',
        percent(x['official']),
        percent(x['typed']),
        percent(x['format_rate']),
        percent(x['truncated']),
        str(x['too_long']),
        str(x['infra']),
      )
  rich.console.Console().print(table)
