"""How fast completions are sampled, beside Transformers and google-tunix.

  python benchmarks/rollout.py --json=rollout.json \\
      --peers=transformers,tunix --peer_python=peers/bin/python

A random Qwen2 of 3.8 million parameters beside its embedding, 64 questions x 8
rollouts, prompts of 256 tokens, completions of geometric lengths (mean 64, at
most 512) that are the same for everyone: the end token is never drawn before
its time and always then. float32, T = 1, the whole distribution, all cores.
Nobody knows the lengths beforehand, and prompts come in one order.

Everyone runs in processes of its own, once for each batch size offered, and
the best of these counts. Compilation and the first calls are not in the time.
Peers need an interpreter of their own: benchmarks/requirements-peers.txt.
"""

import argparse
import collections
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SHAPE = {'L': 5, 'D': 256, 'F': 768, 'N': 8, 'K': 2, 'H': 32, 'tied': True}
PROMPT, LONGEST, MEAN = 256, 512, 64
THREADS = len(os.sched_getaffinity(0))


def write_work(path, vocabulary, questions, rollouts):
  """The model, the prompts and the lengths that everyone gets."""
  import jax

  from crjax import hf, model

  cfg = model.Config(V=vocabulary, **SHAPE)
  hf.save(path / 'model', cfg, model.init(cfg, jax.random.key(0)))
  eos, pad = vocabulary - 1, vocabulary - 2
  rng = np.random.default_rng(1)
  np.savez(
    path / 'work.npz',
    prompts_QP=rng.integers(1, pad, (questions, PROMPT), np.int32),
    length_QR=lengths(questions, rollouts),
    eos=eos,
    pad=pad,
  )


def lengths(questions, rollouts):
  """length_QR of the completions, the end token included."""
  rng = np.random.default_rng(0)
  length_QR = rng.geometric(1 / MEAN, (questions, rollouts))
  return np.clip(length_QR, 2, LONGEST).astype(np.int32)


def crjax(work, args):
  """`engine.stream`, its slots refilled in the order of the questions."""
  import jax
  import jax.numpy as jnp

  from crjax import decoding, engine, hf, sampling
  from crjax.sharding import make_mesh

  drawn = decoding.draw

  def until(params, x_BD, rows):
    # `least` forbids the end token before its time; from then on it is forced.
    token_B, logp_B = drawn(params, x_BD, rows)
    return jnp.where(
      rows['count'] < rows['least'], token_B, work['eos']
    ), logp_B

  decoding.draw = until
  mesh = make_mesh((1, 1, 1))
  found = hf.inspect(args.work / 'model')
  params = hf.load(found, mesh)
  P = work['prompts_QP'].shape[1]
  requests = [
    engine.Request(
      tokens=prompt.tolist(),
      question=q,
      rollout=r,
      least=int(work['length_QR'][q, r]) - 1,
      most=LONGEST,
    )
    for q, prompt in enumerate(work['prompts_QP'])
    for r in range(work['length_QR'].shape[1])
  ]
  with jax.set_mesh(mesh):
    params = sampling.make_decode_copy(found.cfg, mesh, jnp.float32)(params)
    made = engine.make(
      found.cfg,
      mesh,
      slots=args.batch,
      length=P + LONGEST,
      chunk=args.chunk,
      stop_ids=(work['eos'],),
    )
    key = jax.random.key(0)

    def run():
      tally = collections.Counter()
      began = time.monotonic()
      for _ in engine.stream(made, params, requests, key=key, tally=tally):
        pass
      return time.monotonic() - began, tally

    def prefill():
      began = time.monotonic()
      known = engine.compute_prompts(
        made, params, {}, requests, collections.Counter()
      )
      jax.block_until_ready([caches for caches, _ in known.values()])
      return time.monotonic() - began

    first, _ = run()
    compiled = engine.compiled(made)
    runs = [run() for _ in range(args.repeat)]
    seconds, tally = [s for s, _ in runs], runs[-1][1]
    return {
      'seconds': seconds,
      'prefill_seconds': prefill(),
      'tokens': tally['tokens'],
      'steps': tally['steps'],
      'row_steps': tally['slot_steps'],
      'prefill_tokens': tally['prefilled'],
      'compiles_before': compiled,
      'compile_seconds': first - min(seconds),
      'compiles': engine.compiled(made) - compiled,
    }


def child(args):
  with np.load(args.work / 'work.npz') as file:
    work = dict(file)
  work |= {'eos': int(work['eos']), 'pad': int(work['pad'])}
  found = crjax(work, args)
  found['peak_rss'] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
  print(json.dumps(found))


def command(who, work, batch, args):
  common = [f'--work={work}', f'--batch={batch}', f'--repeat={args.repeat}']
  if who == 'crjax':
    return [
      sys.executable,
      __file__,
      '--child',
      *common,
      f'--chunk={args.chunk}',
    ]
  script = pathlib.Path(__file__).with_name('rollout_peers.py')
  return [
    args.peer_python,
    script,
    who,
    *common,
    f'--longest={LONGEST}',
    f'--threads={THREADS}',
    f'--memory_gb={args.memory_gb}',
  ]


def measure(who, work, batch, args):
  """The numbers of one process; {'failed': why} where it did not end well."""
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'HF_HUB_OFFLINE': '1'}
  done = subprocess.run(
    list(map(str, command(who, work, batch, args))),
    env=env,
    capture_output=True,
    text=True,
  )
  print(f'  {who}, {batch} rows: exit {done.returncode}', file=sys.stderr)
  if done.returncode:
    lines = done.stderr.strip().splitlines() or ['killed']
    return {'failed': lines[-1][:200], 'batch': batch}
  return json.loads(done.stdout.splitlines()[-1]) | {'batch': batch}


