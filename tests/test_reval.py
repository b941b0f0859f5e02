"""REval: files in its format, labels, its scorer's defects, consistency."""

import json
import subprocess
import sys

import pytest

from crjax import data
from crjax.evals import (
  completions,
  official,
  prompts,
  reval,
  reval_official,
  reval_score,
)
from crjax.execution import Pool
from tests.conftest import ROOT

# A class whose lines call each other, as in ClassEval, and what its test says.
CODE = """class Account:
    def __init__(self, start):
        self.total = start
        self.log = []

    def add(self, x):
        self.total = self.plus(x)
        self.log.append(x)
        if x > 5:
            self.total = 0
            return 'full'
        return 'ok'

    def plus(self, y):
        z = self.total + y
        return z"""
TEST = """import unittest

class AccountTestAdd(unittest.TestCase):
    def setUp(self):
        self.account = Account(1)

    def test_add(self):
        self.assertEqual(self.account.add(2), 'ok')
        self.assertTrue(self.account.total == 3)

    def test_more(self):
        self.assertEqual(1, 1)

class AccountTestFull(unittest.TestCase):
    def test_full(self):
        a = Account(1)
        self.assertEqual(a.add(9), 'full')
"""
PROGRAM = {
  'task_id': 'DREval/0',
  'entry_point': 'Account',
  'code': CODE,
  'inputs': [
    "assertEqual(self.account.add(2), 'ok')\n"
    'assertTrue(self.account.total == 3)\n',
    "a = Account(1)\nassertEqual(a.add(9), 'full')\n",
  ],
  'outputs': [],
  'test': TEST,
}
QUESTIONS = {
  'task_id': 'DREval/0',
  'idx': 0,
  'tasks': [
    {
      'input_idx': 0,
      'task': [
        {'lineno': 7, 'var': 'self.total'},
        {'lineno': 15, 'var': 'z'},
        {'lineno': 10, 'var': 'self.total'},
      ],
      'output_pred': 'assertEqual(self.account.add(2), ??)\nassertTrue(??)',
    },
    {
      'input_idx': 1,
      'task': [{'lineno': 10, 'var': 'self.total'}],
      'output_pred': 'a = Account(1)\nassertEqual(a.add(9), ??)',
    },
  ],
}
# The second assertion has a hole in the place of its whole argument.
PROGRAM['inputs'][0] = PROGRAM['inputs'][0].replace(
  'self.account.total == 3', 'True'
)


def write(folder, programs, questions):
  for name, rows in ((reval.DATA, programs), (reval.TASKS, questions)):
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (folder / name).write_text(text)
  return folder


@pytest.fixture(scope='module')
def pool():
  with official.pool(2) as some_pool:
    yield some_pool


@pytest.fixture(scope='module')
def sample(smoke_data, tmp_path_factory):
  """Programs of the factory and the class above, as REval's files."""
  folder = tmp_path_factory.mktemp('reval')
  programs, questions = [PROGRAM], [QUESTIONS]
  rows = data.read(smoke_data / 'rl_train.parquet', {'id', 'verify'})
  for row in [row for row in rows if row['kind'] == 'output'][:6]:
    verify = row['verify']
    lines = verify['code'].split('\n')
    asked = [
      {'lineno': i, 'var': line.split('=')[0].strip()}
      for i, line in enumerate(lines, 1)
      if ' = ' in line and line.split('=')[0].strip().isidentifier()
    ]
    name = f'DREval/{len(programs)}'
    call = f'{verify["entry"]}({verify["args"]})'
    questions.append(
      {
        'task_id': name,
        'idx': len(programs),
        'tasks': [
          {
            'input_idx': 0,
            'task': asked,
            'output_pred': f'assert {call} == ??',
          }
        ],
      }
    )
    programs.append(
      {
        'task_id': name,
        'entry_point': verify['entry'],
        'code': verify['code'],
        'inputs': [f'({verify["args"]},)'],
        'outputs': [verify['output']],
        'test': None,
      }
    )
  return write(folder, programs, questions)


@pytest.fixture(scope='module')
def frozen(sample, pool):
  found, lost = reval.freeze(reval.read(sample), pool)
  assert lost == []
  return [row | {'item': row['id']} for row in found]


def of(frozen, name):
  return next(q for q in frozen if q['id'] == f'DREval/0-{name}')


