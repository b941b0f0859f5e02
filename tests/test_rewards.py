import math
import time

import pytest

from crjax import rewards
from crjax.execution import Pool, Result
from crjax.rewards import judge

CODE = 'def f(x, y=1):\n  return x + y'
OUTPUT = {
  'kind': 'output',
  'code': CODE,
  'entry': 'f',
  'args': '2, 3',
  'output': '5',
}
INPUT = OUTPUT | {'kind': 'input'}
IN_FORM = '<reasoning>r</reasoning>\n<answer>{}</answer>'


@pytest.fixture(scope='module')
def pool():
  with Pool(2) as pool:
    yield pool


def reward(pool, task, text, truncated=False):
  rewards_B, (info,) = rewards.score([task], [text], [truncated], pool)
  return float(rewards_B[0]), info


@pytest.mark.parametrize(
  ('text', 'answer', 'form'),
  [
    ('<reasoning>a</reasoning><answer>1</answer>', '1', True),
    ('\n<reasoning>\na\n</reasoning>\n<answer>\n1\n</answer>\n', '1', True),
    ('<reasoning>a</reasoning><answer>```python\n1\n```</answer>', '1', True),
    ('<answer>1</answer>', '1', False),
    ('<reasoning>a</reasoning>so<answer>1</answer>', '1', False),
    ('<reasoning>a</reasoning><answer>1</answer>bye', '1', False),
    ('<reasoning>a<answer>1</answer></reasoning>', '1', False),
    ('<answer>1</answer><reasoning>a</reasoning>', '1', False),
    (
      '<reasoning>a</reasoning><answer>1</answer><answer>2</answer>',
      '2',
      False,
    ),
    ('<answer>1<answer>2</answer>', '2', False),
    ('[ANSWER]1[/ANSWER]', '1', False),
    ('<reasoning>a</reasoning><answer>1', None, False),
    ('', None, False),
  ],
)
def test_the_last_answer_counts_and_the_form_is_one_of_each(text, answer, form):
  assert rewards.extract(text) == (answer, form)


@pytest.mark.parametrize(
  ('source', 'value'),
  [
    ("'a'", 'a'),
    ('[1, (2,), {3: None}]', [1, (2,), {3: None}]),
    ('-1.5', -1.5),
    ('1+2j', 1 + 2j),
    ('{1, 2}', {1, 2}),
    ('set()', set()),
    ('frozenset({1})', frozenset({1})),
    ('[set(), (frozenset({1}),)]', [set(), (frozenset({1}),)]),
    ("b'x'", b'x'),
    ("'" + '(' * 60 + "'", '(' * 60),
    ("'a' 'b'", 'ab'),
  ],
)
def test_literals(source, value):
  assert rewards.literal(source) == value


@pytest.mark.parametrize(
  'source',
  [
    '',
    'x',
    '1 +',
    '1; 2',
    'print(1)',
    '10**10**10',
    "'a' * 10**9",
    '[i for i in x]',
    "f'{1}'",
    '9' * 5000,  # Longer than an answer may be.
    '[' * 60 + ']' * 60,
    '-' * 3000 + '1',
    'set([1])',
    'frozenset(1, 2)',
    'frozenset(1)',
    'frozenset([[]])',
    '{**{}}',
    '{[]: 1}',
    'x = 1',
    "assert 1, 'no'",
    '\x00',
  ],
)
def test_anything_else_is_refused_and_never_run(source):
  with pytest.raises(ValueError):
    rewards.literal(source)


def test_equality_is_pythons_and_typed_equality_is_not():
  same = rewards.strict_equal
  assert same(1, True) and same(1, 1.0) and same({1: 2, 3: 4}, {3: 4, 1: 2})
  assert not same([1], (1,)) and not same(math.nan, math.nan)
  typed = rewards.typed_equal
  assert not typed(1, True) and not typed(1, 1.0) and not typed([1], [True])
  assert typed({1: [2], 'a': (3,)}, {'a': (3,), 1: [2]})
  assert not typed({1: 2}, {True: 2}) and not typed({(1,)}, {(True,)})
  assert typed({1, 'a'}, {'a', 1})


@pytest.mark.parametrize(
  ('answer', 'right'),
  [
    ('5', True),
    ('5.0', True),  # Python's equality; `typed` says otherwise.
    ('assert f(2, 3) == 5', True),
    ('f(2, 3) == 5', True),
    ('assert 5 == f(2,3)', True),
    ('6', False),
    ("'5'", False),
    ('assert f(1, 4) == 5', False),  # Another call.
    ('2 + 3', False),
    ('f(2, 3)', False),
    ('assert f(2, 3) == f(2, 3)', False),
    ('assert f(2, 3) != 6', False),
    ('assert True', False),
  ],
)
def test_output_answers(pool, answer, right):
  got, info = reward(pool, OUTPUT, IN_FORM.format(answer))
  assert got == right
  assert info['right'] == right
  assert info['format_ok']


