"""Completions that somebody else made, and their verdicts."""

import json
import pathlib

from crjax import files
from crjax.evals import (
  cruxeval,
  hub,
  judging,
  livecodebench,
  official,
  pairs,
  reval,
  reval_score,
  stats,
  summary,
)
from crjax.execution import Case, Pool, check_all

# Of an item without completions.
NOTHING = {'verdict': 'missing', 'right': False, 'format_ok': False}
BENCHMARKS = {
  'cruxeval': cruxeval,
  'livecodebench': livecodebench,
  'reval': reval,
}


def run(
  benchmark: str,
  direction: str,
  style: str,
  *,
  data,
  given,
  out,
  against=None,
  workers=2,
) -> dict:
  """Judges the file `given` and writes the result of `judge` to `out`.

  With `against`, another such result, both are compared item by item. Raises
  ValueError for a file that is not as it should be, and where the benchmark's
  own answers are not all right under both judges.
  """
  module = BENCHMARKS[benchmark]
  if direction and direction not in module.DIRECTIONS:
    raise ValueError(
      f'{benchmark} has no direction {direction!r}; it has {module.DIRECTIONS}'
    )
  tasks = [t for t in load(benchmark, data) if direction in ('', t['kind'])]
  texts = read(given)
  if not set(texts) & {task['item'] for task in tasks}:
    raise ValueError(f'{given} and {data} have no id in common')
  other = pairs.read(against) if against else None
  if other is not None:
    pairs.check(other, tasks, against)
  with Pool(workers) as strict, official.pool(workers) as theirs:
    self_test(benchmark, tasks, (strict, theirs))
    result = judge(benchmark, direction, style, tasks, texts, (strict, theirs))
  result |= {'data': str(data), 'completions': str(given)}
  if other is not None:
    result['against'] = pairs.beside(
      other, pairs.of_items(result['items']), against
    )
  if out:
    files.write_text(out, json.dumps(result, indent=1) + '\n')
  return result


def load(benchmark, data) -> list[dict]:
  """Its tasks, of a file or a name on the hub; ValueError or OSError."""
  if benchmark == 'reval' and pathlib.Path(data).is_dir():
    raise ValueError(
      f'{data} is a directory, and labels are asked for; make them with '
      f'python -m crjax.evals.reval --data={data} --out=labels.jsonl'
    )
  return BENCHMARKS[benchmark].load(hub.local(data))


def self_test(benchmark, tasks, pools):
  """Raises ValueError unless every published answer is right by both judges."""
  if benchmark == 'reval':
    reval_score.self_test(tasks, pools[1])
    return
  wrong = {
    task['id']: f'strict: {task["verdict"]}'
    for task in cruxeval.check_gold(tasks, pools[0])
  }
  answers = [
    t['output'] if t['kind'] == 'output' else f'{t["entry"]}({t["args"]})'
    for t in tasks
  ]
  theirs = official.judge(benchmark, tasks, answers, pools[1])
  for task, verdict in zip(tasks, theirs, strict=True):
    if not verdict:
      wrong.setdefault(task['id'], 'official scorer')
  # Neither judge of outputs calls the function; here it is called.
  cases = [
    Case(
      official.prelude(benchmark) + task['code'],
      f'{task["entry"]}({task["args"]})',
      task['output'],
      task['entry'],
    )
    for task in tasks
  ]
  found = check_all(cases, pool=pools[1], two_phase=True)
  odd = [  # Arguments that are functions: only their scorer runs such calls.
    task
    for task, verdict in zip(tasks, found, strict=True)
    if verdict.kind == 'bad_answer'
  ]
  calls = [f'{t["entry"]}({t["args"]})' for t in odd]
  as_inputs = [task | {'kind': 'input'} for task in odd]
  right = official.judge(benchmark, as_inputs, calls, pools[1])
  called = {t['id'] for t, ok in zip(odd, right, strict=True) if ok}
  for task, verdict in zip(tasks, found, strict=True):
    if verdict.kind != 'pass' and task['id'] not in called:
      why = f'the call: {verdict.kind} {verdict.detail}'
      wrong.setdefault(task['id'], why)
  if wrong:
    raise ValueError(
      f'{benchmark}: {len(wrong)} of {len(tasks)} published answers are called '
      f'wrong, so nothing is reported; the first: {list(wrong.items())[:3]}. '
      'Is the file damaged, or does a program need what the sandbox lacks?'
    )


