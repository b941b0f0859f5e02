"""The whole way on one machine: data, SFT, GRPO, evaluation and export.

  python launch/smoke.py --seeds=1        (what `make smoke` runs)

Every stage is a command that can be run by hand; this file runs them in order,
for each seed, and prints one table at the end. An interrupted run continues
where it stopped when started again; a finished one is repeated from the
start. Standard library only, but for the table.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import rich.console
import rich.table

ROOT = pathlib.Path(__file__).parents[1]
MODELS = ('init', 'sft', 'grpo')
KINDS = ('output', 'input')
MIN_SFT_POINTS = 20  # SFT over the best constant answer, output prediction.
MIN_GRPO_POINTS = 5  # GRPO over SFT, sampled.


def stages(out, seed):
  """[(name, module, flags)] of one seed, in the order of the data flow."""
  data, run = out / 'data', out / f'seed_{seed}'
  train = lambda task, **values: (
      task,
      'crjax.train',
      [f'--config=configs/{task}_smoke.py', f'--config.seed={seed}']
      + [f'--config.{k}={v}' for k, v in values.items()],
  )
  export = lambda model, task, *flags: (
      f'export {model}',
      'crjax.export',
      [f'--workdir={run / task}', f'--out={run / "export" / model}', *flags],
  )
  evaluate = lambda model: (
      f'evaluate {model}',
      'crjax.evaluate',
      [
          '--config=configs/eval_smoke.py',
          f'--model={run / "export" / model}',
          f'--data={data / "heldout.parquet"}',
          f'--out={run / "eval" / model}',
      ],
  )
  return [
      train(
          'sft',
          workdir=run / 'sft',
          data=data / 'sft_train.parquet',
          tokenizer=data / 'tokenizer',
      ),
      export('init', 'sft', '--step=0'),
      export('sft', 'sft'),
      train(
          'grpo',
          workdir=run / 'grpo',
          data=data / 'rl_train.parquet',
          model=run / 'export' / 'sft',
      ),
      export('grpo', 'grpo'),
      *(evaluate(model) for model in MODELS),
  ]


def run_stage(name, module, flags, done) -> float:
  """Runs one stage unless `done` says it is; returns its seconds."""
  if done.exists():
    return json.loads(done.read_text())['seconds']
  print(f'\n== {name}: python -m {module} {" ".join(flags)}', flush=True)
  began = time.monotonic()
  command = [sys.executable, '-m', module, *flags]
  code = subprocess.run(command, cwd=ROOT, env=environment()).returncode
  if code:
    sys.exit(
        f'\nsmoke: stage {name!r} failed with exit status {code}. Run it again '
        f'with\n  {" ".join(command)}\nor the whole way with `make smoke`, '
        'which continues from here.'
    )
  seconds = time.monotonic() - began
  write_json(done, {'seconds': seconds})
  print(f'== {name}: {seconds:.0f} s', flush=True)
  return seconds


def environment():
  """CPU, unless the user chose otherwise; quiet imports."""
  quiet = {
      'JAX_PLATFORMS': 'cpu',
      'TF_CPP_MIN_LOG_LEVEL': '3',
      'HF_HUB_OFFLINE': '1',
      'HF_DATASETS_DISABLE_PROGRESS_BARS': '1',
  }
  return quiet | os.environ


def summarize(baseline, reports) -> dict:
  """One seed's numbers; `reports` maps a model to its report.json."""
  summary = {}
  for kind in KINDS:
    found = {m: reports[m]['kinds'][kind] for m in MODELS}
    summary[kind] = {'constant': baseline[kind]}
    for model in MODELS:
      summary[kind][model] = found[model]['greedy']['strict']
      summary[kind][f'{model}_sampled'] = found[model]['sampled']['strict']
  weigh = lambda model, mode: statistics.fmean(
      reports[model]['kinds'][kind][mode]['format_rate'] for kind in KINDS
  )
  summary['format_rate'] = {
      name: weigh(model, mode)
      for model in MODELS
      for name, mode in ((model, 'greedy'), (f'{model}_sampled', 'sampled'))
  }
  return summary


