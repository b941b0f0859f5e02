import collections
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


def test_programs_that_eat_memory_cost_nobody_but_themselves(pool):
  """Many at once, among honest ones: wrong, not unjudged, and no one ends."""
  bombs = [
    "return 'a' * 10**10",
    'a = [x]\n  while True: a.extend(a)',
    'return [bytearray(1 << 20) for _ in range(1 << 20)]',
    'f.x = f(x)',  # Deep, not wide.
  ]
  bad = [INPUT | {'code': f'def f(x, y=1):\n  {body}'} for body in bombs]
  tasks = 2 * [*bad, INPUT]
  texts = [IN_FORM.format('2, 3')] * len(tasks)
  rewards_B, infos = rewards.score(tasks, texts, [False] * len(tasks), pool)
  assert rewards_B.tolist() == 2 * [0, 0, 0, 0, 1]
  verdicts = [info['verdict'] for info in infos]
  assert verdicts == 2 * ['memory', 'memory', 'memory', 'exception', 'pass']


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
    ('inf', math.inf),
    ('deque([1])', collections.deque([1])),
    ("Counter({'a': 1})", collections.Counter('a')),
    ('1, 2', (1, 2)),
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
    '[' * 70 + ']' * 70,
    'dict(a=1)',
    'list(range(9))',
    '(list("ab"), 1)',
    'deque(list("ab"))',
    'Ellipsis',
    '...',
    'True if 1 else 0',
    '1 if 0 else 2',
    '-"a"',
    '1 + 1',
    '1 == 1',
    'lambda: 1',
    '(x := 1)',
    '[*[1]]',
    '1 .real',
    "__import__('os')",
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


@pytest.mark.parametrize(
  ('said', 'output', 'right', 'typed'),
  [
    ('1', 'True', True, False),
    ('1', '1.0', True, False),
    ('[1]', '[True]', True, False),
    ('{1: 2, 3: 4}', '{3: 4, 1: 2}', True, True),
    ('{1: 2}', '{True: 2}', True, False),
    ('{(1,)}', '{(True,)}', True, False),
    ("{1, 'a'}", "{'a', 1}", True, True),
    ('-0.0', '0.0', True, False),
    ('0.1', '0.1', True, True),
    ('[1]', '(1,)', False, False),
    ('nan', 'nan', False, False),
    ('[nan]', '[nan]', False, False),
    ("'1'", '1', False, False),
    ("b'a'", "'a'", False, False),
    ('0.30000000000000004', '0.3', False, False),
  ],
)
def test_equality_is_pythons_and_typed_on_request(said, output, right, typed):
  task, text = OUTPUT | {'output': output}, IN_FORM.format(said)
  for mode, wanted in (('py', right), ('typed', typed)):
    rewards_B, (info,) = rewards.score(
      [task], [text], [False], Nothing(), mode=mode
    )
    assert rewards_B[0] == info['right'] == wanted
    assert info['typed'] == typed


class Nothing:
  """A pool for answers that need none: it would fail on any job."""

  def run(self, jobs):
    assert not jobs
    return []


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
    ('def f(x, y=1):\n  return x + y\nassert f(2, 3) == 5', True),
    ('from math import pi\nassert f(2, 3) == 5', True),
    ('assert f(2, 3) == (\n  5\n)', True),
    ('def f(*a):\n  return 6\nassert f(2, 3) == 6', False),
    # Answers that public graders take for right, and more of their kind.
    (' f( 2, 3)', False),
    ('f(2, 3) or 1', False),
    ('0 or True', False),
    ('6 or True', False),
    ("6, 'anything'", False),
    ("assert f(2, 3) == 5, 'x'", False),
    ("assert (f(2, 3) == 5, 'x')", False),
    ('assert f(2, 3) == 5 or True', False),
    ('assert True or f(2, 3)', False),
    ('assert f(2, 3) == 5 == 5', False),
    ('assert not f(2, 3) == 6', False),
    ('5 if 1 else 7', False),
    ('6 == 6 or 1', False),
    ("type('A', (), {'__eq__': lambda s, o: True})()", False),
    ("__import__('unittest.mock').mock.ANY", False),
    ('AlwaysEqual()', False),
    ('5\nimport os', False),
    ('f = lambda *a: 5\nassert f(2, 3) == 5', False),
    ('assert f(2, 3) == 5\nassert f(2, 3) == 5', False),
    ('import sys; sys.exit(0)', False),
    ('pass', False),
    ('[5]', False),
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
    ('f(2, 3) or 5', False),
    ('f(0) or 5', False),
    ('9 #f(', False),
    ('4) # (', False),
    ('4 # four', True),
    ('assert f(4) == 5', True),
    ('assert f(4) == 6', False),  # Another output than the one asked for.
    ('assert f(0) == 1', False),
    ('assert 5 == f(4)', True),
    ('assert f(4) == f(4)', False),
    ("assert f(4) == 5, 'x'", False),
    ('5 == 5', False),
    ('f(9**9)', False),
    ("f('a' * 10**10)", False),
    ('f(x=4, x=4)', False),
    ('f(int("4"))', False),
    ('f(sum(range(3)), 2)', False),
    ('f(*[4])', False),
    ('f((x := 4))', False),
    ('f(4)(5)', False),
    ('f.__call__(4)', False),
    ('f(4).real', False),
    ('f(dict(a=1))', False),
    ("__import__('os')._exit(0)", False),
    ('pass', False),
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


