"""Questions whose answers were worked out by hand, not by running anything."""

import collections
import json

import pytest

from crjax import rewards
from crjax.execution import Job, Pool, labels, literals

PROGRAMS = {
  # The worked example of the definitions; line 1 is `def f`.
  'helper': (
    """def f(xs, k):
    total = None
    out = []
    for x in xs:
        if x > k:
            total = h(x)
            out.append(x * 2)
    ys = [y + 1 for y in out]
    return ys

def h(v):
    w = v + 1
    return w""",
    '[1, 5, 7], 3',
    '[11, 15]',
  ),
  'recursion': (
    """def f(n):
  if n <= 1:
    return 1
  below = f(n - 1)
  return n * below""",
    '3',
    '6',
  ),
  'exceptions': (
    """def f(xs):
  seen = []
  for x in xs:
    try:
      y = 6 // x
      seen.append(y)
    except ZeroDivisionError as e:
      seen.append(None)
      continue
    finally:
      last = x
    y += 1
  return seen, last""",
    '[3, 0, 2]',
    '([2, None, 3], 2)',
  ),
  'whiles': (
    """def f(n):
  steps = 0
  while n != 1:
    if n % 2:
      n = 3 * n + 1
    else:
      n //= 2
    steps += 1
    if steps > 9:
      break
  else:
    steps = -steps
  return steps""",
    '3',
    '-7',
  ),
  'nested': (
    """def f(a):
  b = a * 2

  def g(c):
    nonlocal b
    b += c
    return b

  d = g(1) + g(2)
  pairs = {
    k: v
    for k, v in zip('ab', [b, d])
  }
  key = lambda p: -p[1]
  top = sorted(pairs.items(), key=key)[0]
  return top""",
    '5',
    "('b', 24)",
  ),
  'generator': (
    """def f(n):
  total = 0
  for v in g(n):
    total += v
  return total

def g(n):
  i = 0
  while i < n:
    yield i * i
    i += 1""",
    '3',
    '5',
  ),
  'object': (
    """class Account:
  def __init__(self):
    self.total = 0
    self.__log = []

  def add(self, x):
    self.total += x
    self.__log.append(x)
    return self

def f(xs):
  account = Account()
  for x in xs:
    account.add(x)
  grid = [[0, 1], [2, 3]]
  i = 1
  grid[i - 1][i] = account.total
  return grid""",
    '[4, 5]',
    '[[0, 9], [2, 3]]',
  ),
}

