"""Random values of the inventory's types, and how an argument is changed."""

import random

WORDS = (
  *('apple', 'river', 'stone', 'Cloud', 'token', 'Zebra'),
  *('maple', 'QUARTZ', 'delta', 'ember', 'frost', 'glyph'),
  *('hazel', 'Ivory', 'jolly', 'karma', 'lemon', 'Mango'),
  *('night', 'ocean', 'piano', 'quilt', 'raven', 'solar'),
  *('tiger', 'umbra', 'velvet', 'waltz', 'xenon', 'yield'),
  *('Zephyr', 'bishop', 'cactus', 'dragon', 'falcon', 'garden'),
)
ALPHABETS = ('abcde', 'abcdefghijklmnopqrstuvwxyz', 'aAbBcC', 'xyz012', '01')
MARKS = '-_.,:;!/#+ '
SUBS = ('ab', 'a', 'e', 'an', '-', ', ', 'x', 'ing', '__', 'o', 'er', 'Z', '0')
LONGEST = 24  # characters of a random string
KINDS = (
  *('int', 'bool', 'float', 'str', 'bytes', 'ints', 'strs', 'nested'),
  *('ituple', 'stuple', 'iset', 'sset', 'pairs', 'dict', 'groups'),
)
ELEMENT = {
  'ints': 'int',
  'ituple': 'int',
  'iset': 'int',
  'strs': 'str',
  'stuple': 'str',
  'sset': 'str',
}
HOLDS = {  # (container, element) -> type
  ('list', 'int'): 'ints',
  ('list', 'str'): 'strs',
  ('list', 'ints'): 'nested',
  ('list', 'pair'): 'pairs',
  ('tuple', 'int'): 'ituple',
  ('tuple', 'str'): 'stuple',
  ('set', 'int'): 'iset',
  ('set', 'str'): 'sset',
  ('dict', 'int'): 'dict',
  ('dict', 'ints'): 'groups',
}
MAKE = {'ituple': tuple, 'stuple': tuple, 'iset': set, 'sset': set}


def value(rng: random.Random, kind: str, small=None):
  """A random value of a type; no two calls have to agree on its size.

  Args:
    small: see `small_value`; None for values of all sizes.
  """
  if small:
    return small_value(rng, kind, small)
  if kind in ('int', 'num', 'idx', 'few', 'width'):
    return number(rng, kind)
  if kind == 'bool':
    return rng.random() < 0.5
  if kind == 'float':
    return rng.randint(-40, 80) / rng.choice((2, 4, 10))
  if kind == 'char':
    return rng.choice(rng.choice((*ALPHABETS, MARKS)))
  if kind == 'sub':
    return rng.choice(SUBS) if rng.random() < 0.5 else value(rng, 'char')
  if kind == 'str':
    return string(rng)
  if kind == 'bytes':
    return string(rng).encode()[:12]
  size = rng.randint(2, 7)
  if kind in ELEMENT:
    items = [element(rng, ELEMENT[kind]) for _ in range(size)]
    return MAKE.get(kind, list)(items)
  if kind == 'nested':
    rows = (rng.randint(0, 4) for _ in range(rng.randint(2, 4)))
    return [[element(rng, 'int') for _ in range(n)] for n in rows]
  if kind == 'pairs':
    return [(element(rng, 'str'), element(rng, 'int')) for _ in range(size)]
  if kind == 'groups':
    return {
      element(rng, 'str'): [
        number(rng, 'int') for _ in range(rng.randint(0, 3))
      ]
      for _ in range(rng.randint(1, 3))
    }
  if kind == 'dict':
    return {element(rng, 'str'): element(rng, 'int') for _ in range(size)}
  raise ValueError(f'no values of type {kind!r}')


def small_value(rng, kind, small):
  """A value that a tiny model can read: elements are short and all differ.

  Args:
    small: letters; largest, of an int; lengths (least, most). A 'sub' has two
      letters in any case.
  """
  if kind in ('num', 'idx', 'few'):
    return rng.randint(*{'num': (1, 2), 'idx': (0, 1), 'few': (2, 3)}[kind])
  size = rng.randint(*small['lengths'])
  letters = rng.sample(small['letters'], size)
  numbers = rng.sample(range(small['largest'] + 1), size)
  made = {
    'int': numbers[0],
    'char': letters[0],
    'sub': ''.join(rng.sample(small['letters'], 2)),
    'str': ''.join(c.upper() if rng.random() < 0.3 else c for c in letters),
    'ints': numbers,
    'strs': letters,
  }
  if kind not in made:
    raise ValueError(f'no small values of type {kind!r}, only {sorted(made)}')
  return made[kind]


