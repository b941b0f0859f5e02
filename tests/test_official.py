"""Official scorers, defects included; the expected lists are theirs.

They were written down after running CRUXEval's `evaluate_score` (as of October
2024) on these very answers.
"""

import hashlib
import json
import os
import subprocess
import sys

import pytest

from crjax.evals import (
  completions,
  cruxeval,
  judging,
  official,
  prompts,
  stats,
)
from crjax.execution import Pool
from tests.conftest import ROOT

ADD = {
  'id': 'a',
  'item': 'a',
  'kind': 'output',
  'code': 'def f(x):\n    return x + 1',
  'entry': 'f',
  'args': '4',
  'output': '5',
}
SAME = ADD | {'code': 'def f(x):\n    return x', 'args': '(1, 2)'}
SAME |= {'output': '(1, 2)'}
GIVEN = ADD | {'kind': 'input'}
# (task, answers, the scorer's list, what typed says of each answer)
CASES = {
  '1, dropped answers shrink n': (
    ADD,
    ['5', 'f(4)', 'f(4)', 'f(4)'],
    [True],
    [True, False, False, False],
  ),
  '1, unless none passes': (ADD, ['6', 'f(4)'], [False, False], [False] * 2),
  '2, a call with a space': (ADD, ['f( 4)'], [True], [False]),
  '3, expressions': (
    ADD,
    ['0 or True', '0 or 5', '5 or 1/0', '4 + 1'],
    [True] * 4,
    [False] * 4,
  ),
  '3, a message behind a comma': (ADD, ["5, 'anything'"], [True], [False]),
  '4, a bare tuple': (SAME, ['1, 2'], [False], [True]),
  '6, True is 1 and 1.0': (
    ADD | {'code': 'def f(x):\n    return 1', 'output': '1'},
    ['True', '1.0', '1'],
    [True] * 3,
    [False, False, True],
  ),
  '5, f( in a comment': (GIVEN, ['5 # f('], [True], [False]),
  '5, f( in a string': (GIVEN, ["5 or 'f('"], [True], [False]),
  '5, anything that is equal': (GIVEN, ['5'], [False], [False]),
  'an object that equals all': (
    ADD,
    ["type('A', (), {'__eq__': lambda *_: True})()"],
    [True],
    [False],
  ),
  'an object of a module that equals all': (
    ADD,
    ["__import__('unittest.mock').mock.ANY"],
    [True],
    [False],
  ),
  'a chain of comparisons': (ADD, ['4 == 4 or 1'], [True], [False]),
  'a condition binds less than ==': (ADD, ['4 if 0 else 7'], [True], [False]),
  'another call that is not worked out': (ADD, ['f(5) or 1'], [True], [False]),
  'another call, of inputs': (GIVEN, ['f(6) or 1'], [True], [False]),
  'statements run': (
    ADD,
    ['5\nimport os', '5\nimport logging', '5\ny = [x]', '5\nassert 0'],
    [True, True, False, False],
    [False] * 4,
  ),
  'equal whatever the order or the type': (
    ADD | {'code': "def f(x):\n    return {'a': 1}", 'output': "{'a': 1}"},
    ["{'a': True}", "{'a': 1}"],
    [True, True],
    [False, True],
  ),
  'the sign of zero': (
    ADD | {'code': 'def f(x):\n    return 0.0', 'output': '0.0'},
    ['-0.0', '0', '0.0'],
    [True, True, True],
    [False, False, True],
  ),
  # What it gets right, so do we.
  'leaving the process': (
    ADD,
    ["__import__('sys').exit(0)", "__import__('os')._exit(0)"],
    [False] * 2,
    [False] * 2,
  ),
  'wrong all the same': (
    ADD,
    ['4', '4\nimport os', '(f := lambda x: 4)(4)', '4, 1', '4 and True', ''],
    [False] * 6,
    [False] * 6,
  ),
}
# Where an equal value is right for strict, as for the scorer: Python's equality
# is what is meant there, and typed is beside it.
EQUAL = (
  '6, True is 1 and 1.0',
  'equal whatever the order or the type',
  'the sign of zero',
)


@pytest.fixture(scope='module')
def pools():
  with Pool(1) as strict, official.pool(1) as theirs:
    yield strict, theirs


