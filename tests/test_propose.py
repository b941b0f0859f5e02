"""Back-end B: what is asked for, what is read, and that odd programs go on."""

import ast
import collections
import importlib.util
import json

import pytest

from data_pipeline import (
  built,
  cases,
  decontaminate,
  factory,
  literal,
  propose,
  synth,
  words,
)
from data_pipeline.cases import Dropped
from tests.conftest import ROOT

# What models write and the grammar does not: one a construct.
ODD = """
def f(a, b):
    try:
        c = a.index(b) // len(a)
        a.pop(c)
    except ValueError as error:
        a.append(str(error)[:3])
    except ZeroDivisionError:
        a.append('zero')
    else:
        a.append('fine')
    finally:
        b += 'x'
    return a, b
# ['a', 'b'], 'c'
def f(n):
    if n < 2:
        return n
    return f(n - 1) + f(n - 2)
# 6
def f(words):
    def key(word):
        return (len(word), word[::-1])
    words = sorted(words, key=key)
    return words[0] + words[-1]
# ['pear', 'fig', 'apple', 'nut']
def f(text):
    def letters():
        for i, c in enumerate(text):
            if i % 2:
                yield c.upper()
            else:
                yield c
    return '-'.join(letters())
# 'abcde'
def f(items):
    first, *rest = items
    total = 0
    while rest:
        total += rest.pop()
        if total > 9:
            break
    else:
        total = -total
    return [first, total]
# [1, 2, 3, 4]
def f(value):
    match value:
        case [x, y]:
            return x * y
        case {'a': z}:
            return z + 1
        case _:
            return 'other'
# {'a': 4}
from collections import Counter, defaultdict
import math as m
def f(text, k):
    groups = defaultdict(list)
    for c, n in Counter(text).most_common():
        groups[n].append(c)
    return {n: ''.join(sorted(v)) for n, v in groups.items() if n >= m.floor(k)}
# 'mississippi', 2
class Stack:
    limit = 3
    def __init__(self, items):
        self.items = list(items)
    @property
    def size(self):
        return len(self.items)
    @staticmethod
    def twice(x):
        return x * 2
    def push(self, x):
        if self.size >= self.limit:
            self.items.pop(0)
        self.items.append(Stack.twice(x))
        return self
def f(xs):
    stack = Stack(xs)
    for x in xs[:2]:
        stack.push(x).push(-x)
    return stack.items
# [3, 1, 2]
def f(n):
    count = 0
    while (n := n // 2) > 1: count += 1; n += count % 2
    return f'{n:>3}|{count!r}'
# 77
def f(d):
    out = {}
    for k in list(d):
        v = d.pop(k)
        if isinstance(v, int): out.setdefault(v % 3, set()).add(k)
        elif v is None: continue
        else: out[v] = k
    return out
# {'a': 1, 'b': 4, 'c': None, 'd': 'e'}
def f(rows):
    part_0 = [sum(row) for row in rows]
    part_1 = part_0.index(max(part_0, default=0)) if part_0 else -1
    return part_1, part_0
# [[1, 2], [3, 4]]
def f(grid):
    return [list(r) for r in zip(*grid)][::-1] if all(grid) else grid[:-1]
# [(1, 2), (3, 4), (5, 6)]
def outer(x):
    return lambda y: x * 10 + y
def f(a, b):
    add = outer(a)
    assert a != 99, 'never'
    del_me = [a, b]
    del del_me[0]
    return [add(v) for v in del_me + [b, a]]
# 4, 2
def f(xs):
    a = b = 0
    for i in range(len(xs)):
        for j in range(i, len(xs)):
            if xs[j] < xs[i]:
                xs[i], xs[j] = xs[j], xs[i]
                a += 1
                continue
            b += 1
    return xs, a, b
# [4, 2, 9, 1]
"""


def pieces():
  code = []
  for line in ODD.strip().split('\n'):
    if line.startswith('# '):
      yield '\n'.join(code), line[2:]
      code = []
    else:
      code.append(line)


def answer(code, call):
  return f'A thought.\n\n```python\n{code}\n\n{call}\n```\nDone.'


def read(text, finish='stop', index=0):
  return propose.program(text, finish, index, 200)


