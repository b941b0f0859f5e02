"""Questions of all kinds and the chains that answer them."""

import ast
import collections
import re

import pytest

from crjax import rewards
from crjax.execution import Job, Pool, labels, literals
from data_pipeline import (
  asking,
  backward,
  cases,
  decontaminate,
  factory,
  frames,
  narrate,
  synth,
  unfold,
)
from tests.test_factory_filters import CHAINS, SETTINGS

COUNT = 140
STEP = re.compile(r'(?:Line |\[L|After line |)(?P<line>\d+)[\],:. ]')


@pytest.fixture(scope='module')
def pool():
  with Pool(1) as made:
    yield made


@pytest.fixture(scope='module')
def traced(pool):
  """[(program, case, events)] of a small build."""
  some = cases.pools(1)
  candidates = [synth.program('q', i) for i in range(COUNT)]
  found = cases.collect(candidates, some, SETTINGS, decontaminate.load())
  for one in some:
    one.close()
  pairs = [(p, c) for p in found.programs for c in p['cases']]
  jobs = [Job(p['code'], p['entry'], c['args'], trace=True) for p, c in pairs]
  results = pool.run(jobs)
  return [(p, c, r.trace) for (p, c), r in zip(pairs, results, strict=True)]


@pytest.fixture(scope='module')
def rows(traced):
  found = {kind: [] for kind in asking.KINDS}
  for asked in asking.ASKS:
    kind = asked.partition(' ')[0]
    for program, case, events in traced:
      row = asking.ask(asked, program, case, events, CHAINS)
      if isinstance(row, dict):
        found[kind].append((row, program, events))
      else:
        assert row in (f'no {kind} question', 'chain too long'), row
      if asked != 'input':  # Its lucky guesses were taken out.
        assert (asked in case['asks']) == isinstance(row, dict)
  return found


def scored(pool, rows, change=lambda text: text):
  tasks = [{'kind': r['kind']} | r['verify'] for r in rows]
  texts = [change(r['completion']) for r in rows]
  return rewards.score(tasks, texts, [False] * len(rows), pool)[0]


def test_every_gold_answer_earns_everything(rows, pool):
  for kind, some in rows.items():
    assert len(some) > (60 if kind in ('coverage', 'mixed') else 150), kind
    assert (scored(pool, [row for row, _, _ in some]) == 1).all(), kind


def test_another_answer_earns_nothing(rows, pool):
  for kind, some in rows.items():
    wrong = {'coverage': '<answer>\nMAYBE', 'input': '<answer>\n0,0,0,0 #'}
    head = wrong.get(kind, '<answer>\n-7')
    change = lambda text: re.sub(r'<answer>\n[^\n]*', lambda _: head, text)
    assert not scored(pool, [row for row, _, _ in some], change).any(), kind


def test_a_row_is_a_function_of_its_case(traced):
  for program, case, events in traced[:20]:
    for kind in asking.ASKS:
      one, two = (
        asking.ask(kind, program, case, events, CHAINS) for _ in range(2)
      )
      assert one == two


def test_golds_are_balanced_as_specified(rows):
  golds = {
    kind: collections.Counter(
      row['verify']['gold'][0] for row, _, _ in rows[kind]
    )
    for kind in ('path', 'state', 'coverage')
  }
  assert golds['path']['-1'] <= 0.35 * golds['path'].total()
  assert golds['state']['Nil'] <= 0.25 * golds['state'].total()
  assert golds['coverage']['NO'] and golds['coverage']['YES']


def test_the_side_that_is_asked_for_is_not_in_the_prompt(rows):
  for kind in ('output', 'mixed', 'input'):
    for row, program, _ in rows[kind]:
      entry, verify = program['entry'], row['verify']
      args = '??' if kind == 'input' else verify['args']
      output = verify['output'] if kind == 'input' else '??'
      lines = row['prompt'][1]['content'].split('\n')
      asserts = [line for line in lines if line.startswith('assert')]
      assert asserts == [f'assert {entry}({args}) == {output}']


def canonical(text):
  """One text for a value: sets print in any order."""
  try:
    return literals.render(literals.parse(text))
  except ValueError:
    return text


