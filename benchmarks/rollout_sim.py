"""How long a long-tailed batch of rollouts should take, before it is run.

  python benchmarks/rollout_sim.py
  python benchmarks/rollout_sim.py --measured=rollout.json

Follows the engine's schedule, chunk by chunk: who has a slot, how many slots
and columns the caches have, what is noticed a chunk late. A step costs what it
reads and what it multiplies at a share of the machine's rates, plus a fixed
time. The work is Qwen2.5-7B, 64 questions x 8 rollouts, prompts of 512 tokens,
log-normal completions (median 600, sigma 0.7, at most 2,048). Everything that
it prints of machines that were not measured is a prediction.

`--measured` takes the JSON of benchmarks/rollout.py and sets its work, on the
rates that were measured with it, beside the times that it found.
"""

import argparse
import collections
import json
import math
import pathlib
import sys
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from crjax import engine, model, roofline, topology

QWEN = model.Config(V=152064, L=28, D=3584, F=18944, N=28, K=4, H=128)
# name: kind of chip, chips, ways over which a model is split
MACHINES = {
  'h200': ('h200', 1, 1),
  'h200x8': ('h200', 8, 1),
  'v5e:4x4': ('v5e', 16, 4),
  'v5p:2x2x1': ('v5p', 4, 1),
  'v6e:2x4': ('v6e', 8, 1),
}
# Shares of a sheet's rates that decoding, its products and the prefill reach,
# and what a step takes beside: kernels to start, sampling. Assumed.
READ, MULTIPLY, PREFILL, STEP = 0.8, 0.6, 0.55, 0.4e-3
CPU_STEP = 1e-3  # Small programs on a CPU: some 300 calls of a thread pool.


class Work(NamedTuple):
  cfg: model.Config
  itemsize: int
  prompt: int
  longest: int
  group: int
  length_B: np.ndarray


class Machine(NamedTuple):
  chip: topology.Chip
  chips: int
  ways: int
  step: float


class Outcome(NamedTuple):
  seconds: float
  steps: int
  row_steps: int
  prefill_seconds: float


def step_seconds(work, machine, rows: int, columns: int) -> float:
  """One step of `rows` slots whose caches have `columns`."""
  cfg, chip = work.cfg, machine.chip
  replicas = machine.chips // machine.ways
  rows = math.ceil(rows / replicas)
  read = roofline.decode_bytes(cfg, rows * columns, work.itemsize)
  read += 4 * rows * cfg.V * 4  # Logits: written, and read three times.
  flops = rows * 2 * roofline.matmul_params(cfg)
  flops += roofline.attention_flops(cfg, rows * columns)
  slowest = max(read / (READ * chip.bandwidth), flops / (MULTIPLY * chip.flops))
  return slowest / machine.ways + machine.step


def prefill_seconds(work, machine, prompts: int) -> float:
  tokens = prompts * work.prompt
  flops = tokens * roofline.forward_flops(work.cfg, work.prompt / 2)
  return flops / (PREFILL * machine.chip.flops * machine.chips)


def copy_seconds(work, machine, rows: int, columns: int) -> float:
  """The caches of so many rows, read and written once."""
  size = rows * columns * roofline.cache_bytes(work.cfg, work.itemsize)
  return 2 * size / (machine.chip.bandwidth * machine.chips)


def waves(work, machine, slots: int) -> Outcome:
  """A static batch after another, each prompt computed for every rollout, the
  whole cache read, until the longest has ended."""
  seconds, steps, row_steps = 0.0, 0, 0
  columns = work.prompt + work.longest
  prefill = prefill_seconds(work, machine, len(work.length_B))
  for i in range(0, len(work.length_B), slots):
    part = work.length_B[i : i + slots]
    n = int(part.max())
    seconds += n * step_seconds(work, machine, len(part), columns)
    steps, row_steps = steps + n, row_steps + n * len(part)
  return Outcome(seconds + prefill, steps, row_steps, prefill)


