"""Writes typed expressions and statements over the variables in scope."""

import ast
from typing import NamedTuple

from crjax.execution import literals
from data_pipeline import inventory, literal

NAMES = {
  'int': ('n', 'k', 'num', 'limit', 'total', 'step', 'size', 'm', 'count'),
  'bool': ('flag', 'found', 'ok', 'strict'),
  'float': ('ratio', 'rate', 'x'),
  'str': ('text', 's', 'word', 'line', 'label', 'name', 'chars', 'result'),
  'bytes': ('raw', 'blob'),
  'ints': ('nums', 'values', 'xs', 'arr', 'scores', 'out', 'seq'),
  'strs': ('words', 'parts', 'names', 'tokens', 'lines', 'tags'),
  'nested': ('rows', 'grid', 'matrix'),
  'ituple': ('tup', 'pair', 'point', 'coords'),
  'stuple': ('fields', 'pieces'),
  'iset': ('seen', 'ids', 'unique'),
  'sset': ('letters', 'labels', 'vocab'),
  'pairs': ('pairs', 'entries', 'records'),
  'dict': ('d', 'counts', 'table', 'mapping', 'stock', 'prices'),
  'groups': ('groups', 'index', 'buckets'),
}
LITERAL = {'char', 'sub', 'num', 'idx', 'few', 'width'}
# What a literal hole may be filled with instead: a variable of that type.
STANDS_FOR = {'sub': 'str', 'width': 'int'}
EMPTY = {
  'int': '0',
  'str': "''",
  'ints': '[]',
  'strs': '[]',
  'dict': '{}',
  'iset': 'set()',
  'sset': 'set()',
  'pairs': '[]',
  'nested': '[]',
  'groups': '{}',
}
GROWTH = {  # One step of an accumulator, by its type.
  'int': ('{v} += {a:int}', '{v} += {a:int}', '{v} -= {a:int}'),
  'str': ('{v} += {a:str}', '{v} = {a:str} + {v}', '{v} += str({a:int})'),
  'ints': ('{v}.append({a:int})', '{v}.insert(0, {a:int})', '{v} += [{a:int}]'),
  'strs': ('{v}.append({a:str})', '{v}.insert(0, {a:str})'),
  'dict': (
    '{v}[{a:str}] = {b:int}',
    '{v}[{a:str}] = {v}.get({a:str}, 0) + 1',
    '{v}[{a:str}] = {v}.get({a:str}, 0) + {b:int}',
  ),
  'iset': ('{v}.add({a:int})',),
  'sset': ('{v}.add({a:str})',),
  'pairs': ('{v}.append(({a:str}, {b:int}))',),
  'nested': ('{v}.append([{a:int}, {b:int}])',),
  'groups': ('{v}.setdefault({a:str}, []).append({b:int})',),
}
ATOMS = (ast.Name, ast.Constant, ast.Attribute)
SAFE = (*ATOMS, ast.Call, ast.Subscript, ast.List, ast.Dict, ast.ListComp)


class Variable(NamedTuple):
  name: str
  kind: str