def test_labels_of_a_class_in_both_semantics(frozen):
  """Worked out by hand; defect 1: after line 7 comes a line of `plus`."""
  state = of(frozen, '0-0-state')
  assert state['official'] == ['1; int'] and state['corrected'] == ['3; int']
  path = of(frozen, '0-0-path')
  assert path['official'] == ['15'] and path['corrected'] == ['8']
  assert of(frozen, '0-1-state')['corrected'] == ['3; int']
  assert of(frozen, '0-2-coverage')['official'] == ['NO']
  assert of(frozen, '0-2-state')['official'] == ['Nil']
  assert of(frozen, '1-0-coverage')['corrected'] == ['YES']
  assert of(frozen, '1-0-path')['corrected'] == ['11']


def labelled(pool, code, given, line, var):
  """(official, corrected) labels of the state after a line of `f`."""
  program = {
    'task_id': 'DREval/0',
    'entry_point': 'f',
    'code': code,
    'inputs': [f'({given},)'],
    'outputs': ['None'],
    'test': None,
  }
  asked = [{'lineno': line, 'var': var}]
  entry = {'input_idx': 0, 'task': asked, 'output_pred': 'assert f() == ??'}
  task = {'task_id': 'DREval/0', 'idx': 0, 'tasks': [entry]}
  found, lost = reval.freeze([(program, task)], pool)
  assert not lost
  state = next(q for q in found if q['kind'] == 'state')
  return state['official'], state['corrected']


def test_a_comprehension_has_a_state_of_its_own_in_official_labels(pool):
  """Defect 2, before Python 3.12: its locals hide those of the function."""
  code = 'def f(xs):\n  return [x + 1 for x in xs]'
  official, corrected = labelled(pool, code, '[1]', 2, 'xs')
  assert corrected == ['[1]; list']
  inlined = sys.version_info >= (3, 12)
  assert official == (['[1]; list'] if inlined else ['Nil'])


def test_the_last_line_has_the_state_before_it_in_official_labels(pool):
  """Defect 3."""
  code = 'def f(xs):\n  xs[0] = 9'
  assert labelled(pool, code, '[1]', 2, 'xs[0]') == (['1; int'], ['9; int'])


def test_labels_of_a_long_loop_are_its_distinct_values(pool):
  """Defect 9: theirs is a list of every visit's value."""
  code = 'def f(n):\n  for i in range(n):\n    y = i % 2\n  return y'
  labels = ['0; int', '1; int']
  assert labelled(pool, code, '2000', 3, 'y') == (labels, labels)


def test_what_its_programs_import_is_there_if_it_is_installed():
  code = 'import numpy as np\ndef f(n):\n  y = int(np.sum([n, n]))\n  return y'
  with Pool(1, modules=['numpy']) as pool:
    official, corrected = labelled(pool, code, '2', 3, 'y')
  assert official == corrected == ['4; int']


def test_gold_answers_score_100(frozen, pool):
  reval_score.self_test(frozen, pool)
  wrong = of(frozen, '1-output') | {'gold': "a = 1\nassertEqual(a, 'x')"}
  with pytest.raises(ValueError, match=r'1 of \d+ gold .* official judge'):
    reval_score.self_test([*frozen, wrong], pool)


