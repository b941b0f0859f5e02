"""Random programs of several functions that end, to test the tracer on."""

import random

EXPRESSIONS = [
  '{a} + 1',
  '{a} * 2 - {b}',
  '({a} + {b}) % 7',
  'len(xs) + {a}',
  'sum([{a} + i for i in xs])',
  'max({a}, {b}, key=lambda v: -v)',
  '[i for i in xs if i > {a}][0]',
  'sorted(j * {a} for j in xs)[-1]',
  '{a} // ({b} % 3)',
  '{{1: {a}, 2: {b}}}[{a} % 4]',
  'helper({a} % 5, xs)',
  'sum(gen({a} % 4))',
  'rec({a} % 5)',
  'xs[{a} % 6]',
  "int('1x'[: {a} % 3])",
  'inner({a})',
  '{a} if {b} % 2 else 0',
]
ERRORS = ['ZeroDivisionError', 'KeyError', '(IndexError, ValueError)']
ERRORS += ['Exception', 'ValueError', 'LookupError']
FIXED = """
def helper(n, ys):
  total = 0
  for y in ys:
    if y > n:
      total += y
      continue
    if y == 3:
      break
    total -= 1
  else:
    total += 100
  return total

def gen(n):
  done = []
  try:
    for i in range(n):
      yield i * 2
      done.append(i)
  finally:
    done = None
  k = yield 7

def rec(n):
  if n <= 0:
    return 1
  below = rec(n - 1)
  return below + n
"""


def program(seed) -> str:
  """Source with an entry f(a, b, xs); int, int and list of ints."""
  rng = random.Random(seed)
  lines = ['def f(a, b, xs):']
  lines += ['  def inner(v):', '    w = v + a', '    return w + b']
  lines += ['  c = d = 0', '  zs = []']
  lines += body(rng, 1, 3)
  lines += ['  return a, b, c, d, zs, xs']
  return '\n'.join(lines) + FIXED


def expression(rng):
  names = {x: rng.choice('abcd') for x in 'ab'}
  return rng.choice(EXPRESSIONS).format(**names)


def body(rng, depth, deep, loop=False):
  count = rng.randint(1, 4 if depth > 1 else 6)
  return [x for _ in range(count) for x in one(rng, depth, deep, loop)]


def one(rng, depth, deep, loop):
  """One statement, indented; `loop`: break and continue are allowed."""
  pad = '  ' * depth
  inner = lambda loop=loop: body(rng, depth + 1, deep, loop)
  kind = rng.random()
  if kind < 0.45 or depth > deep:
    return simple(rng, pad, loop)
  if kind < 0.6:
    made = [f'{pad}if {expression(rng)} > {rng.randint(0, 9)}:', *inner()]
    if rng.random() < 0.4:
      made += [f'{pad}elif {rng.choice("abcd")} % 2:', *inner()]
    return made + ([f'{pad}else:', *inner()] if rng.random() < 0.4 else [])
  if kind < 0.75:
    target, of = rng.choice(
      [('i', 'range(3)'), ('i', 'xs'), ('i, c', 'zip(xs, xs)'), ('d', 'gen(2)')]
    )
    made = [f'{pad}for {target} in {of}:', *inner(True)]
    return made + ([f'{pad}else:', *inner()] if rng.random() < 0.3 else [])
  if kind < 0.82:
    made = [f'{pad}n{depth} = {rng.randint(0, 3)}']
    made += [f'{pad}while n{depth} > 0:', f'{pad}  n{depth} -= 1', *inner(True)]
    return made + ([f'{pad}else:', *inner()] if rng.random() < 0.3 else [])
  made = [f'{pad}try:', *inner()]
  handlers = rng.randint(0, 2)
  for _ in range(handlers):
    name = rng.choice([' as e', ''])
    made += [f'{pad}except {rng.choice(ERRORS)}{name}:', *inner()]
  if handlers and rng.random() < 0.3:
    made += [f'{pad}except:', *inner()]
  if handlers and rng.random() < 0.3:
    made += [f'{pad}else:', *inner()]
  if not handlers or rng.random() < 0.4:
    # Its last statement is simple: Python 3.11 has two wrong lines otherwise,
    # see test_what_python_3_11_gets_wrong.
    made += [f'{pad}finally:', *inner(), f'{pad}  zs.append(0)']
  return made


def simple(rng, pad, loop):
  name = rng.choice('abcd')
  choices = [
    [f'{pad}{name} = {expression(rng)}'],
    [f'{pad}{name} = {expression(rng)}'],
    [f'{pad}{name} += {expression(rng)}'],
    [f'{pad}zs.append({expression(rng)})'],
    [f'{pad}c, d = d, {expression(rng)}'],
    [
      f'{pad}zs = [',
      f'{pad}  {expression(rng)}',
      f'{pad}  for i in xs',
      f'{pad}]',
    ],
    [f'{pad}xs = {{i for i in xs}} and [i + 1 for i in xs if i < 9]'],
    [f'{pad}pass'],
    [f'{pad}t = {name}', f'{pad}del t'],
    [f'{pad}assert {name} % 3'],
    [f'{pad}raise {rng.choice(["ValueError(1)", "KeyError", "IndexError"])}'],
    [f'{pad}return {expression(rng)}'],
  ]
  if loop:
    choices += [[f'{pad}break'], [f'{pad}continue']]
  # Ends are rare, or nothing would come after them.
  weights = [9, 9, 5, 9, 4, 3, 3, 1, 1, 1, 1, 1, 2, 2][: len(choices)]
  return rng.choices(choices, weights)[0]