def number(rng, kind):
  low, high = {
    'num': (1, 9),
    'idx': (0, 3),
    'few': (2, 3),
    'width': (5, 14),
    'int': (-9, 20) if rng.random() < 0.8 else (-50, 150),
  }[kind]
  return rng.randint(low, high)


def element(rng, kind):
  """One of a container: strings are shorter, and often single letters."""
  if kind == 'int':
    return number(rng, 'int')
  draw = rng.random()
  if draw < 0.35:
    return rng.choice(rng.choice(ALPHABETS))
  if draw < 0.75:
    return rng.choice(WORDS)
  return string(rng)[:8]


def string(rng):
  draw, letters = rng.random(), rng.choice(ALPHABETS)
  if draw < 0.3:
    return rng.choice(WORDS)
  if draw < 0.45:
    mark = rng.choice(MARKS)
    return mark.join(rng.choice(WORDS) for _ in range(rng.randint(2, 3)))
  if draw < 0.55:
    return rng.choice(letters) * rng.randint(2, 6)
  if draw < 0.7:
    return ''.join(
      rng.choice(letters + MARKS) for _ in range(rng.randint(4, 12))
    )
  return ''.join(rng.choice(letters) for _ in range(rng.randint(3, 12)))


BOUNDARIES = {
  'int': (0, 1, -1, 2, 10),
  'float': (0.0, 0.5, -1.5),
  'str': ('', 'a', ' ', 'Aa', '123'),
  'bytes': (b'', b'a'),
}


def changed(rng: random.Random, kind: str, old, small=None):
  """Another value of the type: a boundary value, or one step away from old."""
  if small:
    return small_value(rng, kind, small)
  if kind == 'bool':
    return not old
  if kind == 'other':
    return rearranged(rng, old)
  if kind in BOUNDARIES and rng.random() < 0.3:
    return rng.choice(BOUNDARIES[kind])
  if kind == 'int':
    return old + rng.choice((-7, -3, -2, -1, 1, 2, 3, 5, 11))
  if kind == 'float':
    return old + rng.choice((-1.5, -0.5, 0.25, 2.0))
  if kind == 'bytes':
    return changed_text(rng, old.decode()).encode()
  if kind == 'str':
    return changed_text(rng, old)
  if kind in ('dict', 'groups'):
    pairs = changed_items(
      rng, list(old.items()), lambda: value(rng, kind).items()
    )
    return dict(pairs)
  fresh = lambda: value(rng, kind)
  items = sorted(old) if isinstance(old, set) else list(old)
  return type(old)(changed_items(rng, items, fresh))


def rearranged(rng, old):
  """A container of anything with the same elements in other places."""
  if isinstance(old, dict):
    return dict(changed_items(rng, list(old.items()), old.items))
  if not isinstance(old, list | tuple | set):
    return old
  items = sorted(old, key=repr) if isinstance(old, set) else list(old)
  return type(old)(changed_items(rng, items, lambda: items))


def kind_of(value) -> str:
  """Which of KINDS a value is of, or 'other'."""
  kind = type(value).__name__
  if kind in ('int', 'bool', 'float', 'str', 'bytes'):
    return kind
  if not value or kind not in ('list', 'tuple', 'set', 'dict'):
    return 'other'
  if kind == 'tuple' and tuple(map(type, value)) == (str, int):
    return 'pair'
  keys = {kind_of(k) for k in value} if kind == 'dict' else {'str'}
  inside = value.values() if kind == 'dict' else value
  if len(found := {kind_of(x) for x in inside}) == 1 and keys == {'str'}:
    return HOLDS.get((kind, *found), 'other')
  return 'other'


def changed_text(rng, old):
  items = list(old)
  draw = rng.randrange(6)
  if draw == 0:
    return old.swapcase()
  if draw == 1:
    return (old + rng.choice(items or ['b']) * 2)[:LONGEST]
  if draw == 2:
    return value(rng, 'str')
  if draw == 3:
    return old[::-1]
  if draw == 4 and items:
    items[rng.randrange(len(items))] = value(rng, 'char')
  else:
    items.insert(rng.randint(0, len(items)), value(rng, 'char'))
  return ''.join(items)[:LONGEST]


def changed_items(rng, items, fresh):
  """A list with an element fewer, more or other, in another order, or none."""
  draw = rng.random()
  if draw < 0.1:
    return []
  if draw < 0.2:
    return items[:1]
  if draw < 0.4:
    return rng.sample(items, len(items))
  more = fresh()
  # The order of a set of strings is another one in every process.
  more = sorted(more) if isinstance(more, set) else list(more)
  if draw < 0.6:
    return items + items[-1:] + more[:1]
  if draw < 0.8 and items:
    i = rng.randrange(len(items))
    return items[:i] + items[i + 1 :]
  return more if draw < 0.9 else items[:2] + more[:3]
