"""Writes control flow: branches and loops around what a Writer writes."""

from crjax.execution import literals
from data_pipeline import literal
from data_pipeline.writer import EMPTY, Variable

INDENT = '    '
ELEMENTS = {  # Type of a sequence -> type of what a loop over it gives.
  'str': 'str',
  'ints': 'int',
  'strs': 'str',
  'ituple': 'int',
  'stuple': 'str',
  'nested': 'ints',
}
LOOP_NAMES = {'int': ('v', 'x', 'num', 'i'), 'str': ('c', 'w', 'part', 'ch')}
SORTED = {'iset': 'int', 'sset': 'str'}
GROWING = ('int', 'str', 'ints', 'strs', 'dict', 'iset', 'pairs', 'groups')
GROWING_WEIGHTS = (4, 3, 4, 3, 3, 1, 1, 1)


class Control:
  """Blocks of a function; remembers its accumulators."""

  def __init__(self, rng, writer):
    self.rng, self.writer = rng, writer
    self.grown = []

  def block(self, depth):
    """Lines of control flow `depth` deep, with what it adds up before it."""
    rng, writer = self.rng, self.writer
    lines = []
    for _ in range(rng.choice((1, 1, 2))):
      (kind,) = rng.choices(GROWING, GROWING_WEIGHTS)
      name = writer.declare(kind)
      writer.read(name)
      lines.append(f'{name} = {EMPTY[kind]}')
      self.grown.append(name)
    writer.hidden = set(self.grown)  # Empty: nothing to ask about yet.
    lines += self.nest(depth, in_loop=False)
    writer.unused += [n for n in self.grown if n not in writer.unused]
    self.grown.clear()
    return lines

  def nest(self, depth, in_loop):
    """Lines of one compound statement and those inside it."""
    rng = self.rng
    if depth == 1 and not in_loop:
      kind = rng.choices(('for', 'while', 'branch'), (6, 2, 2))[0]
    else:
      kind = rng.choices(('for', 'while', 'branch'), (4, 1, 4))[0]
    before = list(self.writer.scope), set(self.writer.locked)
    write = {'for': self.for_, 'while': self.while_, 'branch': self.branch}
    lines = write[kind](depth, in_loop)
    self.writer.scope, self.writer.locked = before
    names = {v.name for v in self.writer.scope}
    self.writer.unused = [n for n in self.writer.unused if n in names]
    return lines

  def body(self, depth, in_loop):
    """Lines inside a compound statement, not yet indented."""
    rng, writer, lines = self.rng, self.writer, []
    writer.hidden = set()
    if rng.random() < 0.3:
      lines += self.scoped()
    if depth > 1:
      lines += self.nest(depth - 1, in_loop)
    if depth == 1 or rng.random() < 0.4:
      lines += writer.grow(rng.choice(self.grown))
    if writer.objects and rng.random() < 0.8:
      _, method, given = writer.objects
      lines.append(f'{method}({writer.expression(given, 1)})')
    return lines or writer.grow(rng.choice(self.grown))

  def scoped(self):
    """A simple statement that makes a name of this block, or changes one."""
    writer = self.writer
    kind = self.rng.choice(('int', 'str', 'int'))
    text = writer.expression(kind, 1, needs_variable=True)
    return [f'{writer.declare(kind)} = {text}']

  def test(self):
    return self.writer.expression('bool', 1, needs_variable=True)

  def branch(self, depth, in_loop):
    rng, writer = self.rng, self.writer
    before = list(writer.scope)
    lines = [f'if {self.test()}:', *indented(self.body(depth, in_loop))]
    writer.scope = list(before)
    draw = rng.random()
    if draw < 0.35:
      lines += [f'elif {self.test()}:', *indented(self.body(1, in_loop))]
      writer.scope = list(before)
    if draw < 0.7:
      lines += ['else:', *indented(self.body(1, in_loop))]
    elif in_loop == 'for' and draw < 0.85:
      lines += ['else:', INDENT + rng.choice(('continue', 'break'))]
    return lines

  def for_(self, depth, in_loop):
    writer = self.writer
    head, over, made = self.head()
    if over:
      writer.locked.add(over)
    for name, kind in made:
      writer.taken.add(name)
      writer.scope.append(Variable(name, kind))
      writer.unused.append(name)
      writer.locked.add(name)
    return [head, *indented(self.body(depth, 'for'))]

  def head(self):
    """(line, variable that must not change, [(loop variable, type)])."""
    rng, writer = self.rng, self.writer
    pools = {k: writer.variables(k) for k in (*ELEMENTS, *SORTED)}
    pools = {k: v for k, v in pools.items() if set(v) - set(self.grown)}
    tables = [n for n in writer.variables('dict') if n not in self.grown]
    pairs = [n for n in writer.variables('pairs') if n not in self.grown]
    draw = rng.random()
    if tables and draw < 0.5:
      name, (k, v) = rng.choice(tables), self.fresh('str', 'int')
      writer.read(name)
      return f'for {k}, {v} in {name}.items():', name, [(k, 'str'), (v, 'int')]
    if pairs and draw < 0.6:
      name, (k, v) = rng.choice(pairs), self.fresh('str', 'int')
      writer.read(name)
      return f'for {k}, {v} in {name}:', name, [(k, 'str'), (v, 'int')]
    if not pools or draw > 0.85:
      (i,) = self.fresh('int')
      size = self.counted()
      return f'for {i} in range({size}):', None, [(i, 'int')]
    kind = rng.choice(sorted(pools))
    name = rng.choice([n for n in pools[kind] if n not in self.grown])
    writer.read(name)
    element = SORTED.get(kind) or ELEMENTS[kind]
    if kind in SORTED:
      (x,) = self.fresh(element)
      return f'for {x} in sorted({name}):', name, [(x, element)]
    if draw < 0.25 and element != 'ints':
      i, x = self.fresh('int', element)
      head = f'for {i}, {x} in enumerate({name}):'
      return head, name, [(i, 'int'), (x, element)]
    (x,) = self.fresh(element)
    shape = rng.choice(('{}', '{}', '{}', 'reversed({})', '{}[1:]'))
    return f'for {x} in {shape.format(name)}:', name, [(x, element)]

  def fresh(self, *kinds):
    """Names of loop variables that nothing else has."""
    found = []
    for kind in kinds:
      pool = LOOP_NAMES.get(kind, ('row', 'group'))
      left = [n for n in pool if n not in self.writer.taken | set(found)]
      found.append(left[0] if left else f'{pool[0]}{len(self.writer.taken)}')
    return found

  def counted(self):
    """Source of a small number of rounds."""
    writer, rng = self.writer, self.rng
    sequences = [n for k in ELEMENTS for n in writer.variables(k)]
    free = [n for n in sequences if n not in self.grown]
    if free and rng.random() < 0.5:
      name = rng.choice(free)
      writer.read(name)
      writer.locked.add(name)
      return f'len({name})'
    if writer.variables('int') and rng.random() < 0.6:
      return f'{writer.use("int")} % {rng.randint(3, 6)}'
    return str(rng.randint(2, 5))

  def while_(self, depth, in_loop):
    """A loop whose counter or queue nothing else may change."""
    rng, writer = self.rng, self.writer
    lists = [
      n
      for k in ('ints', 'strs')
      for n in writer.variables(k)
      if n not in writer.locked and n not in self.grown
    ]
    if lists and not in_loop and rng.random() < 0.4:
      name = rng.choice(lists)
      writer.read(name)
      (x,) = self.fresh(ELEMENTS[writer.kind_of(name)])
      kind = ELEMENTS[writer.kind_of(name)]
      writer.taken.add(x)
      writer.scope.append(Variable(x, kind))
      writer.locked |= {name, x}
      last = rng.choice(('pop()', 'pop(0)'))
      more = rng.choice(('', f' > {rng.randint(1, 2)}'))
      test = f'len({name}){more}' if more else name
      body = [f'{x} = {name}.{last}', *self.body(depth, 'while')]
      return [f'while {test}:', *indented(body)]
    start = self.counted_down()
    name = writer.declare('int')
    writer.locked.add(name)
    step = rng.choice(('{} -= 1', '{} -= 2', '{} //= 2')).format(name)
    test = rng.choice((f'{name} > 0', f'{name} > 1'))
    body = self.body(depth, 'while')
    body = [*body, step] if rng.random() < 0.7 else [step, *body]
    return [f'{name} = {start}', f'while {test}:', *indented(body)]

  def counted_down(self):
    writer, rng = self.writer, self.rng
    if writer.variables('int') and rng.random() < 0.7:
      return f'abs({writer.use("int")}) % {rng.randint(5, 12)} + 1'
    text = writer.expression('str', 1, needs_variable=True)
    return f'len({text})' if rng.random() < 0.5 else self.drawn()

  def drawn(self):
    return literals.render(3 + literal.value(self.rng, 'num'))


def indented(lines):
  return [INDENT + line for line in lines]