def values_at(events, code):
  """{line: {name: texts}} that variables have after a visit of a line."""
  found = collections.defaultdict(lambda: collections.defaultdict(set))
  for visit in labels.corrected(events, code):
    for name, (_, text) in (visit.state or {}).items():
      found[visit.line][name].add(canonical(text))
  return found


def claims_of(text):
  """[(name, source)] of every `name = literal` in a text, by parsing."""
  found, text = [], text.removesuffix('.')
  for match in re.finditer(r'(?<![\w.\'"])([A-Za-z_][\w.]*) = ', text):
    rest = text[match.end() :]
    for end in range(len(rest), 0, -1):
      try:
        ast.literal_eval(rest[:end].strip())
      except (ValueError, SyntaxError):
        continue
      found.append((match[1], canonical(rest[:end].strip())))
      break
  return found


def test_every_value_of_a_step_is_in_the_trace(rows):
  """Lines of chains name a line of the program and what it left behind."""
  seen = 0
  for kind, some in rows.items():
    for row, program, events in some:
      truth = values_at(events, program['code'])
      anywhere = collections.defaultdict(set)
      for event in events:
        for name, pair in event.changed.items():
          anywhere[name].add(canonical((pair or ['', None])[1]))
      chain = row['completion'].partition('</reasoning>')[0]
      for line in chain.split('\n'):
        match = STEP.match(line)
        if not match or ' calls ' in line or 'Into ' in line:
          continue
        told = line[match.end() :].lstrip()
        source = program['code'].split('\n')[int(match['line']) - 1].strip()
        source = source.rstrip(':')
        if len(source) > narrate.SHOWN:
          source = source[: narrate.SHOWN] + '...'
        told = told.replace(f'`{source}`', '').removeprefix(source)
        made, _, before = told.partition(' <- ')
        for name, text in claims_of(made):
          known = truth[int(match['line'])]
          if name in known:
            assert text in known[name], (kind, line, known[name])
            seen += 1
        for name, text in claims_of(before):
          assert text in anywhere[name], (kind, line)
          seen += 1
  assert seen > 3000


def test_summaries_of_rounds_are_the_state_after_them(traced):
  """Every claim of a summary is a state that some visit in the loop left."""
  seen = 0
  for program, _case, events in traced:
    frame = frames.entry(events, program['code'])
    code = program['code']
    teller = narrate.Teller(code, narrate.STYLES['lines'], 0, 0)
    text = '\n'.join(teller.frame(frame))
    truth = collections.defaultdict(set)
    for lines in values_at(events, code).values():
      for name, texts in lines.items():
        truth[name] |= texts
    for line in text.split('\n'):
      if line.startswith('After round'):
        for name, value in claims_of(line.partition(': ')[2]):
          assert value in truth[name]
          seen += 1
  assert seen > 100


CODE = """def f(xs, k):
    total = 0
    out = []
    for x in xs:
        if x > k:
            total = h(x)
            out.append(total)
    while total > 3:
        total -= 4
    return out

def h(v):
    w = v + 1
    return w"""


def run(pool, args):
  (result,) = pool.run([Job(CODE, 'f', args, trace=True)])
  return result


def chain(pool, args, style, rounds, calls):
  frame = frames.entry(run(pool, args).trace, CODE)
  return narrate.Teller(CODE, narrate.STYLES[style], rounds, calls).frame(frame)


def test_a_chain_reads_like_the_run(pool):
  assert chain(pool, '[1, 5, 7], 3', 'brackets', 3, 1) == [
    '[L2] total = 0.',
    '[L3] out = [].',
    '* round 1',
    '[L4] x = 1.',
    '[L5] false with x = 1; k = 3.',
    '* round 2',
    '[L4] x = 5.',
    '[L5] true with x = 5; k = 3.',
    '[L6] Into h(v=5):',
    '[L13] w = 6.',
    '[L14] return 6.',
    'Back with 6.',
    '[L6] total = 6.',
    '[L7] out = [6].',
    '* round 3',
    '[L4] x = 7.',
    '[L5] true with x = 7; k = 3.',
    '[L6] h(v=7) -> 8.',
    '[L6] total = 8.',
    '[L7] out = [6, 8].',
    '[L4] the loop ends.',
    '* round 1',
    '[L8] true with total = 8.',
    '[L9] total = 4.',
    '* round 2',
    '[L8] true with total = 4.',
    '[L9] total = 0.',
    '[L8] false with total = 0.',
    '[L10] return [6, 8].',
  ]