@pytest.mark.parametrize(
  ('answer', 'right'),
  [
    ('f(2, 3)', True),
    ('f(4)', True),  # Any input that gives the output.
    ('f(x=1, y=4)', True),
    ('1, 4', True),
    ('1, y=4', True),
    ('4', True),
    ('assert f(0, 5) == 5', True),
    ('f(2)', False),
    ('f(2, 3, 4)', False),
    ("f('a')", False),
    ('g(2, 3)', False),
    ('f(*[2, 3])', False),
    ("f(**{'x': 2, 'y': 3})", False),
    ('f(2, 1 + 2)', False),
    ('f(2, 3) or 5', False),
    ('f(2), f(3)', False),
    ('2) or (5', False),
    ('', False),
  ],
)
def test_input_answers_are_tried(pool, answer, right):
  got, info = reward(pool, INPUT, IN_FORM.format(answer))
  assert got == right
  assert info['right'] == right


def test_only_the_parsed_arguments_reach_the_worker():
  seen = []

  class Recorder:
    def run(self, jobs):
      seen.extend(jobs)
      return []

  with pytest.raises(ValueError):  # No results for the job: zip is strict.
    rewards.score([INPUT], [IN_FORM.format('f( 0x2,"a")')], [False], Recorder())
  assert seen[0].args == "2, 'a'"
  assert '5' not in repr(seen)


def test_a_wrong_form_or_a_cut_completion_earns_nothing(pool):
  assert reward(pool, OUTPUT, '<answer>5</answer>')[0] == 0
  assert reward(pool, OUTPUT, '<answer>5</answer>')[1]['right']
  assert reward(pool, OUTPUT, IN_FORM.format('5'), truncated=True)[0] == 0
  assert reward(pool, OUTPUT, '')[1]['verdict'] == 'bad_answer'


def test_typed_is_logged_beside(pool):
  assert reward(pool, OUTPUT, IN_FORM.format('5.0'))[1]['typed'] is False
  assert reward(pool, OUTPUT, IN_FORM.format('5'))[1]['typed'] is True


def test_our_own_failure_is_no_reward_at_all():
  class Broken:
    def run(self, jobs):
      return [Result('infra', detail='no worker starts')]

  got, info = reward(Broken(), INPUT, IN_FORM.format('f(1)'))
  assert math.isnan(got)
  assert info['verdict'] == 'infra'


def test_a_program_that_hangs_on_an_input_is_just_wrong():
  task = INPUT | {'code': 'def f(x):\n  while x: pass\n  return 5'}
  with Pool(1, cpu_seconds=0.3) as pool:
    assert reward(pool, task, IN_FORM.format('f(1)'))[1]['verdict'] == 'timeout'
    assert reward(pool, task, IN_FORM.format('f(0)'))[0] == 1


@pytest.mark.parametrize(
  'answer',
  [
    f'assert f({"1+" * 1500}1) == 1',
    f'f({"-" * 2500}1) == 1',
    'frozenset([[1]])',
    f'{"[" * 150}{"]" * 150}',
    'lambda:' * 500 + '1',
    '0x' + 'f' * 4000,  # Has more digits than Python prints.
  ],
)
@pytest.mark.parametrize('task', [OUTPUT, INPUT])
def test_no_answer_costs_the_batch(pool, task, answer):
  texts = [IN_FORM.format(answer), IN_FORM.format('f(2, 3) == 5')]
  rewards_B, _ = rewards.score([task] * 2, texts, [False] * 2, pool)
  assert rewards_B.tolist() == [0, 1]


def test_a_repeated_tag_costs_linear_time():
  started = time.monotonic()
  assert rewards.extract('[ANSWER]' * 20000).text is None
  assert time.monotonic() - started < 5


def test_sets_reach_the_worker_in_one_order():
  args = judge.input_arguments("{'c', 'a', 'b'}, frozenset({2, 1}), set()", 'f')
  assert args == "{'a', 'b', 'c'}, frozenset({1, 2}), set()"
  assert judge.render(((), (1,), {'k': [1e999]})) == (
    "((), (1, ), {'k': [1e999]}, )"
  )


def test_the_arguments_are_rendered_by_us():
  args = judge.input_arguments("f([1,2 ],y= {'a':0x10})", 'f')
  assert args == "[1, 2], y={'a': 16}"
