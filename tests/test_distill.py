"""Which samples of a teacher become chains."""

import collections

import pytest

from crjax import rewards
from crjax.execution import Pool
from data_pipeline import cases, decontaminate, distill, factory, synth
from data_pipeline.chat import Answer
from tests.test_propose import filters

SETTINGS = {
  'model': 'm',
  'samples': 3,
  'shortest': 60,
  'longest': 6_000,
  'narrate': True,
}
GOOD = (
  '<reasoning>\nLine 1 makes x = 2, and line 2 returns x + 1, which is 3.\n'
  '</reasoning>\n<answer>\n3\n</answer>'
)


@pytest.fixture(scope='module')
def pool():
  with Pool(1) as found:
    yield found


@pytest.fixture(scope='module')
def told(pool):
  """Rows to train on, of all kinds, each with the chain of its trace."""
  programs = [synth.program('d', i) for i in range(28)]
  some = cases.pools(1)
  nothing = decontaminate.Hashes({'trees': [], 'pairs': [], 'functions': []})
  found = cases.collect(programs, some, filters(), nothing).programs
  for one in some:
    one.close()
  want = [
    {'split': 'sft_train', 'asked': a, 'program': p, 'case': p['cases'][0]}
    for p in found
    for a in p['cases'][0]['asks']
  ]
  return factory.make_part(want, pool, filters()['chains'])


@pytest.fixture(scope='module')
def rows(told):
  return [row for row in told if not fault_of(row['completion'], row)]


def fault_of(text, row):
  question, limits = row['prompt'][1]['content'], SETTINGS | {'longest': 99_999}
  return distill.fault(text, 'stop', question, limits)


def said(*texts, finish='stop'):
  return [Answer('k', text, finish, [1, 1], '') for text in texts]


def answer_of(row):
  return rewards.extract(row['completion']).text


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    (GOOD, ''),
    (GOOD.replace('<reasoning>\n', ''), 'a tag is missing'),
    (GOOD.replace('</answer>', ''), 'a tag is missing'),
    (GOOD.replace('Line', '<reasoning>Line'), 'a tag is doubled'),
    (f'{GOOD}\n<answer>4</answer>', 'a tag is doubled'),
    (f'Sure!\n{GOOD}', 'text outside the tags'),
    (f'{GOOD}\nI hope that helps.', 'text outside the tags'),
    (GOOD.replace('Line 1 makes x = 2, and', ''), ''),
    ('<reasoning>x</reasoning><answer>3</answer>', 'too short'),
    (GOOD.replace('x =', 'x = ' + '1 ' * 3_000), 'too long'),
    (GOOD.replace('makes', 'делает'), 'another language'),
    (GOOD.replace('makes', '得到'), 'another language'),
    (GOOD.replace('makes', 'façonne'), ''),
    (GOOD.replace('which', 'wait, let me look at that line again, ' * 9),
     'repetition'),
  ],
)  # fmt: skip
def test_a_sample_is_rejected_by_its_form(text, reason):
  assert distill.fault(text, 'stop', 'def f(x): ...', SETTINGS) == reason
  assert distill.fault(text, 'length', '', SETTINGS) == 'cut off'


def test_letters_of_the_question_are_no_other_language():
  text = GOOD.replace('x = 2', "x = 'дом'")
  assert distill.fault(text, 'stop', "f('модно')", SETTINGS) == ''
  assert distill.fault(text, 'stop', "f('мода')", SETTINGS) == ''
  assert distill.fault(text, 'stop', "f('a')", SETTINGS) != ''


def test_chains_of_traces_pass_and_their_repetitions_do_not(told, rows):
  # Loops in loops do say again what they said; a teacher's are dropped too.
  assert len(rows) > 0.9 * len(told) > 60
  for row in rows:
    head, inside, tail = row['completion'].partition('\n</reasoning>')
    reasoning = head.partition('\n')[2]
    again = '\n'.join([head, reasoning, reasoning]) + inside + tail
    assert fault_of(again, row) == 'repetition'


def test_thoughts_before_the_answer_are_left_out():
  assert distill.spoken(f'<think>\n<answer>hm\n</think>\n\n{GOOD}\n') == GOOD
  assert distill.spoken(GOOD) == GOOD


def test_the_teacher_is_asked_the_question_of_the_row(rows):
  for row in rows:
    system, user = distill.messages(row['prompt'])
    assert user == row['prompt'][1]
    assert system['content'].startswith(row['prompt'][0]['content'])


def test_the_shortest_right_sample_becomes_the_chain(rows, pool):
  longer = lambda text, n: text.replace('>\n', '>\n' + 'Now then.\n' * n, 1)
  answers = []
  for row in rows:
    gold = row['completion']
    answers += said(longer(gold, 2), longer(gold, 1), '')
  head, made = distill.taught(rows, answers, pool, SETTINGS)
  for row, new in zip(rows, made, strict=True):
    assert new == row | {
      'completion': longer(row['completion'], 1),
      'chain': 'm',
    }
  n = len(rows)
  assert +head['samples'] == {
    'kept': n,
    'right, not the shortest': n,
    'a tag is missing': n,
  }
  assert head['chains'] == {'of the teacher': n}


def test_nothing_wrong_is_ever_kept(rows, pool):
  """Every row gets the chains of others: kept is what happens to be right."""
  answers = []
  for i in range(len(rows)):
    answers += said(
      *(rows[(i + k) % len(rows)]['completion'] for k in (1, 2, 3))
    )
  head, made = distill.taught(rows, answers, pool, SETTINGS)
  sources = collections.Counter(row['chain'] for row in made)
  assert head['chains']['of the trace'] == sources['trace'] > len(rows) / 2
  assert head['samples']['wrong'] > len(rows)
  assert head['samples'].total() == 3 * len(rows)
  tasks = [{'kind': r['kind']} | r['verify'] for r in made]
  texts = [r['completion'] for r in made]
  worth, _ = rewards.score(tasks, texts, [False] * len(made), pool)
  assert (worth == 1).all()
  for row, new in zip(rows, made, strict=True):
    if new['chain'] == 'trace':
      assert new['completion'] == row['completion']
  question, _, sample = head['examples']['wrong'][0].partition('\n\n<reas')
  assert question in {row['prompt'][1]['content'] for row in rows} and sample


def test_rows_that_no_sample_solves_can_be_dropped(rows, pool):
  settings = SETTINGS | {'narrate': False}
  untold = rows[1] | {'split': 'rl_train'}
  answers = said(rows[0]['completion'], '', '') + said('', '', '')
  some = [rows[0], untold, rows[2]]
  head, made = distill.taught(some, answers, pool, settings)
  assert made == [rows[0] | {'chain': 'm'}, untold]
  assert head['chains'] == {'of the teacher': 1, 'dropped': 1}
  head, made = distill.taught([untold], [], pool, settings)
  assert made == [untold] and not +head['samples'] + head['chains']