def test_the_arguments_are_rendered_by_us_and_sets_in_one_order():
  said = "f({'c', 'a', 'b'}, frozenset({2, 1}), y=[0x10,inf])"
  assert judge.arguments(INPUT, said) == (
    "{'a', 'b', 'c'}, frozenset({1, 2}), y=[16, inf]"
  )
  assert judge.arguments(INPUT, 'set(), ()') == 'set(), ()'


# Lines:   1          2            3                 4              5
STEPPED = 'def f(x):\n  y = x + 1\n  for _ in range(2):\n    y += 1\n  return y'


def step(kind, gold, code=STEPPED):
  return {'kind': kind, 'code': code, 'entry': 'f', 'args': '1', 'gold': gold}


@pytest.mark.parametrize(
  ('task', 'answer', 'verdict'),
  [
    (step('coverage', ['YES']), 'YES', 'pass'),
    (step('coverage', ['YES']), 'yes', 'pass'),
    (step('coverage', ['YES']), 'NO', 'wrong'),
    (step('coverage', ['NO']), 'NO', 'pass'),
    (step('coverage', ['YES']), 'Yes, because it is', 'bad_answer'),
    (step('coverage', ['YES']), 'YES NO', 'bad_answer'),
    (step('coverage', ['YES']), 'True', 'bad_answer'),
    (step('path', ['3']), 'for _ in range(2):', 'pass'),
    (step('path', ['3']), '3', 'pass'),
    (step('path', ['3', '5']), 'return y', 'pass'),
    (step('path', ['3']), '-1', 'wrong'),
    (step('path', ['3']), 'y += 1', 'wrong'),
    (step('path', ['-1']), '-1', 'pass'),
    (step('path', ['3']), 'for', 'bad_answer'),
    (step('path', ['3']), '3 or 5', 'bad_answer'),
    (step('path', ['3']), '3, 5', 'bad_answer'),
    (step('path', ['3']), '1e0', 'bad_answer'),
    (step('path', ['3']), '3' * 5000, 'bad_answer'),
    (step('path', ['2'], 'def f(x):\n  x\n  x'), 'x', 'bad_answer'),
    (step('path', ['2'], 'def f(x):\n  x\n\n  y'), '', 'bad_answer'),
    (step('state', ['6; int', '8; int']), '8; int', 'pass'),
    (step('state', ['6; int']), '6;int', 'pass'),
    (step('state', ['6; int']), '7; int', 'wrong'),
    (step('state', ['6; int']), '6.0; float', 'wrong'),
    (step('state', ['1; int']), 'True; bool', 'wrong'),
    (step('state', ['True; bool']), 'True; int', 'bad_answer'),
    (step('state', ['6; int']), '6; str', 'bad_answer'),
    (step('state', ['6; int']), '6', 'bad_answer'),
    (step('state', ['6; int']), 'Nil', 'wrong'),
    (step('state', ['Nil']), 'Nil', 'pass'),
    (step('state', ['Nil']), 'None; NoneType', 'wrong'),
    (step('state', ['None; NoneType']), 'None; NoneType', 'pass'),
    (step('state', ['None; NoneType']), 'None; object', 'bad_answer'),
    (step('state', ["'a;b'; str"]), "'a;b'; str", 'pass'),
    (step('state', ["'a;b'; str"]), "'a;b'", 'bad_answer'),
    (step('state', ["'6'; str"]), '6; str', 'bad_answer'),
    (step('state', ['[1, 2]; list']), '[1,2]; list', 'pass'),
    (step('state', ['[1, 2]; list']), '[1,\n2]; list', 'pass'),
    (step('state', ['[1, 2]; list']), '(1, 2); tuple', 'wrong'),
    (step('state', ['{1, 2}; set']), '{2, 1}; set', 'pass'),
    (step('state', ['{1: 2}; dict']), '{True: 2}; dict', 'wrong'),
    (step('state', ['6; int']), '3 + 3; int', 'bad_answer'),
    (step('state', ['6; int']), 'y; int', 'bad_answer'),
    (step('state', ['6; int']), '6 if 1 else 8; int', 'bad_answer'),
    (step('state', ['6; int']), 'nan; float', 'bad_answer'),
    (step('state', ['6; int']), ';' * 4000, 'bad_answer'),
    (step('state', ['6; int']), '6' + ' ;' * 2000 + 'int', 'bad_answer'),
  ],
)
def test_answers_about_steps(task, answer, verdict):
  text = IN_FORM.format(answer)
  rewards_B, (info,) = rewards.score([task], [text], [False], Nothing())
  assert info['verdict'] == verdict
  assert rewards_B[0] == info['right'] == (verdict == 'pass')