class Writer:
  """The variables of one function, and what can be written with them."""

  def __init__(self, rng, kinds, extra, attributes=()):
    self.rng, self.extra = rng, list(extra)
    self.taken = set()
    self.scope = [Variable(k, v) for k, v in dict(attributes).items()]
    self.unused, self.locked, self.objects = [], set(), None
    self.hidden = set()
    self.parameters = [self.declare(kind) for kind in kinds]

  def declare(self, kind) -> str:
    """A new variable of a type."""
    names = [n for n in NAMES[kind] if n not in self.taken]
    name = self.rng.choice(names) if names else f'{kind}_{len(self.taken)}'
    self.taken.add(name)
    self.scope.append(Variable(name, kind))
    self.unused.append(name)
    return name

  def variables(self, kind):
    return [
      v.name for v in self.scope if v.kind == kind and v.name not in self.hidden
    ]

  def kind_of(self, name):
    return next(v.kind for v in self.scope if v.name == name)

  def use(self, kind):
    """A variable of a type, preferably one that nothing has read yet."""
    names = self.variables(kind)
    fresh = [n for n in names if n in self.unused]
    name = self.rng.choice(
      fresh if fresh and self.rng.random() < 0.8 else names
    )
    self.read(name)
    return name

  def write(self, name):
    if name not in self.unused and '.' not in name:
      self.unused.append(name)

  def read(self, name):
    if name in self.unused:
      self.unused.remove(name)

  def expression(self, kind, depth, needs_variable=False) -> str:
    """Source of a value of a type."""
    rng = self.rng
    if kind in LITERAL:
      other = STANDS_FOR.get(kind)
      if other and self.variables(other) and rng.random() < 0.2:
        return self.use(other)
      return literals.render(literal.value(rng, kind))
    own = self.variables(kind)
    if own and (depth <= 0 or rng.random() < 0.35):
      return self.use(kind)
    makers = [
      e
      for e in (*inventory.MAKES.get(kind, ()), *self.extra)
      if e.result == kind and self.within_reach(e, depth)
    ]
    if makers and (depth > 0 or needs_variable):
      # A helper is there to be called.
      ours = [e for e in makers if e.owner in ('helper', 'object')]
      pool = ours if ours and rng.random() < 0.4 else makers
      return self.call(rng.choice(pool), depth - 1)
    if own:
      return self.use(kind)
    if needs_variable or kind == 'bool':
      return self.converted(kind)
    return literals.render(literal.value(rng, kind))

  def within_reach(self, entry, depth):
    """Whether there is a variable for its first hole, or for what makes it."""
    kind = entry.receiver
    if kind is None or self.variables(kind):
      return True
    makers = inventory.MAKES.get(kind, ())
    return depth > 1 and any(self.variables(e.receiver) for e in makers)

  def converted(self, kind):
    """A value of a type that depends on some variable, whatever its type."""
    name = self.rng.choice([v.name for v in self.scope])
    self.read(name)
    text = f'str({name})'
    if kind == 'int':
      return f'len({text})'
    if kind == 'bool':
      return f'len({text}) > {self.rng.randint(3, 12)}'
    if kind == 'ints':
      return f'[len({text}), {self.rng.randint(0, 9)}]'
    if kind == 'str':
      return text
    return literals.render(literal.value(self.rng, kind))

  def call(self, entry, depth) -> str:
    """Source of an entry with its holes filled."""
    filled = {}
    for i, (hole, kind) in enumerate(entry.holes.items()):
      if entry.repeats(hole):
        filled[hole] = self.atom(kind, needs_variable=i == 0)
      elif i == 0:
        filled[hole] = self.expression(kind, depth, needs_variable=True)
      else:
        filled[hole] = self.expression(
          kind, min(depth, self.rng.choice((0, 1)))
        )
      if list(filled.values()).count(filled[hole]) > 1:  # x - x, max(k, k)
        filled[hole] = self.other(kind)
    return fill(entry.source, filled)

  def other(self, kind):
    """A literal, and for a bool a test."""
    if kind == 'bool':
      return self.converted(kind)
    return literals.render(literal.value(self.rng, kind))

  def atom(self, kind, needs_variable=False):
    """A variable or a literal; only a variable where one must be."""
    if self.variables(kind) and (needs_variable or self.rng.random() < 0.5):
      return self.use(kind)
    if needs_variable and kind not in LITERAL:
      return self.expression(kind, 1, needs_variable=True)
    return literals.render(literal.value(self.rng, kind))

  def target(self, entry, depth):
    """Lines that use an entry of the inventory."""
    first = entry.receiver
    if entry.result == '-':
      lines = []
      free = [n for n in self.variables(first) if n not in self.locked]
      if not free:
        text = self.expression(first, 2, needs_variable=True)
        lines = [f'{self.declare(first)} = {text}']
      return lines + self.change(entry)
    text = self.call(entry, depth)
    return [f'{self.declare(entry.result)} = {text}']

  def change(self, entry):
    """Lines of a statement that changes a variable that is not locked."""
    first, *others = entry.holes
    names = self.variables(entry.holes[first])
    name = self.rng.choice([n for n in names if n not in self.locked])
    filled = {first: name}
    for hole in others:
      kind = entry.holes[hole]
      twice = entry.repeats(hole)
      filled[hole] = self.atom(kind) if twice else self.expression(kind, 1)
    self.write(name)
    return statement(fill(entry.source, filled))

  def simple(self, depth):
    """Lines of one simple statement: a change, an assignment or a new name."""
    rng, draw = self.rng, self.rng.random()
    free = [
      v for v in self.scope if v.name not in self.locked and v.kind in EMPTY
    ]
    changing = [v for v in free if v.kind in inventory.CHANGES]
    if draw < 0.3 and changing:
      kind = rng.choice(changing).kind
      return self.change(rng.choice(inventory.CHANGES[kind]))
    if draw < 0.55 and free:
      v = rng.choice(free)
      text = self.expression(v.kind, depth, needs_variable=True)
      if text != v.name:
        self.write(v.name)
        return [f'{v.name} = {text}']
    kinds = {v.kind for v in self.scope} - {'bool', 'float', 'bytes'}
    kind = rng.choice([*sorted(kinds), 'int', 'str', 'str', 'ints', 'strs'])
    text = self.expression(kind, max(depth, 1), needs_variable=True)
    return [f'{self.declare(kind)} = {text}']

  def grow(self, name):
    """Lines that add something to an accumulator."""
    template = self.rng.choice(GROWTH[self.kind_of(name)])
    text = {}
    for hole in ('a', 'b'):
      for kind in ('int', 'str'):
        mark = f'{{{hole}:{kind}}}'
        if mark in template:
          text[mark] = (
            self.atom(kind, needs_variable=bool(self.variables(kind)))
            if template.count(mark) > 1
            else self.expression(kind, 1)
          )
    for mark, source in text.items():
      template = template.replace(mark, source)
    return [template.replace('{v}', name)]

  def attach(self, name, kind, step, given, read, result):
    """Lets statements make and use an object of a class of the program."""
    made = self.expression(kind, 1, needs_variable=True) if kind else ''
    variable = name.lower()[:3]
    while variable in self.taken:
      variable += '_'
    self.taken.add(variable)
    self.objects = (
      [f'{variable} = {name}({made})'],
      f'{variable}.{step}',
      given,
    )
    entry = inventory.Entry('object', read, {}, result, f'{variable}.{read}()')
    self.extra.append(entry)


def statement(source) -> list[str]:
  """Its lines; that of a table's row may be behind an `if`."""
  test, colon, rest = source.partition(': ')
  if test.startswith('if ') and colon:
    return [f'{test}:', f'    {rest}']
  return [source]


def fill(source, filled) -> str:
  """The source with its holes filled, in parentheses where it may matter."""
  return source.format(**{k: _apart(v) for k, v in filled.items()})


def _apart(text):
  node = ast.parse(text, mode='eval').body
  return text if isinstance(node, SAFE) else f'({text})'
