"""The sampler of Qwen2.5-7B, compiled for machines that need not be here.

  PYTHONPATH=aot python benchmarks/rollout_compile.py --json=FILE

Compiles the engine's own step of decoding (and, with `--prefill`, its prefill)
for one H200, v5e-16, v5p-8 and v6e-8: prompts of 512 tokens, completions of up
to 2,048, all slots as long, bfloat16, nothing else on the devices. Prints the
memory that the compiler needs, how many slots would fit, and what a step takes
at the sheet's rates. Compiling for a TPU takes minutes; topology.py says what
it needs.
"""

import argparse
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
SHAPE = {'V': 152064, 'L': 28, 'D': 3584, 'F': 18944, 'N': 28, 'K': 4, 'H': 128}
PROMPT, LONGEST = 512, 2048
TARGETS = {  # topology: mesh (data, fsdp, tensor), slots
  'h200': ((1, 1, 1), 256),
  'v6e:2x4': ((1, 8, 1), 256),
  'v5p:2x2x1': ((1, 4, 1), 256),
  'v5e:4x4': ((1, 4, 4), 256),
}
GIB = 1 << 30


def compile_for(name, mesh_shape, slots, args) -> dict:
  import jax
  import jax.numpy as jnp

  from crjax import aot, model, programs, roofline, topology
  from crjax.sharding import make_mesh

  cfg = model.Config(**SHAPE | ({'L': args.layers} if args.layers else {}))
  target = topology.open(name)
  mesh, n = make_mesh(mesh_shape, target.devices), len(target.devices)
  length, dtype = PROMPT + LONGEST, jnp.bfloat16
  functions = programs.of_rollout(
    cfg, mesh, slots=slots, length=length, prompt=PROMPT, dtype=dtype
  )
  if not args.prefill:
    functions.pop('prefill')
  weights, cache = map(aot.held, functions['decode'][1:3])
  with jax.set_mesh(mesh):
    compiled = {k: aot.compile(k, f, *xs) for k, (f, *xs) in functions.items()}
  decode = compiled['decode']
  per_slot = cache / slots
  free = target.chip.memory - decode.memory['peak']
  return {
    'topology': name,
    'devices': n,
    'mesh': mesh_shape,
    'slots': slots,
    'fits': free > 0,
    'capacity': target.chip.memory,
    'weights': weights,
    'cache': cache,
    'most_slots': int(slots + free / per_slot),
    'programs': {
      k: p._asdict()
      | {'times': aot.times(p, target.chip, n)}
      | {'collectives': [x._asdict() for x in p.collectives]}
      for k, p in compiled.items()
    },
    'roofline_ms': 1e3
    * roofline.decode_seconds(
      cfg, target.chip, rows=slots, cached=slots * 1024, itemsize=2, ways=n
    ),
  }


def show(found):
  for x in found:
    p = x['programs']['decode']
    m = {k: v / GIB for k, v in p['memory'].items()}
    print(
      f'{x["topology"]} mesh {tuple(x["mesh"])}, {x["slots"]} slots: '
      f'{m["peak"]:.2f} of {x["capacity"] / GIB:.2f} GiB a device '
      f'({"fits" if x["fits"] else "DOES NOT FIT"}): weights '
      f'{x["weights"] / GIB:.2f}, caches {x["cache"] / GIB:.2f}, scratch '
      f'{m["scratch"]:.2f}; up to {x["most_slots"]} slots; compiled in '
      f'{p["seconds"]:.0f} s'
    )
    print(
      f'  a step reads and writes {p["traffic"] / 1e9:.2f} GB a device, '
      f'{p["times"]["roofline"] * 1e3:.2f} ms at the sheet with full caches; '
      f'{x["roofline_ms"]:.2f} ms at 1,024 live tokens a row'
    )
    for c in p['collectives'][:4]:
      print(
        f'  {c["count"]} x {c["kind"]} of {c["bytes"] / 1e6:.2f} MB over '
        f'{c["group"]}'
      )
    if p['kernels']:
      print(f'  kernels {p["kernels"]}')


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--json', help='also write the numbers to this file')
  parser.add_argument('--targets', default=','.join(TARGETS))
  parser.add_argument('--slots', type=int, default=0)
  parser.add_argument('--layers', type=int, default=0, help='fewer, to try')
  parser.add_argument('--prefill', action='store_true')
  args = parser.parse_args()
  from crjax import topology

  found = []
  for name in args.targets.split(','):
    topology.prepare(name)
    mesh, slots = TARGETS[name]
    found.append(compile_for(name, mesh, args.slots or slots, args))
    show(found[-1:])
    sys.stdout.flush()
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  main()
