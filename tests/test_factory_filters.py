"""Filters of the factory: what they let through and what they count."""

import ast
import collections
import random

import pytest

from crjax import rewards
from crjax.execution import Job, literals
from data_pipeline import (
  asking,
  cases,
  decontaminate,
  filters,
  identity,
  narrate,
  near,
  synth,
)

CHAINS = {
  'kinds': asking.KINDS,
  'styles': narrate.ALL,
  'parts': True,
  'longest': 4000,
}
SETTINGS = {
  'mutants': 5,
  'most_cases': 4,
  'most_events': 600,
  'easiest': 3,
  'longest_args': 200,
  'shortest': 40,
  'chains': CHAINS,
  'longest_output': 150,
  'largest_int': 10**12,
  'most_items': 25,
  'longest_string': 100,
  'deepest': 3,
  'floats': False,
}
COUNT = 140


@pytest.fixture(scope='module')
def pools():
  made = cases.pools(1)
  yield made
  for pool in made:
    pool.close()


@pytest.fixture(scope='module')
def found(pools):
  candidates = [synth.program('f', i) for i in range(COUNT)]
  return cases.collect(candidates, pools, SETTINGS, decontaminate.load())


def made(code, *args, kinds=('int',)):
  return synth.Program(code, 'f', kinds, args, 'int.add', 'nested')


def test_every_program_is_kept_or_counted_once(found):
  assert len(found.programs) + found.dropped.total() == COUNT
  assert len(found.programs) > 0.6 * COUNT
  assert set(found.examples) == set(found.dropped)
  assert found.inputs['kept'] >= sum(len(p['cases']) for p in found.programs)


def test_cases_reproduce_and_differ(found, pools):
  for program in found.programs:
    assert 1 <= len(program['cases']) <= SETTINGS['most_cases']
    arguments = [case['args'] for case in program['cases']]
    assert len(set(arguments)) == len(arguments)
  every = [(p, c) for p in found.programs for c in p['cases']]
  jobs = [Job(p['code'], p['entry'], c['args']) for p, c in every]
  for pool in pools:
    for (_, case), result in zip(every, pool.run(jobs), strict=True):
      assert literals.render(literals.parse(result.value)) == case['output']
  for _, case in every:
    assert not filters.value(case['output'], SETTINGS)


def test_an_input_that_is_asked_for_is_no_lucky_guess(found, pools):
  """None of the constants that are tried passes as an answer, one at a time."""
  guesses = [*map(literals.render, filters.CONSTANTS)]
  tasks, texts = [], []
  for program in found.programs:
    entry = program['entry']
    tree = ast.parse(program['code'])
    (f,) = [n for n in tree.body if getattr(n, 'name', '') == entry]
    arity = len(f.args.args)
    for case in program['cases']:
      if 'input' in case['asks'] and arity == 1:
        task = {'kind': 'input', 'entry': entry, 'code': program['code']}
        for guess in (*guesses, case['output']):
          tasks.append(task | {'args': '', 'output': case['output']})
          answer = f'<answer>{entry}({guess})</answer>'
          texts.append(f'<reasoning></reasoning>{answer}')
  assert len(tasks) > 300
  rewards_B, _ = rewards.score(
    tasks, texts, [False] * len(texts), pools[0], mode='typed'
  )
  assert not rewards_B.any()


def test_a_guess_that_runs_on_ends_by_count_not_by_the_clock(pools):
  """Most guesses never end here; what the others reach is found."""
  code = 'def f(x):\n  y = 0\n  while x != 2:\n    y += 1\n  return [x, 7]'
  for outputs, want in (['[2, 7]', '[5, 7]'], '[0]'), (['[5, 7]'], '[]'):
    job = Job(*filters.search(code, 'f', outputs, 1, 'seed'))
    (result,) = pools[0].run([job])
    assert (result.verdict, result.value) == ('ok', want)


@pytest.mark.parametrize(
  'body, argument, kind, reason',
  [
    ('y = x + 12345; return 2 if x else 2', 3, 'int', 'constant'),
    ('y = x; y += 10 - 10; return y', 3, 'int', 'argument'),
    ('y = 12345 // 0; return x + y', 3, 'int', 'exception'),
    ('y = x; while y or True: y = 1', 3, 'int', 'timeout'),
    ('y = [x, 12]; y.append(y[0])', 3, 'int', 'None'),
    ('y = x * 100; return y + x + x', 'ab', 'str', 'long'),
    ('y = set(x + "abcdef"); return str(y)', 'xyz', 'str', 'hash seed'),
    ('y = id(x); return x + y % 12', 3, 'int', 'uses id'),
    ('z = 12 + 13; return z * z + 1', 3, 'int', 'unused'),
    ('return return x + 123456', 3, 'int', 'not Python'),
  ],
)
def test_a_filter_says_why(body, argument, kind, reason, pools):
  lines = ['def f(x):', *(f'    {line}' for line in body.split('; '))]
  program = made('\n'.join(lines), argument, kinds=(kind,))
  got = cases.collect([program], pools, SETTINGS, decontaminate.load())
  assert not got.programs
  (why,) = got.dropped
  assert reason in why, why
  assert got.examples[why][0].startswith(program.code)


def test_a_bool_is_not_an_int_of_an_argument():
  assert filters.is_argument('1', (1,)) and not filters.is_argument(
    '1', (True,)
  )
  assert not filters.is_argument('[1]', ((1,),))