def verdicts(pools, task, answers, style='direct'):
  tasks = [task] * len(answers)
  cut = [False] * len(answers)
  infos = judging.judge('cruxeval', style, tasks, answers, cut, pools)
  scored = official.kept([info['official'] for info in infos])
  ours = [[info[name] for info in infos] for name in ('right', 'typed')]
  return scored, *ours


@pytest.mark.parametrize('name', CASES)
def test_each_defect_is_the_official_scorers_alone(pools, name):
  task, answers, theirs, ours = CASES[name]
  strict = theirs if name in EQUAL else ours
  assert verdicts(pools, task, answers) == (theirs, strict, ours)


def test_pass_at_5_of_one_wrong_answer_is_1():
  """Defect 7; ours needs as many samples as it asks about."""
  assert official.pass_at_k([False], 5) == 1.0
  assert official.pass_at_k([], 1) == 1.0
  with pytest.raises(ValueError, match='here: 1 sample'):
    stats.pass_at_k(1, 0, 5)


def processes():
  """This process and all below it."""
  found = subprocess.run(
    ['ps', '-eo', 'pid=,ppid='], capture_output=True, text=True, check=True
  )
  parents = dict(map(str.split, found.stdout.splitlines()))
  below = [str(os.getpid())]
  for pid in below:
    below += [child for child, parent in parents.items() if parent == pid]
  return below


def test_an_endless_answer_is_wrong_and_leaves_no_process(pools):
  """Defect 9: the scorer starts a manager process for each check."""
  endless = '[x for x in iter(int, 1)]'
  before = processes()
  assert verdicts(pools, ADD, [endless, '5']) == ([False, True],) * 3
  assert len(processes()) == len(before)


THOUGHT = '1. x is 4.\n2. f returns 5.\n[/THOUGHT]\n[ANSWER]\n'


@pytest.mark.parametrize(
  ('kind', 'style', 'completion', 'theirs', 'ours'),
  [
    ('output', 'direct', 'assert f(4) == 5\n', '5', 'assert f(4) == 5'),
    ('output', 'direct', '5', '5', '5'),
    ('output', 'cot', THOUGHT + 'assert f(4) == 5\n[/ANSWER] x', '5', None),
    ('output', 'cot', THOUGHT + 'f(4) == 5 == 5', '5', None),
    ('output', 'cot', 'x == 4, y', '4, y', None),
    ('output', 'cot', 'thought\n[/THOUGHT]\n', 'thought\n[/THOUGHT]', None),
    ('input', 'direct', 'assert f(4) == 5', 'f(4)', 'assert f(4) == 5'),
    ('input', 'direct', '[ANSWER]\nassert f(4) == 5', 'f(4)', None),
    ('input', 'cot', THOUGHT + 'assert f (4) == 5', 'f(4)', None),
    ('input', 'direct', 'f(4)', 'f(4)', 'f(4)'),
    (
      'output',
      'zero_shot',
      '<reasoning>r == s</reasoning><answer>\n```python\ndef f(x):\n'
      '  return x == 1\nassert f(4) == 5\n```\n</answer>',
      '5',
      None,
    ),
  ],
)
def test_where_the_answer_is_found(kind, style, completion, theirs, ours):
  assert official.extract('cruxeval', kind, style, completion) == theirs
  # What was cut out already is found again: nothing more is cut.
  again = official.extract('cruxeval', kind, style, theirs)
  assert style == 'zero_shot' or again == theirs
  said = judging.read(style, completion)
  assert type(said.format_ok) is bool
  if ours:
    assert said.text == ours


def test_what_follows_the_prompt_is_the_completion():
  prompt = prompts.ask('cruxeval', ADD, 'direct')
  text = prompt + 'assert f(4) == 5\n[/ANSWER]'
  assert official.extract('cruxeval', 'output', 'direct', text, prompt) == '5'
  assert judging.read('direct', text, prompt).text == 'assert f(4) == 5'


@pytest.mark.parametrize('style', prompts.STYLES)
@pytest.mark.parametrize('kind', ['output', 'input'])
def test_a_prompt_asks_and_does_not_tell(kind, style):
  task = ADD | {'kind': kind, 'code': 'def f(x):\n  return {x}', 'args': "'q'"}
  task['output'] = "{'q'}"
  asked = prompts.chat(prompts.ask('cruxeval', task, style))[-1]['content']
  assert task['code'] in asked
  hidden = f"f('q') == {'{'}'q'{'}'}"
  assert hidden not in asked
  assert ("f('q')" in asked) == (kind == 'output')
  assert ("{'q'}" in asked) == (kind == 'input')


