"""REval (DREval, arXiv 2403.16437): its files, and labels that are frozen once.

  python -m crjax.evals.reval --data=DIR --out=labels.jsonl

DIR holds DREval_data.jsonl (programs: task_id, entry_point, code, inputs,
outputs, test) and DREval_tasks.jsonl (questions: idx, tasks of input_idx, task
of lineno and var, output_pred). Their programs run here, in the sandbox, and
never again: an evaluation reads the labels. Each question has the answers that
REval's own tracer gives (`official`) and those of execution in one frame
(`corrected`, see execution/labels.py), or none where the question has no answer
or, answered by a line's text as it must be, several.
"""

import argparse
import importlib.util
import json
import pathlib
import platform

from crjax import files
from crjax.evals import reval_tests
from crjax.execution import Job, Pool, labels

DATA, TASKS = 'DREval_data.jsonl', 'DREval_tasks.jsonl'
DATA_FIELDS = {
  'task_id': str,
  'entry_point': str,
  'code': str,
  'inputs': list,
  'outputs': list,
  'test': (str, type(None)),
}
TASK_FIELDS = {'task_id': str, 'idx': int, 'tasks': list}
ENTRY_FIELDS = {'input_idx': int, 'task': list, 'output_pred': str}
LINE_FIELDS = {'lineno': int, 'var': str}
# Of the frozen labels: of all, of outputs, of lines.
LABEL_FIELDS = dict.fromkeys(
  ('id', 'group', 'input', 'kind', 'source', 'code', 'invocation'), str
)
OUTPUT_LABELS = dict.fromkeys(('asked', 'gold', 'program'), str)
LABELS = {'line': int, 'var': str}
LABELS |= dict.fromkeys(('official', 'corrected'), (list, type(None)))
KINDS = ('coverage', 'path', 'state')
DIRECTIONS = (*KINDS, 'output')
SYSTEM = ''
# What its programs import and a sandbox has only on request.
IMPORTED = ('numpy', 'gensim', 'urllib.parse')


def read(folder) -> list[tuple[dict, dict]]:
  """(program, questions) pairs; raises ValueError naming line and field."""
  folder = pathlib.Path(folder)
  programs = _rows(folder / DATA, DATA_FIELDS)
  found = []
  for where, task in _rows(folder / TASKS, TASK_FIELDS):
    if not 0 <= task['idx'] < len(programs):
      raise ValueError(f"{where}: field 'idx' is no line of {DATA}")
    _, program = programs[task['idx']]
    if program['task_id'] != task['task_id']:
      raise ValueError(
        f"{where}: field 'task_id' is {task['task_id']!r}, and "
        f'{program["task_id"]!r} in {DATA}'
      )
    for entry in task['tasks']:
      _check(entry, ENTRY_FIELDS, where)
      for line in entry['task']:
        _check(line, LINE_FIELDS, where)
        if not 0 < line['lineno'] <= len(program['code'].split('\n')):
          raise ValueError(f"{where}: field 'lineno' is no line of the code")
      if not 0 <= entry['input_idx'] < len(program['inputs']):
        raise ValueError(f"{where}: field 'input_idx' is no input")
    found.append((program, task))
  return found


def freeze(pairs, pool, progress=None) -> tuple[list[dict], list[str]]:
  """(questions with labels, what was lost and why).

  A question is {id, group, kind, source, code, invocation, line, var,
  official, corrected}; one of kind 'output' has `asked`, the assertions with
  holes, `gold`, those without, `setup` and `program`, what surrounds an answer
  that is executed. `group` names the lines' questions that belong together.
  """
  runs, jobs = [], []
  for program, task in pairs:
    for entry in task['tasks']:
      try:
        run = reval_tests.prepare(program, entry)
      except ValueError as error:
        runs.append((program, task, entry, None, str(error)))
        continue
      runs.append((program, task, entry, run, ''))
      jobs.append(Job(run['traced'], run['entry'], run['args'], True))
  results = iter(pool.run(jobs, progress))
  found, lost = [], []
  for program, task, entry, run, why in runs:
    name = f'{task["task_id"]}-{entry["input_idx"]}'
    result = next(results) if run else None
    if result and result.verdict != 'ok':
      why = f'{result.verdict} {result.detail}'.strip()
    if why:
      lost.append(f'{name}: {len(entry["task"])} lines: {why}')
      continue
    found += _lines(name, program, entry, run, result.trace)
    found.append(_output(name, program, entry, run))
  return found, lost