@pytest.mark.parametrize(
  ('name', 'answer', 'theirs', 'ours'),
  [
    ('0-0-coverage', 'YES', True, True),
    ('0-0-coverage', 'Yes, since it is called', True, False),
    ('0-0-coverage', 'It is: YES', False, False),
    ('0-0-coverage', 'NO', False, False),
    ('0-1-path', 'return z', True, True),
    ('0-1-path', '16', False, True),
    ('0-1-path', 'return z\nand so on', True, False),
    ('0-2-path', '-1', True, True),
    ('0-2-path', '', False, False),
    ('0-1-state', '3; int', True, True),
    ('0-1-state', '1 + 2; int', True, False),  # It is evaluated.
    ('0-1-state', "3; <class 'int'>", True, False),
    ('0-1-state', '3; integer', True, False),
    ('0-1-state', '3.0; float', False, False),
    ('0-1-state', 'True; bool', False, False),
    ('0-2-state', 'nil', True, False),
    ('0-2-state', 'Nil', True, True),
    ('1-output', "a = Account(1)\nassertEqual(a.add(9), 'full')", True, True),
    ('1-output', "assertEqual(a.add(9), 'full')", True, True),  # Padded.
    # Defect 6: nothing need be a literal.
    (
      '1-output',
      'a = Account(1)\nassertEqual(a.add(9), a.add(9))',
      True,
      False,
    ),
    # Defect 7: what is right already is made wrong.
    (
      '1-output',
      "a = Account(1)\nself.assertEqual(a.add(9), 'full')",
      False,
      False,
    ),
    ('1-output', "a = Account(1)\nassertEqual(a.add(9), 'ok')", False, False),
    # Defect 5: the right answer is refused.
    (
      '0-output',
      "assertEqual(self.account.add(2), 'ok')\nassertTrue(True)",
      False,
      True,
    ),
    (
      '0-output',
      "assertEqual(self.account.add(2), 'ok')\nassertTrue(1 == 1)",
      True,
      False,
    ),
    ('0-output', "assertTrue('assert')", False, False),
  ],
)
def test_its_scorer_and_ours(frozen, pool, name, answer, theirs, ours):
  question = of(frozen, name)
  text = f'[ANSWER]\n{answer}\n[/ANSWER]'
  (found,) = reval_score.verdicts([question], 'direct', [text], pool)
  assert found == {'official': theirs, 'strict': ours}


def test_thoughts_that_do_not_end_have_no_answer(frozen, pool):
  question, text = of(frozen, '0-2-coverage'), 'so it is [ANSWER]YES'
  (found,) = reval_score.verdicts([question], 'cot', [text], pool)
  assert found == {'official': True, 'strict': False}  # An empty one is NO.


def test_a_text_that_two_lines_share_asks_nothing_in_the_corrected_labels():
  code = 'def f(x):\n  x += 1\n  x += 1\n  return x'
  assert reval.ambiguous(code, {'line': 2}, ['3'])
  assert not reval.ambiguous(code, {'line': 4}, ['-1'])
  # Defect 4: its scorer takes any of them.
  assert reval_official.path(code, 'x += 1') == ['2', '3']


def question(group, kind, given):
  return {'id': f'{group}-{kind}', 'group': group, 'input': given, 'kind': kind}


@pytest.mark.parametrize(
  ('right', 'worth'),
  [
    ('1111', 100),
    ('1110', 50),
    ('1100', 25),
    ('1000', 12.5),
    ('0000', 0),
    ('1101', 0),
    ('0111', 0),
    ('1010', 0),
  ],
)
def test_incremental_consistency_of_one_line(right, worth):
  kinds = reval_score.TASKS
  rows = [
    (question('a' if k == 'output' else 'a-0', k, 'a'), r == '1')
    for k, r in zip(kinds, right, strict=True)
  ]
  assert reval_score.consistency(rows) == {'n': 1, 'score': worth}


def test_consistency_meets_the_output_of_the_same_input():
  """Defect 8: a port pairs them by position, so the order decides."""
  rows = []
  for given, right in (('a', True), ('b', False)):
    rows.append((question(given, 'output', given), right))
    for line in ('0', '1'):
      for kind in ('coverage', 'state', 'path'):
        rows.append((question(f'{given}-{line}', kind, given), True))
  expected = {'n': 4, 'score': 75.0}
  assert reval_score.consistency(rows) == expected
  assert reval_score.consistency(rows[::-1]) == expected
  # A line without a verdict on every task is in no score.
  assert reval_score.consistency(rows[1:])['n'] == 2


def test_constants_are_what_always_giving_them_scores(frozen, pool):
  for kind, constant in reval_score.CONSTANTS.items():
    some = [q for q in frozen if q['kind'] == kind]
    texts = [f'[ANSWER]{constant}[/ANSWER]'] * len(some)
    found = reval_score.verdicts(some, 'direct', texts, pool)
    report = reval_score.summarize(some, found)
    for mode in ('official', 'strict'):
      numbers = report[mode][kind]
      assert numbers['accuracy'] == numbers[f'always {constant}'] is not None


def test_f1_of_coverage():
  rows = [
    ({'kind': 'coverage', 'source': 'x', 'official': [gold]}, right)
    for gold, right in (
      *[('YES', True)] * 3,
      *[('YES', False)] * 1,
      *[('NO', False)] * 2,
      *[('NO', True)] * 4,
    )
  ]
  numbers = reval_score._task('coverage', 'official', rows)
  assert numbers['f1'] == pytest.approx(100 * 2 * 0.6 * 0.75 / (0.6 + 0.75))