# sha256 of what prompts.py of CRUXEval (commit of October 2024) and of
# LiveCodeBench makes of ADD, the first 12 digits.
OFFICIAL_PROMPTS = {
  ('cruxeval', 'output', 'direct'): '452361b0a676',
  ('cruxeval', 'output', 'cot'): 'e08cf309a6a3',
  ('cruxeval', 'input', 'direct'): '6e17835122c0',
  ('cruxeval', 'input', 'cot'): 'ecd432d97a45',
  ('livecodebench', 'output', 'direct'): '5fcbe826b03b',
  ('livecodebench', 'output', 'cot'): '1bf4f9fccb4c',
}


@pytest.mark.parametrize('name', OFFICIAL_PROMPTS)
def test_few_shot_prompts_are_the_published_ones(name):
  benchmark, kind, style = name
  text = prompts.ask(benchmark, ADD | {'kind': kind}, style)
  found = hashlib.sha256(text.encode()).hexdigest()[:12]
  assert found == OFFICIAL_PROMPTS[name]


def write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def command(*args):
  return subprocess.run(
    [sys.executable, '-m', 'crjax.evaluate', '--benchmark=cruxeval', *args],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


ITEMS = [
  {'id': f's{i}', 'code': 'def f(x):\n  return x', 'input': x, 'output': x}
  for i, x in enumerate(['1', "'a'", '[2]'])
]


def test_supplied_completions_from_the_command_line(tmp_path):
  """The path says input, the flag output: the flag counts (defect 8)."""
  data = write(tmp_path / 'input.jsonl', ITEMS)
  rows = [
    {'id': 's0', 'texts': ['assert f(1) == 1', 'assert f(1) == f(1)', '2']},
    {'id': 's1', 'texts': ["'b'"]},
    {'id': 'other', 'texts': ['1']},
  ]
  given = write(tmp_path / 'input_completions.jsonl', rows)
  out = tmp_path / 'out.json'
  done = command(
    '--direction=output',
    '--prompt=direct',
    f'--data={data}',
    f'--completions={given}',
    f'--out={out}',
  )
  assert done.returncode == 0, done.stderr
  result = json.loads(out.read_text())
  first, second, third = result['items']
  assert first['official'] == [True, False] and first['skipped'] == [1]
  assert first['strict'] == [True, False, False]
  assert second['official'] == second['strict'] == [False]
  assert third['strict'] == [] and result['missing'] == ['s2']
  assert result['unknown'] == ['other']
  assert result['official']['pass_at_1'] == pytest.approx(100 * 0.5 / 3)
  assert result['strict']['pass_at_1'] == pytest.approx(100 / 3 / 3)
  assert '16.7 official, 11.1 strict' in done.stdout


def test_nothing_is_reported_of_a_benchmark_whose_answers_are_wrong(tmp_path):
  wrong = [*ITEMS, ITEMS[0] | {'id': 'bad', 'output': '7'}]
  data = write(tmp_path / 'data.jsonl', wrong)
  given = write(tmp_path / 'given.jsonl', [{'id': 's0', 'texts': ['1']}])
  with pytest.raises(ValueError, match=r'1 of 4 .* wrong.*bad-input'):
    completions.run('cruxeval', 'input', 'cot', data=data, given=given, out='')


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('{', 'line 2: not JSON'),
    ('[1]', 'line 2: must be an object'),
    ('{"id": 3, "texts": []}', "line 2: field 'id'"),
    ('{"id": "b", "texts": [1]}', "line 2: field 'texts' must hold strings"),
    ('{"id": "b", "texts": []}', 'line 2: .* at least one'),
    ('{"id": "b", "x": ["1"], "y": ["2"]}', 'line 2: one field must be a list'),
    ('{"id": "a", "texts": ["1"]}', 'line 2: .* repeats'),
  ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
  path = tmp_path / 'given.jsonl'
  path.write_text('{"id": "a", "texts": ["1"]}\n' + line)
  with pytest.raises(ValueError, match=message):
    completions.read(path)


def test_published_answers_pass_the_official_scorer(assets, pools):
  tasks = cruxeval.load(assets / 'data' / 'cruxeval_first400.jsonl')
  completions.self_test('cruxeval', tasks, pools)