def average(summaries) -> dict:
  """The mean over seeds of every number."""
  first = summaries[0]
  return {
      group: {
          name: statistics.fmean(s[group][name] for s in summaries)
          for name in first[group]
      }
      for group in first
  }


def gains(mean):
  """{what: points} that the way is expected to gain, with the points asked."""
  points = lambda a, b: 100 * (a - b)
  output = mean['output']
  sampled = lambda model: statistics.fmean(
      mean[kind][f'{model}_sampled'] for kind in KINDS
  )
  return {
      'SFT over the best constant answer, output prediction, greedy': (
          points(output['sft'], output['constant']),
          MIN_SFT_POINTS,
      ),
      'GRPO over SFT, output prediction, sampled': (
          points(output['grpo_sampled'], output['sft_sampled']),
          MIN_GRPO_POINTS,
      ),
      'GRPO over SFT, both directions, sampled': (
          points(sampled('grpo'), sampled('sft')),
          MIN_GRPO_POINTS,
      ),
  }


def show(summaries, mean, seconds):
  """The table, seed by seed and in the mean, and the gains asked for."""
  console = rich.console.Console(width=100)
  table = rich.table.Table(
      title='Held-out programs: strict accuracy and format rate, percent\n'
      'greedy / sampled at T = 1'
  )
  names = ('', 'seed', 'constant', 'untrained', 'SFT', 'GRPO')
  for name in names:
    table.add_column(name, justify='right')
  rows = [(str(i), s) for i, s in enumerate(summaries)]
  if len(rows) > 1:
    rows.append(('mean', mean))
  for group in (*KINDS, 'format_rate'):
    for label, summary in rows:
      x = summary[group]
      constant = f'{100 * x["constant"]:.1f}' if 'constant' in x else '-'
      pairs = [
          f'{100 * x[m]:.1f} / {100 * x[f"{m}_sampled"]:.1f}' for m in MODELS
      ]
      table.add_row(group.replace('_', ' '), label, constant, *pairs)
    table.add_section()
  console.print(table)
  for what, (points, asked) in gains(mean).items():
    verdict = 'reached' if points >= asked else 'MISSED'
    print(f'{what}: {points:+.1f} points, asked {asked}: {verdict}')
  print(f'{len(summaries)} seed(s), {seconds / 60:.1f} min of stages')


def write_json(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix('.tmp')
  temporary.write_text(json.dumps(value, indent=2) + '\n')
  temporary.replace(path)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument('--out', default='runs/smoke')
  args = parser.parse_args()
  if args.seeds < 1:
    parser.error('--seeds must be 1 or more')
  out = pathlib.Path(args.out)
  if (ROOT / out / 'summary.json').exists():
    shutil.rmtree(ROOT / out)
  done = lambda name: ROOT / out / 'stages' / f'{name.replace(" ", "_")}.json'
  build = [f'--config=configs/data_smoke.py', f'--config.out={out / "data"}']
  seconds = run_stage('data', 'data_pipeline.build', build, done('data'))
  manifest = json.loads((ROOT / out / 'data' / 'manifest.json').read_text())
  summaries = []
  for seed in range(args.seeds):
    for name, module, flags in stages(out, seed):
      label = f'seed {seed} {name}'
      seconds += run_stage(label, module, flags, done(label))
    reports = {
        m: json.loads(
            (ROOT / out / f'seed_{seed}/eval/{m}/report.json').read_text()
        )
        for m in MODELS
    }
    summaries.append(summarize(manifest['constant_baseline'], reports))
  mean = average(summaries)
  summary = {
      'seeds': args.seeds,
      'export_dir': str(out / 'seed_0' / 'export' / 'grpo'),
      'seconds': seconds,
      **mean,
      'per_seed': summaries,
  }
  write_json(ROOT / out / 'summary.json', summary)
  show(summaries, mean, seconds)


if __name__ == '__main__':
  try:
    main()
  except KeyboardInterrupt:
    sys.exit('\nsmoke: interrupted; `make smoke` continues from here')