def config():
  path = ROOT / 'configs' / 'data_7b.py'
  spec = importlib.util.spec_from_file_location('data_7b', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


def filters():
  return built.deciding(config())['filters']


def every_question(programs):
  """(programs kept, questions by kind): each is told, and judged right."""
  nothing = decontaminate.Hashes({'trees': [], 'pairs': [], 'functions': []})
  some = cases.pools(1)
  found = cases.collect(programs, some, filters(), nothing)
  kinds = collections.Counter()
  for program in found.programs:
    for case in program['cases']:
      want = [
        {'split': 'dev', 'asked': a, 'program': program, 'case': case}
        for a in case['asks']
      ]
      rows = factory.make_part(
        want, some[0], filters()['chains']
      )  # Raises if one is wrong.
      kinds.update(row['kind'] for row in rows)
  for pool in some:
    pool.close()
  return found, kinds


def test_what_is_asked_for_is_balanced_and_says_it():
  count = 3 * len(words.ALL.levels) * 10
  for i in range(count):
    level, target, arity = synth.aim(i)
    text = propose.messages('s', i)[1]['content']
    assert propose.messages('s', i)[1]['content'] == text
    filled = target.source.format(**{hole: hole for hole in target.holes})
    assert f'\n    {filled}\n' in text
    assert propose.LEVELS[level].split('{')[0] in text
    assert ('1 parameter,' if arity == 1 else f'{arity} parameters,') in text
  others = {propose.messages('s', i)[1]['content'] for i in range(count)}
  assert len(others) == count


def test_programs_of_the_grammar_come_back_as_they_are():
  for i in range(200):
    made = synth.program('b', i)
    call = f'{made.entry}({synth.source_of(made.args)})'
    for text in (
      answer(made.code, call),
      answer(made.code, f'print({call})'),
      answer(made.code, f'assert {call} == 1'),
      f'<think>\n```python\nx = 1\n```\n</think>\n{answer(made.code, call)}',
    ):
      found = read(text, index=i)
      # Functions come back, definitions that were apart with one blank line.
      assert ast.dump(ast.parse(found.code)) == ast.dump(ast.parse(made.code))
      assert (found.entry, found.args) == (made.entry, made.args)
      assert found.method == made.method
      for kind, asked in zip(found.kinds, made.kinds, strict=True):
        assert kind in (asked, 'other')


def test_docstrings_comments_and_layout_are_left_out():
  code = 'def f( x ):\n  "Says hi."\n  # so\n  return  x.upper( )'
  assert read(answer(code, 'f("a")')).code == (
    'def f(x):\n    return x.upper()'
  )


@pytest.mark.parametrize(
  ('text', 'reason'),
  [
    ('no block at all', 'no code block'),
    ('```python\ndef f(x):\n  return x', 'no code block'),
    (answer('def f(x):\n  return x.upper(', 'f(1)'), 'definitions'),
    (answer('def f(x):\n  return x', ''), 'definitions'),
    (answer('y = 2\ndef f(x):\n  return x', 'f(1)'), 'definitions'),
    (answer('def f(x):\n  return x', 'f(1)\nf(2)'), 'definitions'),
    (answer('def f(x):\n  return x', 'f(open("a"))'), 'definitions'),
    (answer('def f(x):\n  return x', 'f(x=1)'), 'definitions'),
    (answer('def f(x):\n  return x', 'f(1)(2)'), 'definitions'),
    (answer('def f(x):\n  return x', '1 < 2'), 'definitions'),
    (answer('', 'f(1)'), 'definitions'),
    (answer('(' * 999, 'f(1)'), 'definitions'),
    (answer('def f(x):\n  return x', f'f({list(range(99))})'), 'long'),
    (answer('def f(x):\n  return x.lower()', 'f("a")'), 'operation'),
  ],
)
def test_an_answer_that_holds_no_program_is_dropped_with_a_reason(text, reason):
  with pytest.raises(Dropped, match=reason):
    read(text)
  with pytest.raises(Dropped, match='cut off'):
    read(text, finish='length')


def test_every_value_of_the_grammar_has_its_type_again():
  for kind in literal.KINDS:
    for i in range(50):
      value = literal.value(synth.random.Random(f'{kind} {i}'), kind)
      assert literal.kind_of(value) in (kind, 'other')


def test_values_of_other_types_change_and_keep_their_type():
  rng = synth.random.Random(0)
  for old in ({1: 'a', 2: 'b'}, [1, 'a', None], (1, 2.5, 'x'), {1, 'a', 2}):
    assert literal.kind_of(old) == 'other'
    new = [literal.changed(rng, 'other', old) for _ in range(30)]
    assert {type(x) for x in new} == {type(old)}
    assert any(x != old for x in new)
  assert literal.changed(rng, 'other', None) is None


def test_constructs_the_grammar_lacks_make_right_questions(monkeypatch):
  monkeypatch.setattr(propose, 'operations', lambda _: set())
  texts = [answer(code, f'f({args})') for code, args in pieces()]
  programs = [read(text) for text in texts]
  found, kinds = every_question(programs)
  assert len(found.programs) >= len(texts) - 2, found.dropped
  assert min(kinds[k] for k in ('output', 'mixed', 'path', 'state')) > 10


@pytest.mark.slow
def test_programs_of_a_model_make_right_questions(assets, monkeypatch):
  """CRUXEval's, which a model wrote, in place of answers."""
  monkeypatch.setattr(propose, 'operations', lambda _: set())
  with open(assets / 'data' / 'cruxeval_first400.jsonl') as file:
    rows = [json.loads(line) for line in file]
  answers = [
    {'text': answer(r['code'], f'f({r["input"]})'), 'finish': 'stop'}
    for r in rows
  ]
  programs, unread = propose.programs(answers, 0, 200)
  assert len(programs) > 0.97 * len(rows), unread
  found, kinds = every_question(programs)
  assert len(found.programs) > 200 and kinds['output'] > 600