# (program, kind, line, variable, occurrence) -> right answers, None: none.
QUESTIONS = [
  ('helper', 'coverage', 6, '', None, ['YES']),
  ('helper', 'coverage', 12, '', None, ['YES']),
  ('helper', 'coverage', 11, '', None, None),  # A `def` is no question.
  ('helper', 'coverage', 10, '', None, None),  # Nor is an empty line.
  ('helper', 'path', 6, '', 1, ['7']),  # In its own frame, not line 12.
  ('helper', 'path', 9, '', None, ['-1']),
  ('helper', 'path', 4, '', None, ['5', '8']),
  ('helper', 'path', 4, '', 4, ['8']),  # Three passes, then the end.
  ('helper', 'path', 5, '', 1, ['4']),  # 1 > 3 is false.
  ('helper', 'path', 5, '', 4, None),  # It runs three times.
  ('helper', 'path', 13, '', 1, ['-1']),
  ('helper', 'state', 6, 'total', 1, ['6; int']),
  ('helper', 'state', 6, 'total', 2, ['8; int']),
  ('helper', 'state', 6, 'total', None, ['6; int', '8; int']),
  ('helper', 'state', 2, 'total', None, ['None; NoneType']),
  ('helper', 'state', 8, 'ys', None, ['[11, 15]; list']),
  ('helper', 'state', 8, 'y', None, None),  # Of the comprehension alone.
  ('helper', 'state', 4, 'x', 4, ['7; int']),  # The last pass leaves it.
  ('helper', 'state', 2, 'out', None, None),  # Not yet a variable.
  ('helper', 'state', 12, 'w', 2, ['8; int']),
  ('recursion', 'coverage', 3, '', None, ['YES']),
  ('recursion', 'path', 2, '', None, ['3', '4']),
  ('recursion', 'path', 4, '', 1, ['5']),
  ('recursion', 'path', 3, '', None, ['-1']),
  ('recursion', 'state', 4, 'below', 1, ['2; int']),  # n == 3: f(2) is 2.
  ('recursion', 'state', 4, 'below', 2, ['1; int']),  # n == 2, starts later.
  ('recursion', 'state', 2, 'n', 3, ['1; int']),
  ('exceptions', 'coverage', 8, '', None, ['YES']),
  ('exceptions', 'path', 4, '', None, ['5']),
  ('exceptions', 'path', 5, '', 2, None),  # It raises.
  ('exceptions', 'path', 5, '', None, ['6']),
  ('exceptions', 'path', 6, '', 1, ['11']),
  ('exceptions', 'path', 9, '', None, ['11']),  # `finally` before the loop.
  ('exceptions', 'path', 11, '', None, ['3', '12']),
  ('exceptions', 'path', 11, '', 2, ['3']),
  ('exceptions', 'path', 3, '', 4, ['13']),
  ('exceptions', 'state', 8, 'seen', None, ['[2, None]; list']),
  ('exceptions', 'state', 12, 'y', None, ['3; int', '4; int']),
  ('exceptions', 'state', 8, 'y', None, ['3; int']),  # Of the pass before.
  ('exceptions', 'state', 9, 'e', None, None),  # Deleted with its block.
  ('whiles', 'coverage', 10, '', None, ['NO']),
  ('whiles', 'coverage', 11, '', None, None),  # `else:` does not run.
  ('whiles', 'coverage', 12, '', None, ['YES']),
  ('whiles', 'path', 10, '', None, ['-1']),  # Never runs.
  ('whiles', 'path', 3, '', 8, ['12']),  # 3 10 5 16 8 4 2 | 1
  ('whiles', 'path', 4, '', 3, ['5']),  # n is 5.
  ('whiles', 'path', 9, '', None, ['3']),
  ('whiles', 'state', 5, 'n', None, ['10; int', '16; int']),
  ('whiles', 'state', 7, 'n', 3, ['4; int']),  # 5, 8, 4: of 10, 16, 8.
  ('whiles', 'state', 10, 'steps', None, ['Nil']),
  ('whiles', 'state', 12, 'steps', None, ['-7; int']),
  ('nested', 'coverage', 6, '', None, ['YES']),
  ('nested', 'path', 2, '', None, ['4']),  # Next is the `def`, as it runs.
  ('nested', 'path', 9, '', None, ['10']),  # Not into g.
  ('nested', 'path', 10, '', None, ['14']),  # A comprehension is one line.
  ('nested', 'state', 6, 'b', None, ['11; int', '13; int']),
  ('nested', 'state', 9, 'd', None, ['24; int']),
  ('nested', 'state', 9, 'b', None, ['13; int']),
  ('nested', 'state', 10, 'pairs', None, ["{'a': 13, 'b': 24}; dict"]),
  ('nested', 'state', 14, 'key', None, None),  # A function has no literal.
  ('generator', 'coverage', 11, '', None, ['YES']),
  ('generator', 'path', 3, '', 4, ['5']),
  ('generator', 'path', 10, '', None, None),  # It pauses.
  ('generator', 'path', 11, '', None, ['9']),
  ('generator', 'path', 9, '', 4, ['-1']),
  ('generator', 'state', 4, 'total', None, ['0; int', '1; int', '5; int']),
  ('generator', 'state', 11, 'i', 2, ['2; int']),
  ('object', 'state', 7, 'self.total', None, ['4; int', '9; int']),
  (
    'object',
    'state',
    13,
    'account.total',
    None,
    ['0; int', '4; int', '9; int'],
  ),
  ('object', 'state', 8, 'self.__log', 2, ['[4, 5]; list']),
  ('object', 'state', 8, 'self.__log[0]', None, ['4; int']),
  ('object', 'state', 8, 'self', None, None),
  ('object', 'state', 17, 'grid[i - 1][i]', None, ['9; int']),
  ('object', 'state', 17, 'grid[i - 1], i', None, ['([0, 9], 1); tuple']),
  ('object', 'path', 14, '', None, ['13']),
  ('object', 'coverage', 9, '', None, ['YES']),
]

