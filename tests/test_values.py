"""Canonical texts say what `==` says; literals come back as they went in."""

import ast
import collections
import contextlib
import math
import random
import time

import pytest

from crjax.execution import literals, values

SCALARS = [
  *(None, True, False, 0, 1, -1, 2, -5, 255, -255, 10**20, -(10**20)),
  *(0.0, -0.0, 1.0, -1.0, 0.5, -255.0, 1e300, 5e-324, math.inf, -math.inf),
  *(0j, 1 + 0j, 1j, -1 - 2j, 2 + 0j),
  *(
    '',
    'a',
    "'",
    '"',
    '\\',
    '\x00',
    '\x01',
    'é',
    '\ud800',
    's',
    'i1',
    ',',
    ':',
  ),
  *(b'', b'a', b'\xff', b"'"),
  *(range(0), range(1), range(0, 4, 2), range(0, 3, 2), range(2, 2)),
]
HASHABLE = [tuple, frozenset]
CONTAINERS = [
  *(list, tuple, set, frozenset, dict, bytearray, collections.deque),
  *(collections.OrderedDict, collections.Counter, collections.defaultdict),
]


def value(draw, depth=3, hashable=False):
  """A random nested value; few distinct leaves, so that many are equal."""
  if depth == 0 or draw.random() < 0.4:
    return draw.choice(SCALARS)
  kind = draw.choice(HASHABLE if hashable else CONTAINERS)
  size = draw.randrange(3)
  keyed = kind in (set, frozenset) or issubclass(kind, dict)
  inner = lambda: value(draw, depth - 1, hashable or keyed)
  if kind is bytearray:
    return bytearray(draw.choice([b'', b'a', b'\xff']))
  if kind is collections.Counter:
    return kind({inner(): draw.choice([1, 2]) for _ in range(size)})
  if kind is collections.defaultdict:
    return kind(None, {inner(): value(draw, depth - 1) for _ in range(size)})
  if issubclass(kind, dict):
    return kind({inner(): value(draw, depth - 1) for _ in range(size)})
  return kind([inner() for _ in range(size)])


def python_equal(a, b):
  """`==`, with dicts of all kinds as dicts: see values.texts."""
  if isinstance(a, dict) and isinstance(b, dict):
    return a.keys() == b.keys() and all(python_equal(a[k], b[k]) for k in a)
  for kind in (list, tuple, collections.deque):
    if isinstance(a, kind) and isinstance(b, kind):
      return len(a) == len(b) and all(map(python_equal, a, b))
  return a == b


def typed_equal(a, b):
  """The definition of strict, written another way: with types beside values."""
  if type(a) is not type(b):
    return False
  if isinstance(a, float):
    return a == b and math.copysign(1, a) == math.copysign(1, b)
  if isinstance(a, complex):
    return typed_equal(a.real, b.real) and typed_equal(a.imag, b.imag)
  if isinstance(a, collections.OrderedDict):
    return typed_equal(list(a.items()), list(b.items()))
  if isinstance(a, dict):
    return matched(list(a.items()), list(b.items()))
  if isinstance(a, set | frozenset):
    return matched(list(a), list(b))
  if isinstance(a, list | tuple | collections.deque):
    return len(a) == len(b) and all(map(typed_equal, a, b))
  if isinstance(a, range):
    return (a.start, a.stop, a.step) == (b.start, b.stop, b.step)
  return a == b


def matched(a, b):
  """Whether each of a has its own equal in b."""
  for x in a:
    found = next((i for i, y in enumerate(b) if typed_equal(x, y)), None)
    if found is None:
      return False
    del b[found]
  return not b


def test_equal_texts_are_equal_values():
  draw, equal = random.Random(1), 0
  for _ in range(1_000):
    group = [value(draw) for _ in range(24)]
    texts = [values.texts(x) for x in group]
    for i, a in enumerate(group):
      for j, b in enumerate(group[:i]):
        py, strict = (
          values.equal(x, y) for x, y in zip(texts[i], texts[j], strict=True)
        )
        assert py == bool(python_equal(a, b)), (a, b)
        assert strict == typed_equal(a, b), (a, b)
        assert py or not strict
        equal += py
  assert equal > 2000  # The property was tried on both sides.