def read(path) -> dict[str, list[str]]:
  """{id: texts} of a JSONL file, or of the JSON object CRUXEval's scorer reads.

  A line is an object with the field 'id' and one field that is a list of
  strings, whatever its name. Raises ValueError naming the line and the field.
  """
  path = pathlib.Path(path)
  if path.suffix == '.json':
    found = json.loads(path.read_text(encoding='utf-8'))
    rows = [(f'{path}, {k!r}', {'id': k, 'texts': found[k]}) for k in found]
  else:
    lines = path.read_text(encoding='utf-8').split('\n')
    rows = [
      (f'{path}, line {i}', _parsed(line, f'{path}, line {i}'))
      for i, line in enumerate(lines, 1)
      if line.strip()
    ]
  given = {}
  for where, row in rows:
    if not isinstance(row.get('id'), str):
      raise ValueError(f"{where}: field 'id' must be a string")
    lists = [k for k, v in row.items() if isinstance(v, list)]
    if len(lists) != 1:
      raise ValueError(
        f'{where}: one field must be a list, the completions; found {lists}'
      )
    texts = row[lists[0]]
    if not texts or not all(isinstance(x, str) for x in texts):
      raise ValueError(
        f'{where}: field {lists[0]!r} must hold strings, and at least one'
      )
    if row['id'] in given:
      raise ValueError(f"{where}: field 'id' repeats {row['id']!r}")
    given[row['id']] = texts
  return given


def judge(benchmark, direction, style, tasks, given, pools) -> dict:
  """Verdicts of the official scorer and of the strict judge, side by side.

  Args:
    benchmark: of BENCHMARKS.
    direction: 'output' or 'input'.
    style: of `prompts.STYLES`; the prompt that the completions answer.
    tasks: of the benchmark, those of this direction.
    given: {item: texts}, see `read`.
    pools: (for the strict judge, of `official.pool`).

  Returns:
    {official: {pass_at_1, ci95, pass_at_k}, strict and typed: likewise, items:
    [...], ...}: percent; and as shares format_rate, constant and by, of
    `summary`. An item: {id, official: the scorer's own list, shorter where it
    drops texts, official_pass_at_1, skipped: the texts that it drops, strict:
    one verdict a text, strict_pass_at_1}. An item without completions is wrong.
    Of REval also `reval`, see `reval_score.summarize`, of the first texts.
  """
  flat = [(t, text) for t in tasks for text in given.get(t['item'], [])]
  asked, texts = [task for task, _ in flat], [text for _, text in flat]
  cut = [False] * len(flat)
  infos = judging.judge(benchmark, style, asked, texts, cut, pools)
  left = iter(infos)
  items = [
    _item(task, [next(left) for _ in given.get(task['item'], [])])
    for task in tasks
  ]
  rows = [task | info for task, info in zip(asked, infos, strict=True)]
  none = [t | NOTHING for t in tasks if t['item'] not in given]
  more = {}
  if benchmark == 'reval':
    more = {'reval': reval_score.of_items(tasks, items)}
  ids = {task['item'] for task in tasks}
  return {
    'benchmark': benchmark,
    'direction': direction,
    'prompt': style,
    'n': len(items),
    'official': _told('official', items),
    'strict': _told('strict', items),
    'typed': _told('typed', items),
    'format_rate': _mean([row['format_ok'] for row in rows + none]),
    'constant': summary.constant(rows + none) if direction else None,
    'by': summary.breakdowns(rows + none),
    'missing': sorted(ids - set(given)),
    'unknown': sorted(set(given) - ids),
    **more,
    'items': items,
  }


def _item(task, infos) -> dict:
  """What `judge` tells of an item; pass@1 is None without any label."""
  if any(info['verdict'] == 'infra' for info in infos):
    raise RuntimeError(f'the sandbox gave no verdict on {task["id"]}')
  theirs = [x['official'] for x in infos if 'official' in x]
  dropped = [i for i, verdict in enumerate(theirs) if verdict is None]
  theirs = official.kept(theirs)
  ours = [x['right'] for x in infos if x['verdict'] != judging.UNLABELLED]
  typed = [x['typed'] for x in infos if x['verdict'] != judging.UNLABELLED]
  share = lambda found: None if infos and not found else _mean(found)
  return {
    'id': task['item'],
    'kind': task['kind'],
    'question': pairs.name(task),
    'official': theirs,
    'official_pass_at_1': share(theirs),
    'skipped': dropped,
    'strict': ours,
    'strict_pass_at_1': share(ours),
    'typed': typed,
    'typed_pass_at_1': share(typed),
    'verdicts': [info['verdict'] for info in infos],
  }


def _told(name, items):
  """Percent, over items that have a label.

  pass@k is unbiased and so told for no more samples than each item has; what
  the official scorer drops counts in its n no more.
  """
  values = [x[f'{name}_pass_at_1'] for x in items]
  values = [value for value in values if value is not None]
  interval = stats.interval(values, seed=0)
  some = [x[name] for x in items if x[f'{name}_pass_at_1'] is not None]
  fewest = min(map(len, some), default=0)
  return {
    'pass_at_1': 100 * _mean(values),
    'ci95': interval and [100 * x for x in interval],
    'pass_at_k': {
      str(k): 100 * _mean([stats.pass_at_k(len(x), sum(x), k) for x in some])
      for k in summary.PASS_AT
      if k <= fewest
    },
  }


def _mean(values):
  return sum(values) / len(values) if values else 0.0


def _parsed(line, where):
  try:
    row = json.loads(line)
  except ValueError as error:
    raise ValueError(f'{where}: not JSON: {error}') from error
  if not isinstance(row, dict):
    raise ValueError(f'{where}: must be an object')
  return row
