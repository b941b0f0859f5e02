"""A seeded grammar of small functions whose statements transform a value.

Types are tracked while a program grows, so nearly every program runs. Operand
letters are such that their pairs are rare in English and in keywords: a
byte-level BPE keeps them single.
"""

import random
from typing import NamedTuple

LETTERS = 'bdfgjkmpqvwxz'
NAMES = ('x', 'a', 'n', 's', 'v')
OTHER = 'y'


class Program(NamedTuple):
  """A function `f` and the source of the arguments of one call."""

  code: str
  args: str


# One statement each: (template, type of {v} afterwards, hardness 1 to 3).
# {v} is the value's name; {j} and {k} are different small numbers, {c} and {d}
# different letters. Those with two of a kind make most programs distinct.
STATEMENTS = {
  'int': [
    ('{v} = {v} + {k}', 'int', 1),
    ('{v} = {v} - {k}', 'int', 1),
    ('{v} += {k}', 'int', 1),
    ('{v} = max({v}, {k})', 'int', 1),
    ('{v} = min({v}, {k})', 'int', 1),
    ('{v} = [{v}, {k}]', 'list', 1),
    ('{v} = {v} * 2', 'int', 2),
    ("{v} = '{c}' * {v}", 'str', 2),
    ('{v} = {v} % {k}', 'int', 3),
    ('{v} = abs({v} - {k})', 'int', 3),
  ],
  'str': [
    ('{v} = {v}.upper()', 'str', 1),
    ('{v} = {v}.lower()', 'str', 1),
    ('{v} = {v}[::-1]', 'str', 1),
    ('{v} = {v}[1:]', 'str', 1),
    ('{v} = {v}[:-1]', 'str', 1),
    ("{v} = {v} + '{c}'", 'str', 1),
    ("{v} = '{c}' + {v}", 'str', 1),
    ("{v} = {v} + '{c}{d}'", 'str', 1),
    ("{v} = '{c}{d}' + {v}", 'str', 1),
    ('{v} = list({v})', 'letters', 1),
    ('{v} = len({v})', 'int', 1),
    ("{v} = {v}.replace('{c}', '{d}')", 'str', 2),
    ('{v} = {v}.swapcase()', 'str', 2),
    ("{v} = {v}.strip('{c}')", 'str', 2),
    ("{v} = '{c}'.join({v})", 'str', 2),
    ("{v} = {v}.count('{c}')", 'int', 2),
    ("{v} = {v}.split('{c}')", 'letters', 3),
    ('{v} = {v}.capitalize()', 'str', 3),
    ("{v} = {v}.find('{c}')", 'int', 3),
  ],
  'list': [
    ('{v}.append({k})', 'list', 1),
    ('{v}.insert(0, {k})', 'list', 1),
    ('{v}.reverse()', 'list', 1),
    ('{v}.pop()', 'list', 1),
    ('{v}.pop(0)', 'list', 1),
    ('{v} = {v}[1:]', 'list', 1),
    ('{v} = {v} + [{k}]', 'list', 1),
    ('{v} = {v} + [{j}, {k}]', 'list', 1),
    ('{v} = [{j}, {k}] + {v}', 'list', 1),
    ('{v}.extend([{j}, {k}])', 'list', 1),
    ('{v} = {v}[0]', 'int', 1),
    ('{v} = {v}[-1]', 'int', 1),
    ('{v} = len({v})', 'int', 1),
    ('{v}.sort()', 'list', 2),
    ('{v} = {v}[:2]', 'list', 2),
    ('{v} = max({v})', 'int', 2),
    ('{v} = min({v})', 'int', 2),
    ('{v} = {v}.count({k})', 'int', 2),
    ('{v} = sum({v})', 'int', 3),
    ('{v} = [i + {k} for i in {v}]', 'list', 3),
    ('{v} = [i for i in {v} if i > {k}]', 'list', 3),
  ],
  'letters': [
    ("{v}.append('{c}')", 'letters', 1),
    ('{v}.reverse()', 'letters', 1),
    ("{v} = ''.join({v})", 'str', 1),
    ('{v} = {v}[0]', 'str', 1),
    ('{v}.sort()', 'letters', 2),
    ("{v} = '{c}'.join({v})", 'str', 2),
  ],
  'dict': [
    ("{v}['{c}'] = {k}", 'dict', 1),
    ('{v} = list({v})', 'letters', 1),
    ('{v} = list({v}.values())', 'list', 1),
    ("{v} = {v}.get('{c}', {k})", 'int', 2),
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
    "{w} = 0\nfor c in {v}:\n    if c == '{c}':\n        {w} += 1\n{v} = {w}",
  ],
  'list': [
    '{w} = 0\nfor i in {v}:\n    {w} += i\n{v} = {w}',
    '{w} = []\nfor i in {v}:\n    {w}.append(i + {k})\n{v} = {w}',
  ],
}


def program(seed: str, level: dict) -> Program:
  """The program of a seed; `level` bounds its size and its values.

  Fields of a level: types (argument type -> weight), statements (number ->
  weight), hardest (of the statements), branch and loop (probabilities of a
  compound statement), letters (how many), largest_int, lengths (least, most
  elements of an argument).
  """
  rng = random.Random(seed)
  kind = first = _weighted(rng, level['types'])
  name, body = rng.choice(NAMES), []
  for _ in range(int(_weighted(rng, level['statements']))):
    lines, kind = _statement(rng, kind, name, level)
    body += lines
  lines = [f'def f({name}):', *(f'    {x}' for x in body), f'    return {name}']
  return Program('\n'.join(lines), _value(rng, first, level))


def _weighted(rng, weights):
  return rng.choices(sorted(weights), [weights[k] for k in sorted(weights)])[0]


def _statement(rng, kind, name, level):
  """(lines, type afterwards) of one simple or compound statement."""
  draw = rng.random()
  if draw < level['loop'] and kind in LOOPS:
    text = _fill(rng, rng.choice(LOOPS[kind]), name, level)
    counts = text.startswith(f'{OTHER} = 0')
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
  choices = [
    (template, after)
    for template, after, hard in STATEMENTS[kind]
    if hard <= level['hardest'] and (after == kind or not keep)
  ]
  template, after = rng.choice(choices)
  return _fill(rng, template, name, level), after


def _fill(rng, template, name, level):
  c, d = rng.sample(LETTERS[: level['letters']], 2)
  j, k = rng.sample(range(1, level['largest_int'] + 1), 2)
  return template.format(
    v=name,
    w=OTHER,
    j=j,
    k=k,
    few=rng.randint(2, 3),
    c=c,
    d=d,
  )


def _value(rng, kind, level):
  """Source of an argument of a type.

  Its elements differ, so that copying it never has to guess which one it saw.
  """
  size = rng.randint(*level['lengths'])
  numbers = rng.sample(range(level['largest_int'] + 1), size)
  letters = rng.sample(LETTERS[: level['letters']], size)
  if kind == 'int':
    return repr(numbers[0])
  if kind == 'str':
    return repr(
      ''.join(c.upper() if rng.random() < 0.3 else c for c in letters)
    )
  if kind == 'list':
    return repr(numbers)
  if kind == 'dict':
    return repr(dict(zip(letters[:3], numbers[:3], strict=True)))
  raise ValueError(f'no argument of type {kind!r}; have int, str, list, dict')
