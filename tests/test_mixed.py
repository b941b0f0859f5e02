"""Questions about steps: how they are asked, and what answers are worth."""

import pytest

from crjax import rewards, tokenizer
from crjax.execution import Pool

CODE = 'def f(x):\n    y = [x]\n    y.append(2)\n    return y'
STEPS = [
  {'kind': 'path', 'line': 2, 'occ': 1, 'var': '', 'gold': ['3']},
  {'kind': 'path', 'line': 4, 'occ': 1, 'var': '', 'gold': ['-1']},
  {'kind': 'state', 'line': 2, 'occ': 1, 'var': 'y', 'gold': ['[1]; list']},
  {'kind': 'state', 'line': 3, 'occ': 1, 'var': 'y', 'gold': ['[1, 2]; list']},
]
TASK = {'code': CODE, 'entry': 'f', 'args': '1', 'output': '[1, 2]'}
RIGHT = ['Q1: 3', 'Q2: -1', 'Q3: [1]; list', 'Q4: [1, 2]; list']
FORM = '<reasoning>\nr\n</reasoning>\n<answer>\n{}\n</answer>'


@pytest.fixture(scope='module')
def pool():
  with Pool(1) as made:
    yield made


@pytest.mark.parametrize(
  ('lines', 'worth'),
  [
    (['[1, 2]', *RIGHT], 1.0),
    (['assert f(1) == [1, 2]', *RIGHT], 1.0),
    (['[1, 2]', *reversed(RIGHT)], 1.0),
    (['[1, 2]', *RIGHT[:3]], 0.875),
    (['[1, 2]', *RIGHT[:2], 'Q3: [2]; list', 'Q4: [1, 2]; tuple'], 0.75),
    (['[1, 2]'], 0.5),
    (['[1, 2]', *RIGHT, 'Q5: 3', 'Q9: 3'], 1.0),
    (['(1, 2)', *RIGHT], 0.0),
    (['f(1)', *RIGHT], 0.0),
    (['assert f(1) == f(1)', *RIGHT], 0.0),
    (['[1, 2]', *RIGHT, RIGHT[0]], 0.0),
    (['[1, 2]', *RIGHT, 'and so on'], 0.0),
    (RIGHT, 0.0),
  ],
)
def test_steps_are_worth_something_behind_a_right_output(lines, worth, pool):
  task = TASK | {'kind': 'mixed', 'questions': STEPS}
  text = FORM.format('\n'.join(lines))
  rewards_B, (info,) = rewards.score([task], [text], [False], pool)
  assert rewards_B[0] == worth
  assert info['right'] == (worth == 1)
  if worth:
    assert sum(info['hits']) == 4 * info['steps']
  (cut,), _ = rewards.score([task], [text], [True], pool)
  bare, _ = rewards.score([task], [text[3:]], [False], pool)
  assert cut == bare[0] == 0


def test_each_right_step_is_known_by_its_place(pool):
  lines = ['[1, 2]', RIGHT[3], 'Q1: 4', RIGHT[1]]
  task = TASK | {'kind': 'mixed', 'questions': STEPS}
  text = FORM.format('\n'.join(lines))
  _, (info,) = rewards.score([task], [text], [False], pool)
  assert info['hits'] == [False, True, False, True]


@pytest.mark.parametrize('before', ['', '<answer>\nQ1: 9\n</answer>\n', 'é€😀'])
def test_the_lines_of_steps_are_found_in_a_completion(before):
  text = before + FORM.format(
    '\n'.join(['[1, 2]', '  Q3: x ', 'and', *RIGHT[:2]])
  )
  spans = rewards.line_spans(text)
  found = {k: text[start:end] for k, (start, end) in spans.items()}
  assert found == {3: '  Q3: x ', 1: RIGHT[0], 2: RIGHT[1]}
  assert rewards.line_spans('Q1: 3') == {}


@pytest.mark.parametrize('kind', ['coverage', 'path', 'state'])
def test_a_step_question_numbers_the_lines_and_hides_the_output(kind):
  question = {'kind': kind, 'line': 3, 'occ': 2, 'var': 'y'}
  system, user = tokenizer.messages(kind, **TASK, questions=[question])
  assert 'inside <answer>' in system['content']
  for i, line in enumerate(CODE.split('\n'), 1):
    assert f'{i} {line}\n' in user['content']
  assert 'f(1)' in user['content'] and 'line 3' in user['content']
  assert '[1, 2]' not in user['content']
  assert ('2nd time' in user['content']) == (kind != 'coverage')


def test_a_mixed_question_asks_for_the_output_and_each_step():
  text = tokenizer.messages('mixed', **TASK, questions=STEPS)[1]['content']
  assert 'assert f(1) == ??\nQ1: Which line' in text
  assert text.count('Q') == len(STEPS) and '[1, 2]' not in text


def test_ordinals():
  ask = lambda n: tokenizer.step_question(
    {'kind': 'path', 'line': 1, 'occ': n, 'var': ''}
  )
  for n, word in ((1, '1st'), (2, '2nd'), (3, '3rd'), (4, '4th'), (11, '11th')):
    assert f'the {word} time' in ask(n)
  assert '21st' in ask(21) and '112th' in ask(112) and '113th' in ask(113)