def _lines(name, program, entry, run, trace):
  """The questions about the lines of one run."""
  code, found = program['code'], []
  length = len(code.split('\n'))
  foreign = {e.frame for e in trace if e.kind == 'call' and e.line > length}
  trace = [e for e in trace if e.frame not in foreign]
  for n, asked in enumerate(entry['task']):
    for kind in KINDS:
      question = {'kind': kind, 'line': asked['lineno'], 'var': asked['var']}
      gold = {
        mode: _gold(trace, code, question, mode)
        for mode in ('reval', 'corrected')
      }
      if kind == 'path' and ambiguous(code, question, gold['corrected']):
        gold['corrected'] = None
      found.append(
        {
          'id': f'{name}-{n}-{kind}',
          'group': f'{name}-{n}',
          'input': name,
          'kind': kind,
          'source': run['source'],
          'code': code,
          'invocation': run['invocation'],
          'line': asked['lineno'],
          'var': asked['var'],
          'official': gold['reval'],
          'corrected': gold['corrected'],
        }
      )
  return found


def _output(name, program, entry, run):
  return {
    'id': f'{name}-output',
    'group': name,
    'input': name,
    'kind': 'output',
    'source': run['source'],
    'code': program['code'],
    'invocation': run['invocation'],
    'asked': entry['output_pred'],
    'gold': run['gold'],
    'program': run['program'],
  }


def _gold(trace, code, question, mode):
  try:
    return labels.gold(trace, code, question, mode)
  except SyntaxError as error:
    raise ValueError(f'var {question["var"]!r}: {error}') from error


def ambiguous(code, question, gold) -> bool:
  """Whether a line's text, by which one asks and answers, is not its own."""
  texts = [line.strip() for line in code.split('\n')]
  named = [question['line'], *(int(x) for x in gold or [])]
  return any(i > 0 and texts.count(texts[i - 1]) > 1 for i in named)


def load(path) -> list[dict]:
  """The frozen questions; raises ValueError naming line and field."""
  rows, seen = _rows(pathlib.Path(path), LABEL_FIELDS), set()
  for where, row in rows:
    if row['kind'] not in DIRECTIONS:
      raise ValueError(f"{where}: field 'kind' must be one of {DIRECTIONS}")
    _check(row, OUTPUT_LABELS if row['kind'] == 'output' else LABELS, where)
    if row['id'] in seen:
      raise ValueError(f"{where}: field 'id' repeats {row['id']!r}")
    seen.add(row['id'])
  return [row | {'item': row['id']} for _, row in rows]


def _rows(path, fields):
  """[(where, row)] of a JSONL file."""
  if not path.exists():
    raise FileNotFoundError(f'{path} does not exist')
  found = []
  for i, line in enumerate(path.read_text('utf-8').split('\n'), 1):
    where = f'{path}, line {i}'
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ValueError(f'{where}: not JSON: {error}') from error
    _check(row, fields, where)
    found.append((where, row))
  if not found:
    raise ValueError(f'{path} holds no rows')
  return found


def _check(row, fields, where):
  for name, kind in fields.items():
    if not isinstance(row, dict) or not isinstance(row.get(name), kind):
      kinds = kind if isinstance(kind, tuple) else (kind,)
      wanted = ' or '.join(k.__name__ for k in kinds)
      raise ValueError(f'{where}: field {name!r} must be {wanted}')


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', required=True, help=f'with {DATA}, {TASKS}')
  parser.add_argument('--out', required=True, help='labels.jsonl')
  parser.add_argument('--workers', type=int, default=2)
  args = parser.parse_args()
  modules = [name for name in IMPORTED if importlib.util.find_spec(name)]
  with Pool(
    args.workers, cpu_seconds=10, memory_mb=1024, modules=modules
  ) as pool:
    found, lost = freeze(read(args.data), pool)
  python = '.'.join(platform.python_version_tuple()[:2])
  rows = [json.dumps(row | {'py': python}) + '\n' for row in found]
  files.write_text(args.out, ''.join(rows))
  print(f'{args.out}: {len(found)} questions, labels of Python {python}')
  for what in lost:
    print(f'lost: {what}')


if __name__ == '__main__':
  main()