@pytest.mark.parametrize('kind', ['coverage', 'path', 'state', 'output'])
def test_a_prompt_shows_the_line_and_not_the_answer(frozen, kind):
  asked = next(q for q in frozen if q['kind'] == kind)
  text = prompts.ask('reval', asked, 'zero_shot')[-1]['content']
  if kind == 'output':
    assert asked['asked'] in text and "'ok'" not in text.split('??')[-1]
  else:
    line = asked['code'].split('\n')[asked['line'] - 1]
    assert f'{asked["line"]}\t{line}' in text
  with pytest.raises(ValueError, match=f'no prompt .reval_{kind}_cot'):
    prompts.ask('reval', asked, 'cot')


def test_a_whole_evaluation_from_the_command_line(sample, tmp_path):
  run = lambda *command: subprocess.run(
    [sys.executable, '-m', *command],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  labels = tmp_path / 'labels.jsonl'
  done = run('crjax.evals.reval', f'--data={sample}', f'--out={labels}')
  assert done.returncode == 0, done.stderr
  questions = reval.load(labels)
  given = tmp_path / 'given.jsonl'
  with given.open('w') as file:
    for asked in questions:
      mode = 'corrected' if asked.get('corrected') else 'official'
      text = f'<answer>{reval_score.gold(asked, mode)}</answer>'
      file.write(json.dumps({'id': asked['id'], 'texts': [text]}) + '\n')
  out = tmp_path / 'out.json'
  done = run(
    'crjax.evaluate',
    '--benchmark=reval',
    '--prompt=zero_shot',
    f'--data={labels}',
    f'--completions={given}',
    f'--out={out}',
  )
  assert done.returncode == 0, done.stderr
  numbers = json.loads(out.read_text())['reval']['strict']
  assert numbers['average'] == 100
  assert numbers['consistency']['score'] == 100


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda p, q: p.pop('code'), "DREval_data.jsonl, line 1: field 'code'"),
    (lambda p, q: p.update(test=3), "field 'test' must be str or NoneType"),
    (lambda p, q: q.update(idx=9), "DREval_tasks.jsonl, line 1: field 'idx'"),
    (lambda p, q: q.update(task_id='x'), "field 'task_id' is 'x'"),
    (lambda p, q: q['tasks'][0].update(input_idx=9), "field 'input_idx'"),
    (
      lambda p, q: q['tasks'][0]['task'][0].update(lineno=99),
      "field 'lineno' is no line",
    ),
  ],
)
def test_a_file_that_is_not_as_it_should_be(tmp_path, change, message):
  program, questions = json.loads(json.dumps([PROGRAM, QUESTIONS]))
  change(program, questions)
  with pytest.raises(ValueError, match=message):
    reval.read(write(tmp_path, [program], [questions]))


def test_what_cannot_run_is_told(pool):
  broken = PROGRAM | {'code': 'import pandas\n' + CODE}
  found, lost = reval.freeze([(broken, QUESTIONS)], pool)
  assert found == []
  assert len(lost) == 2 and lost[0].startswith('DREval/0-0: 3 lines')


def test_a_variable_that_is_no_expression_is_named(pool):
  questions = json.loads(json.dumps(QUESTIONS))
  questions['tasks'][0]['task'][0]['var'] = 'not a name'
  with pytest.raises(ValueError, match="var 'not a name'"):
    reval.freeze([(PROGRAM, questions)], pool)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'kind': 'x'}, "line 2: field 'kind' must be one of"),
    ({'official': 'YES'}, "line 2: field 'official' must be list or NoneType"),
    ({'line': None}, "line 2: field 'line' must be int"),
    ({}, "line 2: field 'id' repeats"),
  ],
)
def test_labels_that_are_not_as_they_should_be(
  frozen, tmp_path, change, message
):
  row = of(frozen, '0-0-coverage')
  path = tmp_path / 'labels.jsonl'
  path.write_text(json.dumps(row) + '\n' + json.dumps(row | change))
  with pytest.raises(ValueError, match=message):
    reval.load(path)


def test_programs_without_labels_are_no_benchmark_yet(sample):
  with pytest.raises(ValueError, match='directory, and labels are asked for'):
    completions.load('reval', sample)
