"""How a generated function ends: with one value made of what it has left."""

from data_pipeline import inventory
from data_pipeline.writer import receiver


def returned(writer):
  """Lines that return what the function has made of its parameters."""
  rng = writer.rng
  names = [n for n in writer.unused if n not in writer.locked][-3:]
  last = [v.name for v in writer.scope if '.' not in v.name][-1]
  ours = [e for e in writer.extra if e.owner == 'object']
  texts = [e.source for e in ours] + names
  if len(texts) <= 1:
    name = texts[0] if texts else last
    kinds = [v.kind for v in writer.scope if v.name == name]
    if kinds and rng.random() < 0.4:
      makers = [
        e
        for made in inventory.MAKES.values()
        for e in made
        if receiver(e) == kinds[0] and e.result not in ('bool', 'float')
      ]
      if makers:
        writer.unused[:] = [name]
        return [f'return {writer.call(rng.choice(makers), 0)}']
    return [f'return {name}']
  shape = rng.choice(('({})', '[{}]', 'int', 'str', 'ints', 'strs', 'dict'))
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
  }
  return [f'return {joined[shape]}']


def measure(name, kind, into) -> str:
  """Source of a number ('int', 'ints', 'dict') or text made of a variable."""
  if into in ('int', 'ints', 'dict'):
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
