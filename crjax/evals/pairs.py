"""Two models on the same questions: which is right more often, how surely."""

import collections
import json
import pathlib

import numpy as np

from crjax.evals import stats
from crjax.evals.journal import digest

# What a question is made of; benchmarks share ids, and not these.
CONTENT = ('id', 'kind', 'code', 'entry', 'args', 'invocation', 'line', 'var')
COLUMNS = (*CONTENT, 'mode', 'verdict', 'right')


def name(task) -> str:
  """The same for the same question, of whichever model it is asked."""
  return digest([task.get(field) for field in CONTENT])


def read(path) -> dict:
  """{kind: {name: share of right answers}} of an evaluation.

  Args:
    path: a directory with items.parquet, of which the greedy answers count; or
      the result of judging completions that were there already.

  Raises FileNotFoundError or ValueError.
  """
  path = pathlib.Path(path)
  if path.is_dir():
    return of_rows(rows(path / 'items.parquet'))
  try:
    result = json.loads(path.read_text('utf-8'))
    return of_items(result['items'])
  except (ValueError, LookupError, TypeError) as error:
    raise ValueError(
      f'{path} is no result of crjax.evaluate: {error}'
    ) from error


def rows(path) -> list[dict]:
  """The columns of an items.parquet that are needed here."""
  import pyarrow.parquet  # Slow to import.

  names = pyarrow.parquet.read_schema(path).names
  table = pyarrow.parquet.read_table(
    path, columns=[x for x in COLUMNS if x in names]
  )
  return table.to_pylist()


def of_rows(some) -> dict:
  """As `read`; of the greedy rows of `evaluate.run` that were judged."""
  found = collections.defaultdict(dict)
  for row in some:
    if row['mode'] == 'greedy' and row['verdict'] not in (
      'infra',
      'unlabelled',
    ):
      found[row['kind']][name(row)] = float(row['right'])
  return dict(found)


def of_items(items) -> dict:
  """As `read`; of the items of `completions.judge`."""
  found = collections.defaultdict(dict)
  for item in items:
    if item['strict_pass_at_1'] is not None:
      found[item['kind']][item['question']] = item['strict_pass_at_1']
  return dict(found)


def compare(a: dict, b: dict) -> list[dict]:
  """Paired tests of two of `read`, one for each kind that they share.

  Returns {kind, n, a, b: shares of right answers, difference, ci95, only_a,
  only_b: where one alone is right, p, test}: McNemar's test, or the bootstrap's
  where items have several samples.
  """
  found = []
  for kind in sorted(set(a) & set(b)):
    shared = sorted(set(a[kind]) & set(b[kind]))
    if not shared:
      continue
    x, y = (np.array([one[kind][k] for k in shared]) for one in (a, b))
    told = stats.paired(x, y, seed=0) | {'test': 'bootstrap'}
    if np.isin(np.concatenate([x, y]), (0, 1)).all():
      told |= stats.mcnemar(x, y) | {'test': 'McNemar'}
    means = {'a': float(x.mean()), 'b': float(y.mean())}
    found.append({'kind': kind, 'n': len(shared), **means, **told})
  return found


def check(other: dict, tasks, path):
  """Raises ValueError where another evaluation has none of these questions."""
  if not {name(task) for task in tasks} & set().union(*other.values()):
    raise ValueError(f'{path} answers none of these questions')


def beside(other: dict, ours: dict, path) -> dict:
  """{path, pairs} of `compare`."""
  return {'path': str(path), 'pairs': compare(ours, other)}
