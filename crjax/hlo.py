"""Reads a compiled program: what moves between devices and through memory.

XLA's own cost analysis counts the body of a loop once, whatever its number of
turns; here a loop counts as often as XLA says that it runs.
"""

import collections
import math
import re
from typing import NamedTuple

KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
# Instructions that name or group memory and move none.
FREE = {
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'while',
  'conditional',
  'call',
  'after-all',
  'partition-id',
  'replica-id',
  'iota',
}
CALLERS = ('fusion', 'while', 'conditional', 'call', 'async-start')
SLICES = ('dynamic-slice', 'slice', 'gather')
# What changes a part of its first operand, and which operand is new.
IN_PLACE = {'dynamic-update-slice': 1, 'scatter': 2}
BITS = {'pred': 8, 's4': 4, 'u4': 4, 'bf16': 16, 'token': 0, 'c64': 64}
SHAPE = re.compile(r'\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^}]*\})?')
INSTRUCTION = re.compile(r'\s+(ROOT )?%?([\w.\-]+) = ')
HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{$')
CALLED = re.compile(
  r'(body|condition|calls|to_apply|branch_computations|true_computation|'
  r'false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)
PRODUCTS = re.compile(r'cublas|cudnn|triton|mosaic|tpu_custom_call')
TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Instruction(NamedTuple):
  name: str
  shape: str
  op: str
  operands: list[str]
  rest: str
  root: bool


class Collective(NamedTuple):
  """One kind and size; `bytes` is the whole array, `count` runs a call."""

  kind: str
  bytes: int
  group: int  # devices that take part together
  count: int


def parse(text: str):
  """({name: its instructions}, name of the entry)."""
  found, entry, inside = {}, None, None
  for line in text.splitlines():
    if inside is None:
      header = HEADER.match(line)
      if header and '=' not in line.split('(')[0]:
        inside = found.setdefault(header[2], [])
        entry = header[2] if header[1] else entry
    elif line.startswith('}'):
      inside = None
    elif start := INSTRUCTION.match(line):
      inside.append(_instruction(line[start.end() :], start[2], start[1]))
  return found, entry


def _instruction(text, name, root):
  end = _closing(text, 0) if text.startswith('(') else text.index(' ')
  shape, rest = text[:end], text[end:].lstrip()
  op, _, rest = rest.partition('(')
  end = _closing('(' + rest, 0) - 1
  inside = rest[: end - 1]
  named = re.findall(r'%([\w.\-]+)', inside)
  operands = [inside] if op in ('constant', 'parameter') else named
  return Instruction(name, shape, op, operands, rest[end:], bool(root))


def _closing(text, start):
  """The index after the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if not depth:
      return i + 1
  return len(text)


def sizes(shape: str, *, main: bool = False) -> list[int]:
  """Bytes of each array in a shape, tuples flattened.

  `main`: 0 for what a TPU keeps on the chip (tiled, and in a memory space).
  """
  found = []
  for dtype, dims, layout in SHAPE.findall(shape):
    if main and 'T(' in layout and 'S(' in layout:
      found.append(0)
      continue
    digits = re.search(r'\d+', dtype)
    bits = BITS.get(dtype, int(digits[0]) if digits else 8)
    n = math.prod(int(d) for d in dims.split(',') if d)
    found.append(n * bits // 8)
  return found


def times(computations, entry):
  """(how often each computation runs, which of them are parts of a fusion).

  A loop whose number of turns is not written in the program counts one turn; of
  a conditional those branches count that multiply matrices, or, where none
  does, the shortest.
  """
  counts, fused = collections.Counter(), set()
  todo = [(entry, 1, False)]
  while todo:
    name, n, within = todo.pop()
    counts[name] += n
    if within:
      fused.add(name)
    for x in computations[name]:
      if x.op in CALLERS:
        turns = _turns(x, computations) if x.op == 'while' else 1
        inner = _called(x, computations)
        if x.op == 'conditional':
          inner = _taken(inner, computations)
        todo += [(c, n * turns, within or x.op == 'fusion') for c in inner]
  return counts, fused


def _called(x, computations):
  """The computations that an instruction runs, a loop's condition left out."""
  return [
    inner
    for key, names in CALLED.findall(x.rest)
    if key != 'condition'
    for inner in re.findall(r'[\w.\-]+', names)
    if inner in computations
  ]


def _taken(branches, computations):
  heavy = [c for c in branches if _multiplies(c, computations)]
  return heavy or [min(branches, key=lambda c: len(computations[c]))]


def _multiplies(name, computations) -> bool:
  return any(
    x.op in ('dot', 'convolution')
    or (x.op == 'custom-call' and PRODUCTS.search(x.rest))
    or any(_multiplies(c, computations) for c in _called(x, computations))
    for x in computations[name]
    if x.op in ('dot', 'convolution', 'custom-call', *CALLERS)
  )


def _turns(x, computations) -> int:
  """The turns of a `while`: noted by XLA, or read off its condition, which is
  i < n or i < min(.., n), fused or not."""
  noted = TRIPS.search(x.rest)
  if noted:
    return int(noted[1])
  name = dict(CALLED.findall(x.rest))['condition'].lstrip('%')
  condition = list(computations[name])
  for y in computations[name]:
    condition += [z for c in _called(y, computations) for z in computations[c]]
  below = any(y.op == 'compare' and 'direction=LT' in y.rest for y in condition)
  ends = {y.operands[0] for y in condition if y.op == 'constant'}
  end = ends.pop() if len(ends) == 1 else ''
  return int(end) if below and end.isdigit() else 1


def collectives(computations, counts) -> list[Collective]:
  """What crosses the links, largest total first.

  The start and the end of one that runs beside other work may both show it:
  one channel counts once.
  """
  channels = {}
  for name, n in counts.items():
    shapes = {x.name: x.shape for x in computations[name]}
    for x in computations[name]:
      kind = x.op.removesuffix('-start')
      if kind in KINDS:
        channel = re.search(r'channel_id=(\d+)', x.rest)
        channel = channel[1] if channel else x.name
        _, most = channels.get(channel, (None, 0))
        key = kind, _whole(x, shapes), _group(x.rest)
        channels[channel] = key, max(n, most)
  found = collections.Counter()
  for key, n in channels.values():
    found[key] += n
  rows = [Collective(*key, n) for key, n in found.items()]
  return sorted(rows, key=lambda c: -c.bytes * c.count)


def _whole(x, shapes) -> int:
  """Bytes of the arrays before they are split or after they are joined."""
  read = sum(sum(sizes(shapes.get(o, ''))) for o in x.operands)
  made = sum(sizes(x.shape))
  # A start returns what it read beside what it makes.
  return max(read, made - read if x.op.endswith('-start') else made)


def _group(rest) -> int:
  """Devices that take part together, in any of XLA's three notations."""
  axes = re.search(r'replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}', rest)
  if axes:
    sizes = {k: int(n) for k, n in re.findall(r"'(\w+)'=(\d+)", axes[1])}
    return math.prod(sizes[k] for k in re.findall(r"'(\w+)'", axes[2]))
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\]', rest)
  if iota:
    return int(iota[2])
  listed = re.search(r'replica_groups=\{\{([\d,]*)\}', rest)
  return len(listed[1].split(',')) if listed else 2


def wire(c: Collective) -> float:
  """Bytes that leave a device for one run of it, as a ring does it."""
  share = (c.group - 1) / c.group
  factor = {'all-reduce': 2 * share, 'collective-permute': 1.0}
  return c.bytes * factor.get(c.kind, share)


def traffic(computations, counts, fused) -> float:
  """Bytes that instructions read and write in memory, on one device.

  An upper bound: what stays in a cache between two instructions counts twice.
  """
  total = 0
  for name, n in counts.items():
    if name in fused:
      continue
    shapes = {x.name: x.shape for x in computations[name]}
    for x in computations[name]:
      if x.op not in FREE and not x.op.endswith('-done'):
        total += n * _moved(x, shapes, computations)
  return total


def largest(computations, counts, fused) -> int:
  """Bytes of the largest array that an instruction makes, not in place.

  Below the size of a cache or a weight, none of them is ever copied. What a TPU
  fetches ahead into the memory on the chip is no copy; a start shows what it
  reads, so its end counts.
  """
  return max(
    max(sizes(x.shape, main=True), default=0)
    for name in counts
    if name not in fused
    for x in computations[name]
    if x.op not in (*FREE, *IN_PLACE)
    and not x.op.endswith('-start')
    and not _in_place(x, computations)
  )


def _in_place(x, computations) -> bool:
  return x.op == 'fusion' and any(
    y.op in IN_PLACE for c in _called(x, computations) for y in computations[c]
  )


def _moved(x, shapes, computations):
  size = lambda shape: sum(sizes(shape, main=True))
  of = lambda name: size(shapes.get(name, ''))
  if x.op in IN_PLACE:
    return 2 * of(x.operands[IN_PLACE[x.op]])
  if x.op in SLICES:
    return sum(sizes(x.shape)) + size(x.shape)
  if x.op in ('slice-start', 'dynamic-slice-start'):
    return sizes(x.shape)[1] + sizes(x.shape, main=True)[1]
  if x.op.endswith('-start'):
    return size(x.shape)  # What is read stands beside what is made.
  called = _called(x, computations)
  if x.op != 'fusion' or not called:
    return size(x.shape) + sum(map(of, x.operands))
  inside = computations[called[0]]
  inner = {y.name: size(y.shape) for y in inside}
  # Within a fusion nothing says where an operand lies: its own shape does.
  numbers = [int(y.operands[0]) for y in inside if y.op == 'parameter']
  names = [y.name for y in inside if y.op == 'parameter']
  read = 0
  for name, i in zip(names, numbers, strict=True):
    read += min(_read(name, inside, inner), of(x.operands[i]))
  placed = [y for y in inside if y.op in IN_PLACE]
  kept = sum(inner[y.name] for y in placed)
  new = sum(inner[y.operands[IN_PLACE[y.op]]] for y in placed)
  return read + new + max(size(x.shape) - kept, 0)


def _read(name, inside, inner):
  """A fusion reads of an operand only the slices that it takes of it, and
  nothing of what it changes in place."""
  total = 0
  for y in inside:
    if name not in y.operands:
      continue
    if y.op in SLICES:
      total += inner[y.name]
    elif y.op == 'bitcast':
      total += _read(y.name, inside, inner)
    elif y.op not in IN_PLACE or y.operands[0] != name:
      return inner[name]
  return min(total, inner[name])


def kernels(computations) -> collections.Counter:
  """Custom calls by target: which hand-written kernels are in the program."""
  found = collections.Counter()
  for inside in computations.values():
    for x in inside:
      if x.op == 'custom-call':
        target = re.search(r'custom_call_target="([^"]*)"', x.rest)
        found[target[1]] += 1
  return found