def test_one_batch_holds_questions_of_all_kinds(pool):
  tasks = [OUTPUT, step('path', ['3']), INPUT, step('coverage', ['NO'])]
  said = ['5', '4', 'f(4)', 'NO']
  texts = [IN_FORM.format(x) for x in said]
  rewards_B, infos = rewards.score(tasks, texts, [False] * 4, pool)
  assert rewards_B.tolist() == [1, 0, 1, 1]
  assert len({tuple(info) for info in infos}) == 1  # One shape of row.


def test_every_completion_counts():
  # A grader that drops the echo of the call from n gives 3 of 3 here.
  texts = [IN_FORM.format(x) for x in ('5', 'f(2, 3)', 'f(2, 3)', 'f(2, 3)')]
  rewards_B, _ = rewards.score([OUTPUT] * 4, texts, [False] * 4, Nothing())
  assert rewards_B.tolist() == [1, 0, 0, 0]


def test_a_task_that_is_broken_is_no_verdict_on_an_answer():
  task = OUTPUT | {'output': '<object at 0x7f>'}
  with pytest.raises(ValueError, match='task with the output'):
    rewards.score([task], [IN_FORM.format('5')], [False], Nothing())


HOSTILE = [
  '(' * 3000 + ')' * 3000,
  '[' * 63 + '1' + ']' * 63,
  '{1:' * 800 + '1' + '}' * 800,
  '-' * 4000 + '1',
  '~' * 4000 + '1',
  'not ' * 1000 + '1',
  '1' + '+1' * 2000,
  '1' + ' if 1 else 1' * 300,
  'lambda:' * 500 + '1',
  'a.' * 2000 + 'a',
  'f' + '(1)' * 1300,
  'f(' * 1300 + ')' * 1300,
  '9' * 4096,
  '0x' + 'f' * 4000,
  '1e' + '9' * 4000,
  '9**9**9**9',
  "'a' * 10**10",
  '[0] * 10**9',
  'range(10**18)',
  'list(range(10**8))',
  'bytearray(10**10)',
  'set(range(9999))',
  'Counter(range(9999))',
  'deque([deque([deque([1])])])',
  "f'{1:{9**9}}'",
  "f'{" * 30 + '1' + "}'" * 30,
  "'" * 4000,
  '"""' * 1300,
  "'\\" * 2000,
  '\x00' * 100,
  '\ud800',
  "'\ud800'",
  '\u202e5',
  '\uff15',
  '5\x0c',
  'x' * 10**6,
  '1,' * 500_000,
  '{' + '1,' * 2000 + '}',
  '{' + '1:1,' * 1000 + '}',
  "{'a': 1, **{'b': 2}}",
  'yield 1',
  'await f(1)',
  'async def f(): pass',
  'class f: pass',
  '@f\ndef g(): pass\nassert f(2, 3) == 6',
  'assert f(2, 3) == 6 # == 5',
  'if 1:\n' + ''.join(' ' * i + 'if 1:\n' for i in range(1, 80)),
  '#' * 4000,
  '\n' * 4000,
  '5;' * 2000,
  '5\' " ',
  '</answer>5<answer>',
  '<answer>' * 500,
  '```python\n' * 300,
]


@pytest.mark.parametrize('answer', HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_wrong_fast_and_costs_nobody_else(pool, answer):
  kinds = [
    OUTPUT | {'output': "'no'"},
    INPUT | {'output': "'no'"},
    step('coverage', ['YES']),
    step('path', ['3']),
    step('state', ['6; int']),
    step('state', ['6; int']),
  ]
  texts = [IN_FORM.format(answer)] * 5 + [IN_FORM.format(f'{answer}; int')]
  began = time.process_time()
  rewards_B, infos = rewards.score(kinds, texts, [False] * 6, pool)
  assert time.process_time() - began < 1
  assert rewards_B.tolist() == [0] * 6
  allowed = {'bad_answer', 'wrong', 'exception', 'output_limit', 'unsupported'}
  assert {info['verdict'] for info in infos} <= allowed
  assert rewards.score([OUTPUT], [IN_FORM.format(5)], [False], pool)[0] == [1]


def test_a_huge_completion_is_read_in_linear_time():
  for text in ('<answer>' + '[' * 10**7, '<reasoning>' + ' ' * 10**7):
    began = time.process_time()
    rewards_B, _ = rewards.score([OUTPUT], [text], [False], Nothing())
    assert rewards_B[0] == 0
    assert time.process_time() - began < 5


def test_published_inputs_may_be_expressions_and_others_may_not(pool):
  task = INPUT | {'code': CODE + '\ng = 3', 'output': '5'}
  for answer, right in (('f(g, 1 + 1)', 1), ('f(*[g, 2])', 1), ('f(g)', 0)):
    text = IN_FORM.format(answer)
    assert rewards.score([task], [text], [False], pool)[0] == [0]
    assert rewards.score([task], [text], [False], pool, published=True)[0] == [
      right
    ]
