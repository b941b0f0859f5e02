"""Recipes of GRPO side by side: what each learns in the same wall time.

  python benchmarks/learning.py --sft=runs/smoke --out=runs/learning

For each seed, every arm starts from the SFT model of that seed that `make
smoke` left in `--sft`, trains for `--minutes`, and is evaluated on the held-out
questions. Seconds that a run spends before its first step do not count. An arm
that is done is not run again; one that was cut off goes on. To compare
white-box with outcome-only rewards, give `--white` a dataset with `mixed`
questions of the same programs; that adds an arm. One table at the end.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
# What follows --config=configs/grpo_smoke.py, and further flags.
ARMS = {
  'crjax': ('', []),
  'verl': (':verl', []),
  'dr-grpo': (':dr-grpo', []),
  'no-dynamic': ('', ['--config.questions=16', '--config.dynamic=False']),
}
STEPS = 100_000  # Never reached: wall time ends a run.


def module(name, *flags):
  env = os.environ | {'JAX_PLATFORMS': 'cpu'}
  command = [sys.executable, '-m', name, *map(str, flags)]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env=env,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def lines(run):
  """What a run has logged; a last line may be torn."""
  path = run / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  found = text.splitlines(keepends=True)
  return [json.loads(x) for x in found if x.endswith('\n')]


def train(run, arm, seed, args, data):
  """Trains until the steps of a run add up to the wall time of an arm."""
  preset, flags = ARMS[arm]
  process = module(
    'crjax.train',
    f'--config={ROOT}/configs/grpo_smoke.py{preset}',
    f'--config.workdir={run}',
    f'--config.seed={seed}',
    f'--config.model={args.sft}/seed_{seed}/export/sft',
    f'--config.data={data}',
    f'--config.steps={STEPS}',
    '--config.schedule=constant',
    '--config.save_every=5',
    '--config.samples_every=1000',
    *flags,
  )
  try:
    while process.poll() is None and spent(run) < 60 * args.minutes:
      time.sleep(1)
    if process.poll() is not None:
      sys.exit(f'{run}: {process.stderr.read()[-2000:]}')
    process.send_signal(signal.SIGTERM)  # It saves and ends.
    process.communicate()
  finally:
    process.kill()


def spent(run) -> float:
  """Seconds of all steps; the first compiles, which a long run forgets."""
  return sum(line['time/step_s'] for line in lines(run)[1:])


def check(process, what):
  _, said = process.communicate()
  if process.returncode:
    sys.exit(f'{what} failed:\n{said[-2000:]}')


def one(arm, seed, args, data) -> dict:
  """{kind: sampled accuracy} and the steps of an arm; kept in a file."""
  run = pathlib.Path(args.out).resolve() / f'seed_{seed}' / arm
  done = run.parent / f'{arm}.json'
  if done.exists():
    return json.loads(done.read_text())
  train(run, arm, seed, args, data)
  export = run / 'export'
  check(module('crjax.export', f'--workdir={run}', f'--out={export}'), 'export')
  evaluated = module(
    'crjax.evaluate',
    f'--config={ROOT}/configs/eval_smoke.py',
    f'--model={export}',
    f'--data={args.test or f"{args.sft}/data/test.parquet"}',
    f'--out={run / "eval"}',
  )
  check(evaluated, 'evaluate')
  report = json.loads((run / 'eval' / 'report.json').read_text())
  found = {
    'steps': len(lines(run)),
    **{kind: x['sampled']['strict'] for kind, x in report['kinds'].items()},
  }
  done.write_text(json.dumps(found) + '\n')
  return found


def table(found):
  """Means over seeds, and their standard deviation where there are several."""
  columns = sorted({key for some in found.values() for x in some for key in x})
  print(f'{"arm":12}' + ''.join(f'{name:>18}' for name in columns))
  for arm, some in found.items():
    cells = []
    for name in columns:
      values = [x[name] for x in some if name in x]
      scale = 1 if name == 'steps' else 100
      mean = scale * statistics.mean(values)
      spread = scale * statistics.stdev(values) if len(values) > 1 else 0.0
      cells.append(f'{mean:10.1f} ± {spread:5.1f}')
    print(f'{arm:12}' + ''.join(cells))


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--sft', required=True, help='what `make smoke` wrote')
  parser.add_argument('--out', required=True)
  parser.add_argument('--minutes', type=float, default=4.0)
  parser.add_argument('--seeds', type=int, default=3)
  parser.add_argument('--arms', default=','.join(ARMS))
  parser.add_argument('--white', help='directory of a dataset, see above')
  parser.add_argument('--test', help='held-out questions, a Parquet file')
  args = parser.parse_args()
  args.sft = pathlib.Path(args.sft).resolve()
  plain = args.sft / 'data' / 'rl_train.parquet'
  arms = {arm: plain for arm in args.arms.split(',')}
  if args.white:
    ARMS['white-box'] = ARMS['crjax']
    arms['white-box'] = pathlib.Path(args.white).resolve() / 'rl_train.parquet'
  found = {arm: [] for arm in arms}
  for seed in range(args.seeds):  # Whole seeds first: an early table is fair.
    for arm, data in arms.items():
      found[arm].append(one(arm, seed, args, data))
      print(f'seed {seed} {arm}: {found[arm][-1]}', flush=True)
  table(found)


if __name__ == '__main__':
  main()
