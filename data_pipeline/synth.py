"""Programs of a seeded grammar over the inventory; no language model.

Types are tracked while a program grows, so nearly every program runs. A
program is built around one entry of the inventory at one level of complexity,
and both go round, so that all of them occur equally often.
"""

import ast
import itertools
import random
from typing import NamedTuple

from crjax.execution import literals
from data_pipeline import inventory, literal
from data_pipeline.control import Control
from data_pipeline.ending import returned
from data_pipeline.words import ALL
from data_pipeline.writer import Writer, fill, statement

PARAMETERS = {  # Type of a further parameter -> weight.
  'str': 5,
  'int': 5,
  'ints': 5,
  'strs': 3,
  'dict': 2,
  'ituple': 1,
  'iset': 1,
  'sset': 1,
  'pairs': 1,
  'nested': 1,
  'groups': 1,
  'bool': 1,
}
VERBS = (
  *('f', 'g', 'solve', 'process', 'build', 'update'),
  *('merge', 'filter_out', 'clean', 'scan', 'collect', 'combine'),
  *('convert', 'compute', 'extract', 'select', 'arrange', 'count_up'),
  *('reduce_all', 'walk', 'pack', 'adjust', 'compare_parts', 'encode_it'),
  *('decode_it', 'format_it', 'split_up', 'pick', 'trim', 'rotate'),
  'measure',
)
THINGS = (
  *('items', 'data', 'text', 'values', 'words', 'parts', 'tokens', 'records'),
  *('chars', 'entries', 'numbers', 'fields', 'rows', 'keys'),
)
OBJECTS = ('Box', 'Counter2', 'Ledger', 'Stack', 'Tracker', 'Basket', 'Meter')


STATEMENTS = (1, *(2,) * 9)  # of level 'short'


class Program(NamedTuple):
  """A program, the types of its parameters and one set of arguments."""

  code: str
  entry: str
  kinds: tuple
  args: tuple
  method: str  # the inventory's entry that it was built around
  level: str


def program(seed, index: int, words=ALL) -> Program:
  """The program of a seed and a number; numbers go through all combinations."""
  rng = random.Random(f'{seed}:{index}')
  level, target, arity = aim(index, words)
  if level == 'short':
    code, entry, kinds = _short(rng, target, words)
  else:
    code, entry, kinds = _source(rng, level, target, arity)
  args = tuple(literal.value(rng, kind, words.small) for kind in kinds)
  return Program(code, entry, kinds, args, target.name, level)