def test_loops_are_summarised_after_the_first_rounds(pool):
  assert chain(pool, '[5, 6, 7, 8], 3', 'brackets', 1, 0) == [
    '[L2] total = 0.',
    '[L3] out = [].',
    '* round 1',
    '[L4] x = 5.',
    '[L5] true with x = 5; k = 3.',
    '[L6] h(v=5) -> 6.',
    '[L6] total = 6.',
    '[L7] out = [6].',
    '* rounds 2-4 with x = 6, 7, 8 leave total = 9; out = [6, 7, 8, 9].',
    '[L4] the loop ends.',
    '* round 1',
    '[L8] true with total = 9.',
    '[L9] total = 5.',
    '* round 2 leaves total = 1.',
    '[L8] false with total = 1.',
    '[L10] return [6, 7, 8, 9].',
  ]


def test_what_a_question_is_about_is_always_told(pool):
  result = run(pool, '[5, 6, 7, 8], 3')
  frame = frames.entry(result.trace, CODE)
  text = narrate.forward(
    CODE, frame, 'f([5, 6, 7, 8], 3)', 's1', 4000, focus=[(7, 4)], until=(7, 4)
  )
  assert text.rstrip('.').endswith('out = [6, 7, 8, 9]')
  assert 'total -= 4' not in text and 'ends' not in text


def test_a_budget_is_kept_or_there_is_no_chain(pool):
  frame = frames.entry(run(pool, '[5, 6, 7, 8], 3').trace, CODE)
  call = 'f([5, 6, 7, 8], 3)'
  sizes = []
  for longest in (4000, 500, 400, 300, 20):
    text = narrate.forward(CODE, frame, call, 1, longest)
    assert text is None or len(text) <= longest
    sizes.append(len(text or ''))
  assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 0
  back = backward.backward(CODE, frame, call, '[6, 7, 8, 9]', 1, 4000)
  assert 'xs = [5, 6, 7, 8]; k = 3' in back


def test_parts_of_expressions_have_the_values_that_python_gives(traced, pool):
  """Each part, evaluated here in the recorded state before its line."""
  wanted = [{'program': p, 'case': c} for p, c, _ in traced]
  events, parts = factory.traced(wanted, pool)
  seen = 0
  for (program, _, _), trace, found in zip(traced, events, parts, strict=True):
    scope = {}
    exec(program['code'], scope)
    before = {
      (v.line, v.occ): v.before
      for v in frames.entry(trace, program['code']).visits
    }
    for place, some in found.items():
      state = before.get(place)
      if not state or any('pop(' in source for source, _ in some):
        continue
      for source, text in some:
        names = {
          n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)
        }
        if any(state.get(n, ['', ''])[1] is None for n in names):
          continue
        known = {
          k: literals.parse(t)
          for k, (_, t) in state.items()
          if t and k in names
        }
        assert eval(source, scope | known) == literals.parse(text)
        seen += 1
  assert seen > 500
  nested = [unfold.unfold(p['code']) is not None for p, _, _ in traced]
  assert sum(map(bool, parts)) == sum(nested) > 0.9 * len(nested)


def test_parts_keep_the_order_and_what_is_lazy():
  code = (
    'def f(a, b):\n    c = g(a.pop(), h(b)[0]) + len(a)\n'
    '    d = a[0] if a[1] else k(l(b))\n    return x(c)(d) or y(z(c))'
  )
  text, lines, sources = unfold.unfold(code)
  assert text.split('\n')[1:] == [
    '    part_0 = a.pop()',
    '    part_1 = h(b)',
    '    part_2 = part_1[0]',
    '    part_3 = g(part_0, part_2)',
    '    part_4 = len(a)',
    '    c = part_3 + part_4',
    '    d = a[0] if a[1] else k(l(b))',
    '    return x(c)(d) or y(z(c))',
  ]
  assert lines == {1: 1, 7: 2, 8: 3, 9: 4}
  assert sources[5] == ('part_3', 'g(a.pop(), h(b)[0])')
  assert unfold.unfold('def f(x):\n    return 0 < x.a() < x.b()') is None
