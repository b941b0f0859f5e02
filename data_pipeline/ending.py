"""How a generated function ends: with one value made of what it has left."""

from data_pipeline import inventory

SHAPES = {  # What several values become -> weight; CRUXEval likes text.
  '({})': 1,
  '[{}]': 1,
  'int': 2,
  'str': 6,
  'ints': 1,
  'strs': 1,
  'dict': 1,
  'bool': 2,
}
MORE_TEXT = 3  # Weight of a result of type str against any other.


def returned(writer):
  """Lines that return what the function has made of its parameters."""
  rng = writer.rng
  free = [n for n in writer.unused if n not in writer.locked]
  given = [n for n in writer.parameters if n in free]
  names = given + [n for n in free if n not in given][-2:]
  ours = [e for e in writer.extra if e.owner == 'object']
  texts = [e.source for e in ours] + names
  if len(texts) <= 1:
    last = [v.name for v in writer.scope if '.' not in v.name][-1]
    return [f'return {single(writer, texts[0] if texts else last)}']
  (shape,) = rng.choices(list(SHAPES), list(SHAPES.values()))
  if '{}' in shape:
    return [f'return {shape.format(", ".join(texts))}']
  known = {v.name: v.kind for v in writer.scope} | {
    e.source: e.result for e in ours
  }
  parts = [measure(text, known[text], shape) for text in texts]
  keyed = [
    f'{text.partition("(")[0]!r}: {part}'
    for text, part in zip(texts, parts, strict=True)
  ]
  joined = {
    'int': ' + '.join(parts),
    'str': rng.choice((" + '-' + ", ' + ')).join(parts),
    'ints': f'[{", ".join(parts)}]',
    'strs': f'[{", ".join(parts)}]',
    'dict': f'{{{", ".join(keyed)}}}',
    'bool': f'{" + ".join(parts[:-1])} {rng.choice("<>")} {parts[-1]}',
  }
  return [f'return {joined[shape]}']


def single(writer, name) -> str:
  """Source of one value, as it is or put through something once more."""
  rng = writer.rng
  kinds = [v.kind for v in writer.scope if v.name == name]
  if not kinds or (kinds[0] != 'float' and rng.random() < 0.5):
    return name
  makers = [
    e
    for made in inventory.MAKES.values()
    for e in made
    if e.receiver == kinds[0] and e.result != 'float'
  ]
  if not makers:
    return name
  writer.unused[:] = [name]
  weights = [MORE_TEXT if e.result == 'str' else 1 for e in makers]
  return writer.call(rng.choices(makers, weights)[0], 0)


def measure(name, kind, into) -> str:
  """Source of a number ('int', 'ints', 'dict') or text made of a variable."""
  if into in ('int', 'ints', 'dict', 'bool'):
    plain = {
      'int': '{}',
      'bool': 'int({})',
      'float': 'int({})',
      'ints': 'sum({})',
    }
    return plain.get(kind, 'len({})').format(name)
  plain = {'str': '{}', 'strs': "''.join({})", 'stuple': "''.join({})"}
  plain |= {'sset': "''.join(sorted({}))", 'bytes': '{}.decode()'}
  plain |= {'iset': 'str(sorted({}))'}
  return plain.get(kind, 'str({})').format(name)