RENAMES = (
  'def f(a, b):\n    c = []\n    for x in a:\n'
  '        c.append(x + b)\n    return c',
  'def g(q, r):\n  z=[]\n  for w in q:\n    z.append(w + r)\n  return z',
  'def f(c: list, x):\n    """Text."""\n    a = []\n    for b in c:\n'
  '        a.append(b + x)\n    return a',
)


def test_names_layout_and_docstrings_do_not_make_a_program():
  assert len({identity.program_hash(code) for code in RENAMES}) == 1
  others = (
    RENAMES[0].replace('x + b', 'b + x'),
    RENAMES[0].replace('[]', '[1]'),
  )
  assert len({identity.program_hash(c) for c in (RENAMES[0], *others)}) == 3


def test_minhash_finds_what_exact_similarity_finds(found):
  """Pairs above the similarity, by the index and by looking at every pair."""
  sets = [identity.shingles(p['code']) for p in found.programs]
  changed = [
    code for p in found.programs for code in [with_other_literals(p['code'])]
  ]
  sets += map(identity.shingles, changed)
  index, similar = near.Near(0.8), []
  for i, one in enumerate(sets):
    best = max((near.jaccard(one, s) for s in sets[:i]), default=0.0)
    got, place = index.nearest(one)
    if best >= 0.8:
      assert got == best and near.jaccard(one, sets[place]) == best
      similar.append(i)
    index.add(one)
  assert len(similar) >= len(found.programs)


class Literals(ast.NodeTransformer):
  """Other numbers and strings in the place of all."""

  def visit_Constant(self, node):
    change = {
      int: lambda x: x + 3,
      str: lambda x: x + 'q',
      float: lambda x: x + 1,
    }
    made = change.get(type(node.value), lambda x: x)(node.value)
    return ast.copy_location(ast.Constant(made), node)


def with_other_literals(code):
  return ast.unparse(Literals().visit(ast.parse(code)))


def reordered(code, rng):
  """The statements of each body but the last in another order."""
  tree = ast.parse(code)
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      head = node.body[:-1]
      node.body = rng.sample(head, len(head)) + node.body[-1:]
  return ast.unparse(tree)


def renamed_by_text(code):
  """Own names longer; with the ast, but not by the code under test."""
  tree = ast.parse(code)
  own = {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
  own |= {
    n.id
    for n in ast.walk(tree)
    if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
  }
  for n in ast.walk(tree):
    if isinstance(n, ast.arg) and n.arg in own:
      n.arg += '_other'
    elif isinstance(n, ast.Name) and n.id in own:
      n.id += '_other'
  return ast.unparse(tree)


@pytest.fixture(scope='module')
def benchmark_programs(assets):
  read = decontaminate.read
  crux = read(assets / 'data' / 'cruxeval_first400.jsonl')
  human = read(assets / 'data' / 'HumanEval.jsonl.gz')
  return [r['code'] for r in crux] + list(map(decontaminate.whole, human))


def caught(programs):
  known = decontaminate.load()
  return sum(bool(known.fault(code)) for code in programs) / len(programs)


def test_benchmarks_and_their_copies_are_caught(benchmark_programs):
  rng = random.Random(0)
  assert caught(benchmark_programs) == 1
  assert caught([renamed_by_text(p) for p in benchmark_programs]) == 1
  assert caught([with_other_literals(p) for p in benchmark_programs]) >= 0.9
  assert caught([reordered(p, rng) for p in benchmark_programs]) >= 0.9


def test_a_copy_beside_other_functions_is_caught(benchmark_programs):
  other = synth.program('o', 5).code
  both = [f'{other}\n\n{code}' for code in benchmark_programs[:100]]
  assert caught(both) == 1


def test_fresh_programs_are_not_taken_for_copies():
  assert caught([synth.program('fresh', i).code for i in range(1000)]) < 0.02


def test_the_shipped_hashes_have_those_of_the_assets(
  assets, benchmark_programs
):
  crux = decontaminate.read(assets / 'data' / 'cruxeval_first400.jsonl')
  pairs = [(r['input'], r['output']) for r in crux]
  fresh = decontaminate.make(benchmark_programs, pairs)
  known = decontaminate.load()
  assert known.trees >= set(fresh['trees'])
  assert known.pairs >= set(fresh['pairs'])
  assert known.programs == {'cruxeval': 800, 'humaneval': 164, 'classeval': 100}
  long = [p for p in pairs if min(map(len, p)) > decontaminate.LONGEST_COMMON]
  assert all(known.has_case(*p) for p in long) and len(long) > 100


def test_no_text_of_a_benchmark_is_shipped():
  text = decontaminate.FILE.read_text()
  assert not set(text) & set(" '()=")
  words = collections.Counter(ch for ch in text if ch.isalpha())
  assert words['z'] == 0


def test_short_methods_of_a_benchmark_are_not_its_own():
  method = 'class A:\n  def get(self):\n    return self.held'
  longer = f'{method}\n  def put(self, x):\n    x += 1\n    y = x * self.held'
  longer += '\n    self.held = y'
  for code, kept in ((method, 0), (longer, 1)):
    tree = ast.parse(code)
    functions = decontaminate.telling(tree)[1:]
    assert len(functions) == kept
