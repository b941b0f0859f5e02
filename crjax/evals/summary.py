"""Numbers of judged completions, and their files."""

import ast
import collections
import functools
import json
import os
import pathlib

import numpy as np

from crjax import files
from crjax.evals import official, reval_score
from crjax.evals.judging import UNLABELLED
from crjax.evals.stats import interval, pass_at_k

CONSTRUCTS = {
  'for': {ast.For},
  'while': {ast.While},
  'if': {ast.If, ast.IfExp},
  'comprehension': {ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp},
  'try': {ast.Try},
  'lambda': {ast.Lambda},
  'class': {ast.ClassDef},
  'slice': {ast.Slice},
  'format': {ast.JoinedStr},
}
PASS_AT = (1, 2, 4, 5, 8, 10)
UNJUDGED = ('infra', UNLABELLED)


def summarize(rows, *, seed: int = 0) -> dict:
  """{kind: {n, greedy: numbers, sampled: numbers}} of the rows of `run`.

  Items that our own machinery failed to judge are left out and counted.
  """
  report = {}
  for kind in sorted({row['kind'] for row in rows}):
    of_kind = [row for row in rows if row['kind'] == kind]
    report[kind] = {
      'n': len({row['id'] for row in of_kind}),
      'by': breakdowns([row for row in of_kind if row['mode'] == 'greedy']),
      'constant': constant(of_kind),
    }
    for mode in ('greedy', 'sampled'):
      some = [row for row in of_kind if row['mode'] == mode]
      report[kind][mode] = _numbers(some, seed)
  return report


def _numbers(rows, seed):
  """Fractions over items, each item the mean of its samples."""
  judged = [row for row in rows if row['verdict'] not in UNJUDGED]
  items = collections.defaultdict(list)
  for row in judged:
    items[row['id']].append(row)
  mean = lambda field: np.array(
    [np.mean([row[field] for row in item]) for item in items.values()]
  )
  right = mean('right')
  scored = collections.defaultdict(list)
  for row in rows:
    if 'official' in row:
      scored[row['id']].append(row['official'])
  theirs = [np.mean(official.kept(verdicts)) for verdicts in scored.values()]
  samples = max((row['sample'] for row in rows), default=0) + 1
  return {
    'strict': float(right.mean()) if len(right) else None,
    'ci95': interval(right, seed),
    'official': float(np.mean(theirs)) if theirs else None,
    'typed': float(mean('typed').mean()) if len(right) else None,
    'format_rate': float(mean('format_ok').mean()) if len(right) else None,
    'truncated': float(mean('truncated').mean()) if len(right) else None,
    'tokens': _mean_of(judged, 'tokens'),
    'final': _mean_of(judged, 'final'),
    'steps': _mean_of(judged, 'steps'),
    'pass_at_k': {k: _pass_at(items, k) for k in PASS_AT if k <= samples},
    'samples': samples,
    'infra': sum(row['verdict'] == 'infra' for row in rows),
    'unlabelled': sum(row['verdict'] == UNLABELLED for row in rows),
    'too_long': sum(not row['fits'] for row in rows),
  }


def reval_report(tasks, rows) -> dict:
  """`reval_score.summarize` of the greedy answers."""
  greedy = {row['id']: row for row in rows if row['mode'] == 'greedy'}
  found = [
    {
      'official': greedy[task['id']].get('official'),
      'strict': None
      if greedy[task['id']]['verdict'] == UNLABELLED
      else greedy[task['id']]['right'],
    }
    for task in tasks
  ]
  return reval_score.summarize(tasks, found)


def breakdowns(rows) -> dict:
  """{by: {value: {n, strict}}} of rows: where a model is good at what.

  By difficulty, where the benchmark tells it, lines of code, and the constructs
  that a program uses; one program has several.
  """
  found = collections.defaultdict(lambda: collections.defaultdict(list))
  for row in rows:
    if row['verdict'] not in UNJUDGED:
      for by, value in features(row):
        found[by][value].append(row['right'])
  return {
    by: {
      value: {'n': len(right), 'strict': sum(right) / len(right)}
      for value, right in sorted(values.items())
    }
    for by, values in found.items()
  }


def constant(rows) -> dict | None:
  """{answer, strict}: the answer that is right most often without reading.

  None for questions whose right answers are not listed, such as inputs.
  """
  rows = {row['id']: row for row in rows}.values()
  gold = [g for row in rows if row['kind'] != 'input' for g in set(golds(row))]
  if not gold:
    return None
  answer, count = collections.Counter(gold).most_common(1)[0]
  return {'answer': answer, 'strict': count / len(rows)}


def golds(row) -> list[str]:
  """The right answers to a question, as texts."""
  if row['kind'] == 'output':
    return [row['output']] if 'output' in row else []
  gold = row.get('corrected') or row.get('gold') or []
  return gold if isinstance(gold, list) else []


def features(row) -> list[tuple[str, str]]:
  """(by, value) pairs of a row's program."""
  lines = len(row['code'].strip().split('\n'))
  low = max(n for n in (1, 6, 11, 21, 41) if n <= max(lines, 1))
  found = [('lines', f'{low:>2}+'), *constructs(row['code'])]
  if row.get('difficulty'):
    found.append(('difficulty', str(row['difficulty'])))
  return found


@functools.lru_cache(maxsize=4096)
def constructs(code: str) -> tuple:
  names = {type(node) for node in ast.walk(ast.parse(code))}
  return tuple(
    ('construct', name) for name, kinds in CONSTRUCTS.items() if names & kinds
  )


def _mean_of(rows, field):
  """Mean over the rows that have the field; None of none."""
  values = [row[field] for row in rows if row.get(field) is not None]
  return float(np.mean(values)) if values else None


def _pass_at(items, k):
  """Mean over items of the unbiased estimate; None where samples were lost."""
  if not items or any(len(item) < k for item in items.values()):
    return None
  right = [[row['right'] for row in item] for item in items.values()]
  return float(np.mean([pass_at_k(len(x), sum(x), k) for x in right]))


def write(out, report, rows):
  """items.parquet first, report.json last: with it, the evaluation is whole."""
  import datasets  # Slow to import.

  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  temporary = out / 'items.tmp'
  datasets.disable_progress_bars()
  names = {name: None for row in rows for name in row}  # In their order.
  rows = [names | row for row in rows]
  datasets.Dataset.from_list(rows).to_parquet(str(temporary))
  os.replace(temporary, out / 'items.parquet')
  text = json.dumps(report, indent=2, sort_keys=True) + '\n'
  files.write_text(out / 'report.json', text)
