import json

import pytest

from crjax.evals import (
  completions,
  hub,
  judging,
  livecodebench,
  official,
  prompts,
)
from crjax.execution import Pool

ROW = {
  'question_id': 2727,
  'id': 'sample_0',
  'function_name': 'best',
  'code': 'def best(xs: List[int]) -> int:\n  return heappop(sorted(xs))',
  'input': 'best(xs = [3, 1])',
  'output': '1',
  'numsteps': 4,
  'problem_id': [1, 2],
  'contest_id': 'weekly-1',
  'contest_date': '2023-05-13T00:00:00',
  'difficulty': 'easy',
}


def write(path, *rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.fixture(scope='module')
def pools():
  with Pool(1) as strict, official.pool(1) as theirs:
    yield strict, theirs


@pytest.fixture
def task(tmp_path):
  (found,) = livecodebench.load(write(tmp_path / 'x.jsonl', ROW))
  return found


def verdicts(pools, task, *texts, style='direct'):
  tasks, cut = [task] * len(texts), [False] * len(texts)
  infos = judging.judge('livecodebench', style, tasks, texts, cut, pools)
  return [(info['official'], info['right']) for info in infos]


def test_a_row_is_a_task(task, capsys):
  assert task['entry'] == 'best' and task['args'] == 'xs = [3, 1]'
  assert task['difficulty'] == 'easy' and task['steps'] == 4
  text = prompts.ask('livecodebench', task, 'direct')
  assert 'assert best(xs = [3, 1]) == ??' in text


def test_a_file_of_another_size_is_told(tmp_path, capsys):
  livecodebench.load(write(tmp_path / 'x.jsonl', ROW))
  assert '1 rows; execution-v2 has 479' in capsys.readouterr().out


def test_published_answers_need_the_imports_of_the_benchmark(task, pools):
  completions.self_test('livecodebench', [task], pools)
  odd = task | {'code': task['code'].replace('heappop(', 'np.max(')}
  with pytest.raises(ValueError, match='nothing is reported'):
    completions.self_test('livecodebench', [odd], pools)


def test_its_scorers_verdicts_and_ours(task, pools):
  assert verdicts(
    pools,
    task,
    'assert best(xs = [3, 1]) == 1\n[/ANSWER]',
    'best(xs = [3, 1]) == best(xs = [3, 1])',
    'assert best(xs = [3, 1]) == best(xs=[3, 1])',
    'assert best(xs = [3, 1]) == 0 or True',
    'assert best(xs = [3, 1]) == True',
  ) == [
    (True, True),
    (None, False),  # Dropped: the call is in it.
    (True, False),
    (True, False),
    (True, True),  # Both by Python's equality.
  ]


def test_without_the_closing_tag_one_line_counts(task, pools):
  longer = task | {'output': '[1, 2]', 'code': 'def best(xs): return [1, 2]'}
  text = 'assert best(xs = [3, 1]) == [1,\n 2]\n'
  assert verdicts(pools, longer, text, text + '[/ANSWER]') == [
    (False, True),
    (True, True),
  ]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'difficulty': 3}, "row 1: column 'difficulty' holds a int, not str"),
    ({'input': 'worst(1)'}, "column 'input' must be a call of best"),
    ({'input': 'best('}, "row 1: column 'input'"),
    ({'problem_id': '1'}, "column 'problem_id' holds a str, not list"),
  ],
)
def test_a_wrong_column_is_named(tmp_path, change, message):
  with pytest.raises(ValueError, match=message):
    livecodebench.load(write(tmp_path / 'x.jsonl', ROW | change))


def test_missing_columns_and_repeated_ids_are_named(tmp_path):
  fewer = {k: v for k, v in ROW.items() if k != 'numsteps'}
  with pytest.raises(ValueError, match=r"columns \['numsteps'\] are missing"):
    livecodebench.load(write(tmp_path / 'x.jsonl', fewer))
  with pytest.raises(ValueError, match="row 2: column 'id' repeats"):
    livecodebench.load(write(tmp_path / 'y.jsonl', ROW, ROW))


def test_a_dataset_by_name_is_a_file(tmp_path, task):
  (tmp_path / 'set').mkdir()
  write(tmp_path / 'set' / 'test.jsonl', ROW)
  path = hub.local(str(tmp_path / 'set'))
  assert livecodebench.load(path) == [task]
  assert hub.local(path) == path
  with pytest.raises(FileNotFoundError, match='no dataset with a split'):
    hub.local(str(tmp_path / 'none'))


def test_there_are_no_inputs_to_predict(tmp_path):
  path = write(tmp_path / 'x.jsonl', ROW)
  with pytest.raises(ValueError, match="has no direction 'input'"):
    completions.run(
      'livecodebench', 'input', 'cot', data=path, given=path, out=''
    )
