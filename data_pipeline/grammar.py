"""A seeded grammar of small Python functions whose statements transform a value.

Types are tracked while a program grows, so nearly every program runs. Operand
letters are such that their pairs are rare in English and in keywords: a
byte-level BPE keeps them single.
"""

import random
from typing import NamedTuple

LETTERS = 'bdgkmvxz'
NAMES = ('x', 'a', 'n')
OTHER = {'x': 'y', 'a': 'b', 'n': 'm'}


class Program(NamedTuple):
  """A function `f` and the source of the arguments of one call."""

  code: str
  args: str


# One statement each. {v} is the value's name, {k} a small number, {c} and {d}
# different letters. An entry is (template, type of {v} afterwards).
STATEMENTS = {
    'int': [
        ('{v} = {v} + {k}', 'int'),
        ('{v} = {v} - {k}', 'int'),
        ('{v} += {k}', 'int'),
        ('{v} = {v} * 2', 'int'),
        ('{v} = {v} % {k}', 'int'),
        ('{v} = max({v}, {k})', 'int'),
        ('{v} = min({v}, {k})', 'int'),
        ('{v} = abs({v} - {k})', 'int'),
        ('{v} = [{v}, {k}]', 'list'),
        ("{v} = '{c}' * {v}", 'str'),
    ],
    'str': [
        ('{v} = {v}.upper()', 'str'),
        ('{v} = {v}.lower()', 'str'),
        ('{v} = {v}.swapcase()', 'str'),
        ('{v} = {v}.capitalize()', 'str'),
        ('{v} = {v}[::-1]', 'str'),
        ('{v} = {v}[1:]', 'str'),
        ('{v} = {v}[:-1]', 'str'),
        ("{v} = {v} + '{c}'", 'str'),
        ("{v} = '{c}' + {v}", 'str'),
        ("{v} = {v}.replace('{c}', '{d}')", 'str'),
        ("{v} = {v}.strip('{c}')", 'str'),
        ("{v} = '{c}'.join({v})", 'str'),
        ('{v} = list({v})', 'letters'),
        ("{v} = {v}.split('{c}')", 'letters'),
        ('{v} = len({v})', 'int'),
        ("{v} = {v}.count('{c}')", 'int'),
        ("{v} = {v}.find('{c}')", 'int'),
    ],
    'list': [
        ('{v}.append({k})', 'list'),
        ('{v}.insert(0, {k})', 'list'),
        ('{v}.reverse()', 'list'),
        ('{v}.sort()', 'list'),
        ('{v}.pop()', 'list'),
        ('{v}.pop(0)', 'list'),
        ('{v} = {v}[1:]', 'list'),
        ('{v} = {v}[:2]', 'list'),
        ('{v} = {v} + [{k}]', 'list'),
        ('{v} = sorted({v})', 'list'),
        ('{v} = [y + {k} for y in {v}]', 'list'),
        ('{v} = [y for y in {v} if y > {k}]', 'list'),
        ('{v} = sum({v})', 'int'),
        ('{v} = max({v})', 'int'),
        ('{v} = min({v})', 'int'),
        ('{v} = {v}[0]', 'int'),
        ('{v} = {v}[-1]', 'int'),
        ('{v} = {v}.count({k})', 'int'),
    ],
    'letters': [
        ("{v}.append('{c}')", 'letters'),
        ('{v}.reverse()', 'letters'),
        ('{v}.sort()', 'letters'),
        ("{v} = ''.join({v})", 'str'),
        ("{v} = '{c}'.join({v})", 'str'),
        ('{v} = {v}[0]', 'str'),
        ('{v} = len({v})', 'int'),
    ],
    'dict': [
        ("{v}['{c}'] = {k}", 'dict'),
        ("{v} = {v}.get('{c}', {k})", 'int'),
        ('{v} = list({v})', 'letters'),
        ('{v} = list({v}.values())', 'list'),
        ('{v} = len({v})', 'int'),
    ],
}
# Compound statements leave the type alone; {s} and {e} are simple statements.
BRANCHES = {
    'int': ['{v} > {k}', '{v} < {k}', '{v} % 2 == 0'],
    'str': ["'{c}' in {v}", "{v}.startswith('{c}')", 'len({v}) > {k}'],
    'list': ['{k} in {v}', 'len({v}) > {k}', '{v}[0] > {k}'],
}
LOOPS = {
    'int': ['for i in range({few}):\n    {v} = {v} + i'],
    'str': [
        "{w} = ''\nfor c in {v}:\n    {w} = c + {w}\n{v} = {w}",
        "{w} = 0\nfor c in {v}:\n    if c == '{c}':\n        {w} += 1\n"
        '{v} = {w}',
    ],
    'list': [
        '{w} = 0\nfor i in {v}:\n    {w} += i\n{v} = {w}',
        '{w} = []\nfor i in {v}:\n    {w}.append(i + {k})\n{v} = {w}',
    ],
}


