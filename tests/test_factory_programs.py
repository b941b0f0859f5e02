"""Back-end A: what its programs are made of, and that they run."""

import ast
import collections
import random

import pytest

from crjax.execution import Job, Pool, literals
from data_pipeline import inventory, literal, synth, words

COUNT = 420  # Every level 60 times.


@pytest.fixture(scope='module')
def programs():
  return [synth.program('t', i) for i in range(COUNT)]


def test_a_seed_and_a_number_are_a_program(programs):
  assert programs == [synth.program('t', i) for i in range(COUNT)]
  others = [synth.program('u', i) for i in range(COUNT)]
  assert (
    sum(a.code == b.code for a, b in zip(programs, others, strict=True)) < 5
  )


def test_nearly_every_program_runs(programs):
  jobs = [Job(p.code, p.entry, synth.source_of(p.args)) for p in programs]
  with Pool(1) as pool:
    verdicts = [r.verdict for r in pool.run(jobs)]
  assert verdicts.count('ok') > 0.97 * COUNT


def test_entries_levels_and_arities_are_balanced():
  """Over a round of the inventory nothing occurs more often than the rest."""
  size = 3 * len(words.ALL.levels) * len(inventory.ENTRIES)
  index = range(size)
  methods = collections.Counter(
    (i * 67 % len(inventory.ENTRIES)) for i in index
  )
  assert set(methods.values()) == {size // len(inventory.ENTRIES)}
  some = [synth.program('b', i) for i in range(21)]
  assert collections.Counter(p.level for p in some) == dict.fromkeys(
    words.ALL.levels, 3
  )
  assert {len(p.kinds) for p in some} == set(words.ALL.arities)


def test_a_level_is_in_the_text(programs):
  nodes = {p.code: list(ast.walk(ast.parse(p.code))) for p in programs}
  has = lambda p, *kinds: any(isinstance(n, kinds) for n in nodes[p.code])
  for p in programs:
    functions = [n for n in nodes[p.code] if isinstance(n, ast.FunctionDef)]
    assert p.entry in {f.name for f in functions}
    assert has(p, ast.ClassDef) == (p.level == 'class')
    assert p.level != 'helper' or len(functions) > 1
    if p.level.startswith('depth'):
      assert depth(ast.parse(p.code)) >= int(p.level[-1])


def depth(node):
  inner = max((depth(n) for n in ast.iter_child_nodes(node)), default=0)
  return inner + isinstance(node, ast.For | ast.While | ast.If)


def test_the_inventory_runs_for_every_value_of_its_types():
  """Each source, filled with the names of parameters, never raises."""
  rng, jobs = random.Random(0), []
  for entry in inventory.ENTRIES:
    names = {hole: hole for hole in entry.holes}
    source = entry.source.format(**names)
    result = 'a' if entry.result == '-' else '_r'
    line = source if entry.result == '-' else f'_r = {source}'
    code = f'def f({", ".join(names)}):\n    {line}\n    return {result}'
    for _ in range(8):
      args = [literal.value(rng, kind) for kind in entry.holes.values()]
      jobs.append(Job(code, 'f', synth.source_of(args)))
  with Pool(1) as pool:
    results = pool.run(jobs)
  failed = {
    j.code: r.detail
    for j, r in zip(jobs, results, strict=True)
    if r.verdict != 'ok'
  }
  assert not failed


@pytest.mark.parametrize('kind', literal.KINDS)
def test_a_changed_value_has_the_type_and_comes_back(kind):
  rng = random.Random(1)
  value = literal.value(rng, kind)
  seen = {literals.render(value)}
  for _ in range(60):
    value = literal.changed(rng, kind, value)
    assert type(value) is type(literal.value(rng, kind))
    assert literals.parse(literals.render(value)) == value
    seen.add(literals.render(value))
  assert len(seen) > (1 if kind == 'bool' else 8)