def judge(found, cfg, sheet, work):
  """Adds rates, and the share of what the machine could do at most.

  The roofline of a decode step: every weight and every live key and value is
  read once at the bandwidth, every product is made at the rate of a matrix
  product, both measured just before; the larger time counts.
  """
  from crjax import roofline

  seconds = min(found['seconds'])
  decode = seconds - found['prefill_seconds']
  length_B = work['length_QR'].ravel().astype(np.int64)
  P = work['prompts_QP'].shape[1]
  cached = float((length_B * P + length_B * (length_B - 1) // 2).sum())
  steps, rows = found['steps'], length_B.sum()
  weights = steps * roofline.matmul_params(cfg) * 4
  read = weights + cached * roofline.cache_bytes(cfg, 4)
  flops = rows * 2 * roofline.matmul_params(cfg)
  flops += roofline.attention_flops(cfg, cached)
  return found | {
    'tokens_per_s': found['tokens'] / seconds,
    'step_ms': 1e3 * decode / steps,
    'bandwidth_share': read / decode / sheet.bandwidth,
    'roofline_share': max(read / sheet.bandwidth, flops / sheet.flops) / decode,
    'occupancy': found['tokens'] / found['row_steps'],
  }


def compare(vocabulary, args) -> dict:
  """Everyone on the same work; of each the best batch size."""
  from crjax import model, topology

  cfg = model.Config(V=vocabulary, **SHAPE)
  result = {'vocabulary': vocabulary, 'who': {}, 'tried': {}}
  result['shape'] = args.questions, args.rollouts
  with tempfile.TemporaryDirectory() as path:
    path = pathlib.Path(path)
    write_work(path, vocabulary, args.questions, args.rollouts)
    with np.load(path / 'work.npz') as file:
      work = dict(file)
    sheet = topology.measure()
    result |= {
      'bandwidth_GB_per_s': sheet.bandwidth / 1e9,
      'GFLOP_per_s': sheet.flops / 1e9,
      'useful_tokens': int(work['length_QR'].sum()),
    }
    for who in ['crjax', *filter(None, args.peers.split(','))]:
      tried = [
        measure(who, path, int(batch), args)
        for batch in getattr(args, f'{who}_rows').split(',')
      ]
      good = [judge(x, cfg, sheet, work) for x in tried if 'failed' not in x]
      result['tried'][who] = good + [x for x in tried if 'failed' in x]
      if good:
        result['who'][who] = max(good, key=lambda x: x['tokens_per_s'])
  return result


COLUMNS = {  # title: (field, scale, format)
  'rows': ('batch', 1, 'd'),
  'useful tok/s': ('tokens_per_s', 1, ',.0f'),
  'step ms': ('step_ms', 1, '.1f'),
  'of bandwidth': ('bandwidth_share', 1, '.0%'),
  'of roofline': ('roofline_share', 1, '.0%'),
  'occupancy': ('occupancy', 1, '.0%'),
  'prefill tok': ('prefill_tokens', 1, ',d'),
  'prefill s': ('prefill_seconds', 1, '.1f'),
  'compiled': ('compiles_before', 1, 'd'),
  'compile s': ('compile_seconds', 1, '.1f'),
  'peak MB': ('peak_rss', 1e-6, ',.0f'),
}


def show(result):
  print(
    f'\nvocabulary {result["vocabulary"]:,}: {result["useful_tokens"]:,} '
    f'useful tokens; {result["bandwidth_GB_per_s"]:.1f} GB/s and '
    f'{result["GFLOP_per_s"]:.0f} GFLOP/s measured'
  )
  rows = [['', *COLUMNS, 'crjax is']]
  ours = result['who']['crjax']['tokens_per_s']
  for who, x in result['who'].items():
    cells = [
      format(type(x[k])(x[k] * scale), form) if k in x else '-'
      for k, scale, form in COLUMNS.values()
    ]
    rows.append([who, *cells, f'{ours / x["tokens_per_s"]:.2f} x'])
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    print('  '.join(c.rjust(w) for c, w in zip(row, widths, strict=True)))
  again = sum(x.get('compiles', 0) for x in result['who'].values())
  print(f'compilations within the measured runs: {again}')
  for who, tried in result['tried'].items():
    for x in tried:
      if 'failed' in x:
        print(f'{who} with {x["batch"]} rows failed: {x["failed"]}')


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--json', help='also write the numbers to this file')
  parser.add_argument('--peers', default='', help='transformers,tunix')
  parser.add_argument('--peer_python', default=sys.executable)
  parser.add_argument('--vocabularies', default='4096,151936')
  parser.add_argument('--questions', type=int, default=64)
  parser.add_argument('--rollouts', type=int, default=8)
  parser.add_argument('--repeat', type=int, default=2)
  parser.add_argument('--crjax_rows', default='64,128')
  parser.add_argument('--transformers_rows', default='64,128,256')
  parser.add_argument('--tunix_rows', default='16,64,128')
  parser.add_argument('--chunk', type=int, default=16)
  parser.add_argument('--memory_gb', type=float, default=10)
  parser.add_argument('--child', action='store_true', help=argparse.SUPPRESS)
  parser.add_argument('--work', type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument('--batch', type=int, help=argparse.SUPPRESS)
  args = parser.parse_args()
  if args.child:
    return child(args)
  os.environ['JAX_PLATFORMS'] = 'cpu'
  results = [compare(int(v), args) for v in args.vocabularies.split(',')]
  for result in results:
    show(result)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(results, indent=2) + '\n')
  return None


if __name__ == '__main__':
  main()