def program(seed: str, level: dict) -> Program:
  """The program of a seed; `level` bounds its size and its values.

  Fields of a level: types (argument type -> weight), statements (least, most),
  branch and loop (probabilities of a compound statement), largest_int, lengths
  (least, most elements of an argument).
  """
  rng = random.Random(seed)
  kinds, weights = zip(*sorted(level['types'].items()), strict=True)
  kind = first = rng.choices(kinds, weights)[0]
  name, body = rng.choice(NAMES), []
  for _ in range(rng.randint(*level['statements'])):
    lines, kind = _statement(rng, kind, name, level)
    body += lines
  lines = [f'def f({name}):', *(f'    {x}' for x in body), f'    return {name}']
  return Program('\n'.join(lines), _value(rng, first, level))


def _statement(rng, kind, name, level):
  """(lines, type afterwards) of one simple or compound statement."""
  draw = rng.random()
  if draw < level['loop'] and kind in LOOPS:
    text = _fill(rng, rng.choice(LOOPS[kind]), name, level)
    counts = text.startswith(OTHER[name] + ' = 0')
    return text.split('\n'), 'int' if counts else kind
  if draw < level['loop'] + level['branch'] and kind in BRANCHES:
    test = _fill(rng, rng.choice(BRANCHES[kind]), name, level)
    lines = [f'if {test}:', '    ' + _simple(rng, kind, name, level, True)[0]]
    if rng.random() < 0.5:
      other = _simple(rng, kind, name, level, True)[0]
      lines += ['else:', '    ' + other]
    return lines, kind
  line, kind = _simple(rng, kind, name, level, False)
  return [line], kind


def _simple(rng, kind, name, level, keep):
  """(line, type afterwards); `keep` asks for one that keeps the type."""
  choices = [s for s in STATEMENTS[kind] if not keep or s[1] == kind]
  template, after = rng.choice(choices)
  return _fill(rng, template, name, level), after


def _fill(rng, template, name, level):
  c, d = rng.sample(LETTERS, 2)
  return template.format(
      v=name,
      w=OTHER[name],
      k=rng.randint(1, level['largest_int']),
      few=rng.randint(2, 3),
      c=c,
      d=d,
  )


def _value(rng, kind, level):
  """Source of an argument of a type."""
  size = rng.randint(*level['lengths'])
  number = lambda: rng.randint(0, level['largest_int'])
  # A few distinct letters, so that count, find and replace meet their letter.
  some = rng.sample(LETTERS, 3)
  letter = lambda: rng.choice(some)
  if kind == 'int':
    return repr(number())
  if kind == 'str':
    mixed = [letter().upper() if rng.random() < 0.3 else letter() for _ in
             range(size)]
    return repr(''.join(mixed))
  if kind == 'list':
    return repr([number() for _ in range(size)])
  if kind == 'dict':
    keys = rng.sample(LETTERS, min(size, 3))
    return repr({key: number() for key in keys})
  raise ValueError(f'no argument of type {kind!r}; have int, str, list, dict')
