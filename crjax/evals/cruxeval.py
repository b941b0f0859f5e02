"""CRUXEval-format files: a function `f`, the source of its input and output.

One JSON object a line: {"code", "input", "output", "id"}, as published with
arXiv 2401.03065. Every line becomes two tasks, one for each direction.
"""

import json
import pathlib

from crjax.rewards import score

FIELDS = ('code', 'input', 'output', 'id')
ENTRY = 'f'
DIRECTIONS = ('output', 'input')
SYSTEM = ''


def load(path) -> list[dict]:
  """Tasks {id, item, kind, code, entry, args, output}, two a line.

  Raises FileNotFoundError, or ValueError naming the line and the field.
  """
  path, tasks, seen = pathlib.Path(path), [], {}
  # Not splitlines(): JSON strings may hold U+2028 and the like as they are.
  lines = path.read_text(encoding='utf-8').split('\n')
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    item = _checked(line, f'{path}, line {number}')
    first = seen.setdefault(item['id'], number)
    if first != number:
      raise ValueError(
        f"{path}, line {number}: field 'id' repeats that of line {first}"
      )
    tasks += [
      {
        'id': f'{item["id"]}-{kind}',
        'item': item['id'],
        'kind': kind,
        'code': item['code'],
        'entry': ENTRY,
        'args': item['input'],
        'output': item['output'],
      }
      for kind in ('output', 'input')
    ]
  if not tasks:
    raise ValueError(f'{path} holds no items')
  return tasks


def gold(task) -> str:
  """A completion that gives the published answer, in the trained form."""
  call = f'{task["entry"]}({task["args"]})'
  answer = task['output'] if task['kind'] == 'output' else call
  return f'<reasoning></reasoning><answer>{answer}</answer>'


def check_gold(tasks, pool) -> list[dict]:
  """The tasks whose published answer the judge calls wrong, with verdicts.

  Published inputs that are not literals (a lambda, a call) are evaluated.
  """
  texts, cut = [gold(task) for task in tasks], [False] * len(tasks)
  rewards_B, infos = score(tasks, texts, cut, pool, published=True)
  return [
    task | info
    for task, info, reward in zip(tasks, infos, rewards_B, strict=True)
    if reward != 1
  ]


def _checked(line, where):
  try:
    item = json.loads(line)
  except ValueError as error:
    raise ValueError(f'{where}: not JSON: {error}') from error
  for field in FIELDS:
    if not isinstance(item, dict) or not isinstance(item.get(field), str):
      raise ValueError(f'{where}: field {field!r} must be a string')
  return item