def continuous(work, machine, slots: int, chunk=16, window=128) -> Outcome:
  """`engine.stream`: the same choices, each with its price."""
  queue = collections.deque(enumerate(work.length_B))
  left, asked = {}, {}  # Tokens to come and steps asked for, of who has a slot.
  flight = collections.deque()
  seconds = prefill = 0.0
  steps = row_steps = rows = columns = 0
  computed = set()
  while queue or left or flight:
    taken = [queue.popleft() for _ in range(min(slots - len(left), len(queue)))]
    new = {i // work.group for i, _ in taken} - computed
    computed |= new
    prefill += prefill_seconds(work, machine, len(new))
    seconds += copy_seconds(work, machine, len(taken), work.prompt)
    left |= {i: int(n) for i, n in taken}
    asked |= {i: 0 for i, _ in taken}
    if left:
      fewer = min(engine.doubled(len(left), 1), slots)
      most = work.prompt + min(max(asked.values()), work.longest)
      wide = engine.bucket(most + chunk, window)
      if fewer != rows or not columns // 2 < wide <= columns:
        seconds += copy_seconds(work, machine, max(fewer, rows), wide)
        rows, columns = fewer, wide
    busy = any(asked[i] < work.longest for i in left)
    if busy:
      n = min(chunk, max(left.values()))
      seconds += max(n, 0) * step_seconds(work, machine, rows, columns)
      steps, row_steps = steps + max(n, 0), row_steps + max(n, 0) * rows
      for i in left:
        left[i] -= n
        asked[i] += chunk
      flight.append([i for i in left if left[i] <= 0])
    if flight and not (busy and len(flight) < 2):
      for i in flight.popleft():
        left.pop(i, None)
        asked.pop(i, None)
  return Outcome(seconds + prefill, steps, row_steps, prefill)


def long_tailed(seed=0) -> Work:
  rng = np.random.default_rng(seed)
  length_B = np.clip(rng.lognormal(np.log(600), 0.7, 512), 16, 2048).astype(int)
  return Work(QWEN, 2, 512, 2048, 8, length_B)


def ordered(work) -> Work:
  """Groups longest first, as `engine.longest_first` that foresaw all."""
  groups = work.length_B.reshape(-1, work.group)
  groups = groups[np.argsort(-groups.max(1), kind='stable')]
  return work._replace(length_B=-np.sort(-groups, axis=1).ravel())


POLICIES = {
  'static waves': lambda work, m, slots: waves(work, m, slots),
  'engine': continuous,
  'engine, longest first': lambda work, m, slots: continuous(
    ordered(work), m, slots
  ),
}


def predict(names, slots: int) -> list[dict]:
  work, found = long_tailed(), []
  total = int(work.length_B.sum())
  for name in names:
    kind, chips, ways = MACHINES[name]
    machine = Machine(topology.CHIPS[kind], chips, ways, STEP)
    for policy, run in POLICIES.items():
      x = run(work, machine, slots)
      found.append(
        x._asdict()
        | {
          'machine': name,
          'policy': policy,
          'slots': slots,
          'tokens_per_s': total / x.seconds,
          'tokens_per_s_chip': total / x.seconds / chips,
          'occupancy': total / x.row_steps,
        }
      )
  return found


def show(found):
  print('predicted, Qwen2.5-7B, 512 completions, mean 727 tokens, bfloat16:')
  print(
    f'{"machine":10} {"policy":22} {"slots":>5} {"s":>7} {"steps":>6} '
    f'{"occupancy":>9} {"tok/s":>8} {"a chip":>7}'
  )
  for x in found:
    print(
      f'{x["machine"]:10} {x["policy"]:22} {x["slots"]:5d} {x["seconds"]:7.1f} '
      f'{x["steps"]:6,d} {x["occupancy"]:9.0%} {x["tokens_per_s"]:8,.0f} '
      f'{x["tokens_per_s_chip"]:7,.0f}'
    )


def compare(path):
  """Prediction and measurement of the CPU benchmark, side by side."""
  from benchmarks import rollout

  print('on this CPU, benchmarks/rollout.py: predicted / measured')
  print(
    f'{"vocabulary":>10} {"slots":>5} {"steps":>15} {"occupancy":>13} '
    f'{"step ms":>15} {"tok/s":>15}'
  )
  for result in json.loads(pathlib.Path(path).read_text()):
    cfg = model.Config(V=result['vocabulary'], **rollout.SHAPE)
    length_QR = rollout.lengths(*result['shape'])
    work = Work(
      cfg,
      4,
      rollout.PROMPT,
      rollout.LONGEST,
      length_QR.shape[1],
      length_QR.ravel(),
    )
    chip = topology.Chip(
      result['GFLOP_per_s'] * 1e9, result['bandwidth_GB_per_s'] * 1e9, 0, 0
    )
    for x in result['tried']['crjax']:
      if 'failed' in x:
        continue
      y = continuous(work, Machine(chip, 1, 1, CPU_STEP), x['batch'])
      total = int(length_QR.sum())
      step = 1e3 * (y.seconds - y.prefill_seconds) / y.steps
      pairs = [
        f'{y.steps:,d} / {x["steps"]:,d}',
        f'{total / y.row_steps:.0%} / {x["occupancy"]:.0%}',
        f'{step:.1f} / {x["step_ms"]:.1f}',
        f'{total / y.seconds:,.0f} / {x["tokens_per_s"]:,.0f}',
      ]
      print(
        f'{result["vocabulary"]:10,d} {x["batch"]:5d} {pairs[0]:>15} '
        f'{pairs[1]:>13} {pairs[2]:>15} {pairs[3]:>15}'
      )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--json', help='also write the numbers to this file')
  parser.add_argument('--machines', default=','.join(MACHINES))
  parser.add_argument('--slots', type=int, default=256)
  parser.add_argument('--measured', help='JSON of benchmarks/rollout.py')
  args = parser.parse_args()
  if args.measured:
    return compare(args.measured)
  found = predict(args.machines.split(','), args.slots)
  show(found)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(found, indent=2) + '\n')
  return None


if __name__ == '__main__':
  main()
