"""How fast a checkpoint loads, and how much memory the host needs for it.

  python benchmarks/load.py --gb=6 --json=load.json

Writes a random bfloat16 checkpoint in the shape of Qwen2.5-3B, scaled to the
size asked for by its number of layers, and loads it onto 8 host devices, whose
memory is the host's: peak RSS cannot be below the checkpoint's own size.
Beside it, in turns, each in a process of its own: the same files read into
memory of their own, which is what any loader has to do at least. `cold` drops
the files from the page cache first, `warm` does not.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SHAPE = {
  'model_type': 'qwen2',
  'vocab_size': 151936,
  'hidden_size': 2048,
  'intermediate_size': 11008,
  'num_attention_heads': 16,
  'num_key_value_heads': 2,
  'tie_word_embeddings': True,
}
LAYER_GB = 0.1542  # of one layer of this shape in bfloat16
EMBEDDING_GB = 0.6223
FILE_BYTES = 2 << 30


def write(directory, gb: float):
  """A checkpoint of about `gb` gigabytes whose numbers are all finite."""
  from crjax import hf
  from crjax.hf import tensors

  layers = max(round((gb - EMBEDDING_GB) / LAYER_GB), 1)
  described = SHAPE | {'num_hidden_layers': layers}
  cfg = hf.config_from_hf(described)
  (directory / 'config.json').write_text(json.dumps(described))
  plan = tensors.plan(
    [
      tensors.Planned(name, tensors.DTYPES['BF16'], shape)
      for name, shape in hf.their_shapes(cfg).items()
    ],
    limit=FILE_BYTES,
  )
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 1 << 16, 1 << 24, np.uint16) & 0xBFFF  # below 2

  def read(tensor):
    flat = np.resize(bits, int(np.prod(tensor.shape)))
    return flat.view(tensor.dtype).reshape(tensor.shape)

  for file, part in plan.items():
    tensors.write(directory / file, part, read)
  index = tensors.index(plan)
  (directory / tensors.INDEX).write_text(json.dumps(index))


def forget(directory):
  """Drops the files from the page cache."""
  for path in directory.glob('*.safetensors'):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def read_raw(directory):
  """Every byte of the files in memory of its own."""
  kept = []
  for path in sorted(directory.glob('*.safetensors')):
    memory = np.empty(path.stat().st_size, np.uint8)
    with path.open('rb', buffering=0) as file:
      done = 0
      while n := file.readinto(memory[done : done + (1 << 30)]):
        done += n
    kept.append(memory)


def load(directory, mesh):
  import jax
  import jax.numpy as jnp

  from crjax import hf
  from crjax.sharding import make_mesh

  mesh = make_mesh(mesh)
  began = time.monotonic()
  params = hf.load(hf.inspect(directory), mesh, dtype=jnp.bfloat16)
  jax.block_until_ready(params)
  return time.monotonic() - began


def child(what, directory, mesh):
  """One measurement; prints seconds and the peak RSS in bytes."""
  if what == 'raw':
    began = time.monotonic()
    read_raw(directory)
    seconds = time.monotonic() - began
  else:
    seconds = load(directory, mesh)
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
  print(json.dumps({'seconds': seconds, 'peak': peak}))


def measure(what, directory, args, *, cold):
  if cold:
    forget(directory)
  command = [sys.executable, __file__, f'--child={what}', f'--mesh={args.mesh}']
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '--xla_force_host_platform_device_count=8',
  }
  done = subprocess.run(
    [*command, f'--dir={directory}'],
    env=env,
    check=True,
    capture_output=True,
    text=True,
  )
  return json.loads(done.stdout.splitlines()[-1])


def compare(directory, args) -> dict:
  size = sum(p.stat().st_size for p in directory.glob('*.safetensors'))
  found = {'bytes': size, 'mesh': args.mesh, 'dtype': 'bfloat16'}
  for state in ('cold', 'warm'):
    runs = {'raw': [], 'load': []}
    for _ in range(args.repeat):
      for what in runs:
        runs[what].append(measure(what, directory, args, cold=state == 'cold'))
    rate = lambda what, runs=runs: statistics.median(
      size / run['seconds'] for run in runs[what]
    )
    found[state] = {
      'raw_GB_per_s': rate('raw') / 1e9,
      'load_GB_per_s': rate('load') / 1e9,
      'ratio': statistics.median(
        a['seconds'] / b['seconds']
        for a, b in zip(runs['raw'], runs['load'], strict=True)
      ),
      'peak_rss_over_size_GB': max(
        (run['peak'] - size) / 1e9 for run in runs['load']
      ),
    }
  return found


def show(found):
  print(
    f'{found["bytes"] / 1e9:.2f} GB in bfloat16 onto 8 host devices, mesh '
    f'{found["mesh"]} (data, fsdp, tensor)'
  )
  print('page cache  raw GB/s  load GB/s  load/raw  peak RSS - size, GB')
  for state in ('cold', 'warm'):
    x = found[state]
    print(
      f'{state:10}  {x["raw_GB_per_s"]:8.2f}  {x["load_GB_per_s"]:9.2f}  '
      f'{x["ratio"]:8.2f}  {x["peak_rss_over_size_GB"]:19.2f}'
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--gb', type=float, default=6.0)
  parser.add_argument('--repeat', type=int, default=3)
  parser.add_argument('--mesh', default='1,8,1')
  parser.add_argument('--json', help='also write the numbers to this file')
  parser.add_argument('--dir', type=pathlib.Path, help='keep the checkpoint')
  parser.add_argument('--child', help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    mesh = tuple(map(int, args.mesh.split(',')))
    return child(args.child, args.dir, mesh)
  with tempfile.TemporaryDirectory(dir=args.dir) as directory:
    directory = pathlib.Path(directory)
    write(directory, args.gb)
    found = compare(directory, args)
  show(found)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(found, indent=2) + '\n')
  return None


if __name__ == '__main__':
  main()