# What REval's published labels say instead, as its own definitions go.
IN_REVAL = [
  ('helper', 'path', 6, '', None, ['12']),  # Into the function called.
  ('helper', 'path', 13, '', None, ['7']),  # And back.
  ('helper', 'path', 9, '', None, ['-1']),
  ('helper', 'state', 6, 'total', None, ['Nil']),  # The locals of h.
  ('helper', 'state', 6, 'v', None, ['5; int', '7; int']),
  ('helper', 'state', 2, 'total', None, ['None; NoneType']),
  ('helper', 'state', 8, 'ys', None, ['[11, 15]; list']),
  ('helper', 'coverage', 11, '', None, ['NO']),
  ('helper', 'coverage', 6, '', None, ['YES']),
  ('recursion', 'path', 4, '', None, ['2']),  # Both times into the call.
  (
    'recursion',
    'path',
    5,
    '',
    None,
    ['-1'],
  ),  # Both frames' line 5 is one state.
  ('recursion', 'state', 4, 'below', None, ['Nil']),  # Locals of the callee.
  ('recursion', 'state', 5, 'below', None, ['2; int']),
  ('exceptions', 'path', 5, '', None, ['6', '7']),  # Also where it raised.
  ('object', 'state', 17, 'grid[i - 1][i]', None, ['Nil']),
  ('object', 'state', 8, 'self.__log', None, ['Nil']),
  ('object', 'state', 14, 'account', None, ['Nil']),  # Locals of `add`.
]


@pytest.fixture(scope='module')
def traces():
  jobs = [
    Job(code, 'f', args, trace=True) for code, args, _ in PROGRAMS.values()
  ]
  with Pool(1) as pool:
    results = pool.run(jobs)
  return dict(zip(PROGRAMS, results, strict=True))


@pytest.mark.parametrize('name', PROGRAMS)
def test_the_programs_return_what_was_worked_out(traces, name):
  assert traces[name].value == PROGRAMS[name][2]


@pytest.mark.parametrize('question', QUESTIONS, ids=str)
def test_questions_answered_by_hand(traces, question):
  assert answer(traces, question) == question[-1]


@pytest.mark.parametrize('question', IN_REVAL, ids=str)
def test_what_reval_would_answer(traces, question):
  assert answer(traces, question, 'reval') == question[-1]


def answer(traces, question, mode='corrected'):
  name, kind, line, var, occ, _ = question
  asked = {'kind': kind, 'line': line, 'var': var, 'occ': occ}
  code = PROGRAMS[name][0]
  return labels.gold(traces[name].trace, code, asked, mode)


def test_there_are_enough_questions_of_each_kind():
  kinds = [kind for _, kind, *_ in QUESTIONS]
  assert len(kinds) >= 50
  assert min(kinds.count(k) for k in ('coverage', 'path', 'state')) >= 12


def test_a_line_of_a_lambda_or_a_loop_in_an_expression_counts_as_run():
  code = """def f(xs):
  key = (
    lambda x:
      -x
  )
  out = sum(
    x
    for x in xs
  )
  ys = [
    x
    for x in xs
  ]
  return sorted(xs, key=key), out, ys"""
  with Pool(1) as pool:
    (result,) = pool.run([Job(code, 'f', '[1, 2]', trace=True)])
  visits = labels.corrected(result.trace, code)
  assert {v.frame for v in visits} == {0}
  for line in (2, 6, 10, 14):
    assert labels.coverage(result.trace, code, line)
  assert labels.path(result.trace, code, 10) == [14]


def test_labels_of_real_programs_pass_their_judges(assets):
  path = assets / 'data' / 'cruxeval_first400.jsonl'
  items = [json.loads(line) for line in path.read_text().splitlines()]
  literal = [x for x in items if readable(x['input'])]
  assert len(literal) == 395  # The others hold calls, names and lambdas.
  jobs = [Job(x['code'], 'f', x['input'], trace=True) for x in literal]
  with Pool(2) as pool:
    results = pool.run(jobs)
  tasks, texts, seen = [], [], collections.Counter()
  for item, result in zip(literal, results, strict=True):
    assert result.value == item['output']  # Traced as without.
    code = item['code']
    for line in sorted(labels.statements(code)):
      names = {k for e in result.trace for k in e.changed}
      asked = [('coverage', ''), ('path', ''), *(('state', x) for x in names)]
      for kind, var in asked:
        question = {'kind': kind, 'line': line, 'var': var}
        gold = labels.gold(result.trace, code, question)
        seen[kind, gold is None] += 1
        for answer in gold or ():
          tasks.append({'kind': kind, 'code': code, 'entry': 'f', 'gold': gold})
          texts.append(f'<reasoning></reasoning><answer>{answer}</answer>')
  rewards_B, _ = rewards.score(tasks, texts, [False] * len(tasks), Nothing())
  assert rewards_B.all() and len(tasks) > 10_000
  assert seen['coverage', True] == 0 < seen['state', True]


def readable(args):
  try:
    return literals.parse_call(f'f({args}\n)', 'f')
  except ValueError:
    return None


class Nothing:
  """A pool for answers that need none."""

  def run(self, jobs):
    assert not jobs
    return []