def aim(index: int, words=ALL):
  """(level, entry of the inventory, arity) of a number, all equally often."""
  level = words.levels[index % len(words.levels)]
  # A stride that has no common factor with the number of entries.
  target = words.targets[index * 67 % len(words.targets)]
  arity = words.arities[index // len(words.levels) % len(words.arities)]
  return level, target, arity


def source_of(args) -> str:
  """The arguments as they stand in a call."""
  return literals.render_call(args, {})


def signature(rng, target, arity):
  """(name, types of the parameters) of a function around an entry."""
  entry = rng.choice(VERBS)
  if len(entry) > 2 and rng.random() < 0.6:
    entry = f'{entry}_{rng.choice(THINGS)}'
  receiver = next(iter(target.holes.values()))
  kinds = [receiver] if receiver in literal.KINDS else ['str']
  pool = sorted(PARAMETERS)
  weights = [PARAMETERS[k] for k in pool]
  kinds += rng.choices(pool, weights, k=arity - 1)
  rng.shuffle(kinds)
  return entry, kinds


def _short(rng, target, words):
  """A function of one variable that statements change one after the other."""
  entry, name = 'f', rng.choice(words.names)
  kind = first = target.receiver
  body = []
  for i in range(rng.choice(STATEMENTS)):
    fitting = [e for e in words.entries if e.receiver == kind]
    if len(target.holes) == 1:  # Without constants there are few programs.
      fitting = [e for e in fitting if len(e.holes) > 1]
    made = target if i == 0 else rng.choice(fitting)
    others = list(made.holes.items())[1:]
    sizes = words.small | {'lengths': words.small['constants']}
    filled = {
      hole: literals.render(literal.value(rng, k, sizes)) for hole, k in others
    }
    text = fill(made.source, {next(iter(made.holes)): name} | filled)
    if made.result == '-':
      body += statement(text)
    else:
      body.append(f'{name} = {text}')
      kind = made.result
  lines = [f'def {entry}({name}):', *body, f'return {name}']
  code = '\n    '.join(lines)
  return ast.unparse(ast.parse(code)), entry, (first,)


def _source(rng, level, target, arity):
  entry, kinds = signature(rng, target, arity)
  above = []
  extra = []
  if level == 'helper':
    for name in rng.sample(VERBS[2:], rng.choice((1, 1, 2))):
      lines, made = helper(rng, name if name != entry else f'{name}_one', extra)
      above.append(lines)
      extra.append(made)
  writer = Writer(rng, kinds, extra)
  if level == 'class':
    above.append(_object(rng, writer))
  head = ', '.join(writer.parameters)
  body = _body(rng, writer, level, target)
  function = [f'def {entry}({head}):', *body]
  parts = [*above, function] if rng.random() < 0.7 else [function, *above]
  text = '\n'.join(itertools.chain.from_iterable(parts))
  return ast.unparse(ast.parse(text)), entry, tuple(kinds)


def _body(rng, writer, level, target):
  """Lines of the entry function, the return included."""
  before = rng.randint(1, 3) if level == 'builtins' else rng.randint(0, 1)
  lines = list(writer.objects[0]) if writer.objects else []
  lines += writer.target(target, depth=2 if level == 'nested' else 1)
  for made in writer.extra:
    if made.owner == 'helper':
      text = writer.call(made, 1)
      lines.append(f'{writer.declare(made.result)} = {text}')
  for _ in range(before):
    lines += writer.simple(2 if level == 'nested' else 1)
  depth = {'depth1': 1, 'depth2': 2, 'depth3': 3, 'helper': 1, 'class': 1}
  if level in depth:
    control = Control(rng, writer)
    lines += control.block(depth[level])
  for _ in range(rng.randint(0, 2 if level in ('builtins', 'depth1') else 1)):
    lines += writer.simple(1)
  lines += returned(writer)
  return [f'    {line}' for line in lines]


def helper(rng, name, extra):
  """(lines, entry) of a helper function, callable like a builtin."""
  pool = [k for k in sorted(PARAMETERS) if k != 'bool']
  kinds = rng.choices(pool, [PARAMETERS[k] for k in pool], k=rng.choice((1, 2)))
  writer = Writer(rng, kinds, extra)
  lines = writer.simple(2)
  if rng.random() < 0.5:
    lines += Control(rng, writer).block(1)
  result = rng.choice(('int', 'str', 'ints', 'bool', kinds[0]))
  writer.unused += [v.name for v in writer.scope[-1:]]
  lines.append(f'return {writer.expression(result, 2, needs_variable=True)}')
  head = [f'def {name}({", ".join(writer.parameters)}):']
  holes = {f'p{i}': kind for i, kind in enumerate(kinds)}
  source = f'{name}({", ".join("{" + hole + "}" for hole in holes)})'
  made = inventory.Entry('helper', name, holes, result, source)
  return head + [f'    {line}' for line in lines], made


def _object(rng, writer):
  """Lines of a class; its methods become entries of the writer, made of it."""
  name = rng.choice(OBJECTS)
  kind = rng.choice(('ints', 'strs', 'dict', 'int'))
  inner = Writer(
    rng, [], [], attributes={'self.total': 'int', 'self.held': kind}
  )
  start = {'ints': '[]', 'strs': '[]', 'dict': '{}', 'int': '1'}[kind]
  lines = [f'class {name}:', f'    def __init__(self, {kind[0]}0):']
  lines += [f'        self.total = {rng.randint(0, 5)}']
  copied = {'ints': 'list', 'strs': 'list', 'dict': 'dict', 'int': 'int'}[kind]
  held = f'{copied}({kind[0]}0)' if rng.random() < 0.7 else start
  if held == start:
    lines[1] = '    def __init__(self):'
  lines += [f'        self.held = {held}']
  step = rng.choice(('add', 'push', 'feed', 'record'))
  given = rng.choice(('int', 'str')) if kind in ('strs', 'dict') else 'int'
  argument = inner.declare(given)
  lines += [f'    def {step}(self, {argument}):']
  body = inner.grow('self.held') + inner.grow('self.total')
  lines += [f'        {line}' for line in body]
  read = rng.choice(('result', 'summary', 'value', 'score'))
  result = rng.choice(('int', 'str', 'ints'))
  made = Writer(
    rng, [], [], attributes={'self.total': 'int', 'self.held': kind}
  )
  text = made.expression(result, 2, needs_variable=True)
  lines += [f'    def {read}(self):', f'        return {text}']
  writer.attach(
    name, None if held == start else kind, step, given, read, result
  )
  return lines