@pytest.mark.parametrize('wrap', [lambda x: x, lambda x: [x], lambda x: {1: x}])
@pytest.mark.parametrize('nan', [math.nan, complex(math.nan, 0), 1j * math.inf])
def test_nan_equals_nothing(wrap, nan):
  for text in values.texts(wrap(nan)):
    assert not values.equal(text, text)


@pytest.mark.parametrize(
  'bad',
  [
    object(),
    ...,
    NotImplemented,
    int,
    len,
    collections.namedtuple('P', 'x')(1),
    type('I', (int,), {})(1),
    [type('S', (str,), {})('a')],
    iter([]),
    {}.keys(),
    memoryview(b'a'),
    pytest.param(1 << 160_001, id='huge'),
  ],
)
def test_other_types_and_sizes_have_no_text(bad):
  with pytest.raises(values.Unsupported):
    values.texts(bad)


def test_depth_has_a_limit_on_both_sides():
  nest = lambda n: '[' * n + ']' * n
  deep = values.DEEPEST
  values.texts(literals.parse(nest(deep)))
  with pytest.raises(ValueError, match='nested'):
    literals.parse(nest(deep + 1))
  with pytest.raises(values.Unsupported):
    values.texts([ast.literal_eval(nest(deep + 1))])


def test_what_is_rendered_reads_back_as_it_was():
  draw, kinds = random.Random(2), collections.Counter()
  for _ in range(20_000):
    x = value(draw)
    source = literals.render(x)
    if 'defaultdict' in source or '\\ud800' in source:
      continue
    kinds[type(x)] += 1
    assert values.text(literals.parse(source), True) == values.text(x, True), x
    assert literals.render(literals.parse(source)) == source
  assert len(kinds) > 12


def test_numbers_of_many_digits_survive():
  for x in (10**5000, -(10**5000), 2**20_000 + 1):
    assert literals.parse(literals.render(x)) == x


def test_rendering_is_repr_for_plain_values():
  for x in ([1, (2,), (), {'a': None}], "it's", b'\x00', -1.5, 1e300, True, 1j):
    assert literals.render(x) == repr(x)


def test_sets_are_rendered_in_one_order():
  words = [f'w{i}' for i in range(20)]
  texts = set()
  for seed in range(5):
    random.Random(seed).shuffle(words)
    texts.add(literals.render([set(words), frozenset(words)]))
  assert len(texts) == 1


def test_calls():
  args = literals.parse_call("f([1, 2], x={'a': -0x10}, )", 'f')
  assert args == ([[1, 2]], {'x': {'a': -16}})
  assert literals.render_call(*args) == "[1, 2], x={'a': -16}"
  for text in ('g(1)', 'f', 'f(1)(2)', 'f(*[1])', 'f(**{})', 'f(a=1, a=2)'):
    with pytest.raises(ValueError):
      literals.parse_call(text, 'f')


@pytest.mark.filterwarnings('ignore')  # pytest replaces those of literals.
@pytest.mark.parametrize(
  'text',
  [
    '-' * 16_000 + '1',
    'lambda:' * 2_000 + '1',
    '[' * 16_000,
    '{' * 64,
    '(' * 64 + ')' * 64,
    '[{(' * 5_000,
    '{1:' * 4_000,
    '"' * 16_000,
    "'\\" * 8_000,
    '"""' + '\\' * 16_000,
    '9' * 16_000,
    '0x' + 'f' * 16_000,
    '1+' * 8_000 + '1',
    '1j+' * 5_000 + '1',
    'not ' * 4_000 + '1',
    'a if ' * 3_000,
    '1if 1else ' * 1_500 + '1',
    'f(' * 8_000,
    'f"{' * 5_000,
    '[x for x in ' * 1_000,
    '#' + '(' * 16_000,
    '{' + ','.join(str(i * (2**61 - 1)) for i in range(650)) + '}',
    'set(' * 4_000,
    'list(' * 60 + 'range(9999)' + ')' * 60,
    'range(10**9)',
    'list(range(1000000000))',
    '\ud800',
    '\x00',
    '1' + ' ' * 16_382,
    '\\\n' * 8_000,
    ';' * 16_000,
    '@' * 16_000,
    '\t' * 16_000 + '1',
  ],
)
def test_hostile_text_is_refused_soon_or_read_soon(text):
  began = time.process_time()
  with contextlib.suppress(ValueError, values.Unsupported):
    values.texts(literals.parse(text))
  assert time.process_time() - began < 1
