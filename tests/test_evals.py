import json

import pytest

from crjax.evals import cruxeval
from crjax.execution import Pool
from crjax.rewards import score

ITEM = {'code': 'def f(x):\n  return x', 'input': '1', 'output': '1', 'id': 'a'}


def write(path, *lines):
  path.write_text('\n'.join(lines) + '\n', encoding='utf-8')
  return path


def test_a_line_is_two_tasks(tmp_path):
  path = write(tmp_path / 'x.jsonl', json.dumps(ITEM), '')
  output, given = cruxeval.load(path)
  assert output['kind'] == 'output' and given['kind'] == 'input'
  assert output['args'] == given['args'] == '1'
  assert output['id'] != given['id']


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{', 'line 2: not JSON'),
    ('[]', "line 2: field 'code'"),
    (json.dumps(ITEM | {'output': 3}), "line 2: field 'output'"),
  ],
)
def test_what_is_wrong_is_named(tmp_path, line, message):
  path = write(tmp_path / 'x.jsonl', json.dumps(ITEM), line)
  with pytest.raises(ValueError, match=message):
    cruxeval.load(path)


def test_ids_are_unique(tmp_path):
  path = write(tmp_path / 'x.jsonl', json.dumps(ITEM), json.dumps(ITEM))
  with pytest.raises(ValueError, match=r"line 2: field 'id' repeats .* line 1"):
    cruxeval.load(path)


def test_a_line_ends_only_at_a_newline(tmp_path):
  item = ITEM | {'output': "'\u2028\x85'"}
  line = json.dumps(item, ensure_ascii=False)
  assert (
    cruxeval.load(write(tmp_path / 'x.jsonl', line))[0]['output']
    == (item['output'])
  )


def test_an_empty_file_is_no_benchmark(tmp_path):
  with pytest.raises(ValueError, match='no items'):
    cruxeval.load(write(tmp_path / 'x.jsonl', ''))


def test_published_answers_are_right(assets):
  tasks = cruxeval.load(assets / 'data' / 'cruxeval_first400.jsonl')
  assert len(tasks) == 800
  with Pool(2) as pool:
    assert cruxeval.check_gold(tasks, pool) == []
    texts, cut = [cruxeval.gold(t) for t in tasks], [False] * len(tasks)
    _, infos = score(tasks, texts, cut, pool)
  wrong = [info | task for info, task in zip(infos, tasks, strict=True)]
  wrong = [t for t in wrong if not t['right']]
  # Of a model's answer only literals are read; six published inputs are not
  # (a lambda, a call, a slice...).
  assert {t['id'] for t in wrong} == {
    f'sample_{n}-input' for n in (152, 239, 258, 344, 364, 378)
  }
  assert {t['verdict'] for t in wrong} == {'bad_answer'}
  assert all(info['typed'] for info in infos if info['right'])
