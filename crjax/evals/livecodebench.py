"""LiveCodeBench's code execution, `execution-v2`: output prediction.

The file is the user's: JSONL or Parquet with the columns of the dataset
`livecodebench/execution-v2` (479 rows, 11 columns).
"""

import ast

COLUMNS = {
  'question_id': int,
  'id': str,
  'function_name': str,
  'code': str,
  'input': str,
  'output': str,
  'numsteps': int,
  'problem_id': list,
  'contest_id': str,
  'contest_date': object,  # A timestamp, or its text in JSONL.
  'difficulty': str,
}
ROWS = 479
DIRECTIONS = ('output',)
SYSTEM = (
  'You are an expert at Python programming, code execution, test case '
  'generation, and fuzzing.'
)


def load(path) -> list[dict]:
  """Tasks {id, item, kind, code, entry, args, output, call, difficulty, steps}.

  Raises ValueError naming the row and the column.
  """
  found = _read(path)
  missing = sorted(set(COLUMNS) - set(found.column_names))
  if missing:
    raise ValueError(
      f'{path}: columns {missing} are missing; execution-v2 has '
      f'{sorted(COLUMNS)}'
    )
  tasks, seen = [], set()
  for number, row in enumerate(found, start=1):
    where = f'{path}, row {number}'
    for name, kind in COLUMNS.items():
      if not isinstance(row[name], kind):
        raise ValueError(
          f'{where}: column {name!r} holds a {type(row[name]).__name__}, not '
          f'{kind.__name__}'
        )
    if row['id'] in seen:
      raise ValueError(f"{where}: column 'id' repeats {row['id']!r}")
    seen.add(row['id'])
    tasks.append(_task(row, where))
  if not tasks:
    raise ValueError(f'{path} holds no rows')
  if len(tasks) != ROWS:
    print(f'{path}: {len(tasks)} rows; execution-v2 has {ROWS}')
  return tasks


def _task(row, where):
  call, name = row['input'].strip(), row['function_name']
  try:
    node = ast.parse(call, mode='eval').body
  except (SyntaxError, ValueError) as error:
    raise ValueError(f"{where}: column 'input': {error}") from error
  if not isinstance(node, ast.Call) or ast.unparse(node.func) != name:
    raise ValueError(f"{where}: column 'input' must be a call of {name}")
  return {
    'id': f'{row["id"]}-output',
    'item': row['id'],
    'kind': 'output',
    'code': row['code'],
    'entry': name,
    'args': call[call.index('(') + 1 : -1],
    'output': row['output'],
    'call': row['input'],
    'difficulty': row['difficulty'],
    'steps': row['numsteps'],
  }


def _read(path):
  import datasets  # Slow to import.

  datasets.disable_progress_bars()
  reader = 'parquet' if str(path).endswith('.parquet') else 'json'
  return datasets.load_dataset(reader, data_files=str(path), split='train')
