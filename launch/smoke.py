"""The whole way on one machine: data, SFT, GRPO, evaluation and export.

  python launch/smoke.py --seeds=1        (what `make smoke` runs)

Every stage is a command that can be run by hand; this file runs them in order,
for each seed, and prints one table at the end. An interrupted run continues
where it stopped when started again. A finished one, or one of other smoke
configs, is removed and made anew. Standard library only, but for the table.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import time

import rich.console
import rich.table

ROOT = pathlib.Path(__file__).parents[1]
MODELS = ('init', 'sft', 'grpo')
KINDS = ('output', 'input')
FOLDERS = ('stages', 'logs', 'data')
QUIET = '--verbosity=-1'  # Warnings, without the chatter of libraries.
MIN_SFT_POINTS = 20  # SFT over the best constant answer, output prediction.
MIN_GRPO_POINTS = 5  # GRPO over SFT, sampled.
GRACE_SECONDS = 20  # That an interrupted stage has to close its files.


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
      f'--data={data / "test.parquet"}',
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


def run_stage(name, module, flags, out) -> float:
  """Runs one stage unless it is done already; returns its seconds.

  What it prints is shown line by line behind its name, and kept in `out`/logs.
  """
  done, log = (
    out / folder / f'{name.replace(" ", "_")}.{suffix}'
    for folder, suffix in (('stages', 'json'), ('logs', 'txt'))
  )
  if done.exists():
    seconds = json.loads(done.read_text())['seconds']
    print(f'== {name}: done before, {seconds:.0f} s', flush=True)
    return seconds
  command = [sys.executable, '-m', module, *flags]
  print(f'\n== {name}: {" ".join(command)}', flush=True)
  began = time.monotonic()
  if code := follow(command, name, log):
    sys.exit(
      f'\nsmoke: stage {name!r} failed with exit status {code}; what it said '
      f'is in {log}. Run it again with\n  {" ".join(command)}\nor the whole '
      'way with the command that started this one, which continues from here.'
    )
  seconds = time.monotonic() - began
  write_json(done, {'seconds': seconds})
  print(f'== {name}: {seconds:.0f} s', flush=True)
  return seconds


def follow(command, name, log) -> int:
  """The exit status of a command whose lines are shown and written to `log`.

  It has a process group of its own, so that an interrupt ends it and its
  workers once, and is waited for.
  """
  log.parent.mkdir(parents=True, exist_ok=True)
  with (
    log.open('a') as file,
    subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment(prefix=len(name) + 3),
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      errors='replace',
      start_new_session=True,
    ) as process,
  ):
    try:
      for line in process.stdout:
        print(f'[{name}] {line}', end='', flush=True)
        file.write(line)
        file.flush()
      return process.wait()
    except BaseException:
      end(process)
      raise


def end(process):
  """Interrupts a process group and, after a while, kills what is left of it."""
  try:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
      os.killpg(process.pid, signal.SIGINT)
      # Reads on: who waits for us to take its last words never ends.
      process.communicate(timeout=GRACE_SECONDS)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)


def environment(*, prefix: int = 0):
  """CPU, unless the user chose otherwise; quiet imports; lines that fit."""
  preferred = {
    'JAX_PLATFORMS': 'cpu',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'TF_ENABLE_ONEDNN_OPTS': '0',  # It computes nothing here, but says so.
    'HF_HUB_OFFLINE': '1',
    'HF_DATASETS_DISABLE_PROGRESS_BARS': '1',
  }
  # A small model keeps one core busy; two devices keep two.
  devices = 2 if (os.cpu_count() or 1) > 1 else 1
  preferred['XLA_FLAGS'] = f'--xla_force_host_platform_device_count={devices}'
  width = max(shutil.get_terminal_size((120, 24)).columns - prefix, 60)
  ours = {'PYTHONUNBUFFERED': '1', 'COLUMNS': str(width)}
  return preferred | os.environ | ours


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


def average(summaries, of=statistics.fmean) -> dict:
  """The mean, or another statistic, over seeds of every number."""
  first = summaries[0]
  return {
    group: {
      name: of([s[group][name] for s in summaries]) for name in first[group]
    }
    for group in first
  }


def written(mean, summaries, *, out, seconds) -> dict:
  """What summary.json holds: means over seeds, then every seed."""
  means = {
    group: {k: v for k, v in values.items() if k != 'init_sampled'}
    for group, values in mean.items()
  }
  return {
    'seeds': len(summaries),
    'export_dir': str(out / 'seed_0' / 'export' / 'grpo'),
    'seconds': seconds,
    **means,
    'per_seed': summaries,
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
  if len(summaries) > 1:
    rows += [('mean', mean), ('± sd', average(summaries, statistics.stdev))]
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


def prepare(out):
  """Leaves in `out` what this run may continue, and none of another run."""
  configs = {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted((ROOT / 'configs').glob('*_smoke.py'))
  }
  mark, summary = out / 'configs.json', out / 'summary.json'
  if mark.exists():
    same = json.loads(mark.read_text()) == configs
    if same and not summary.exists():
      print(f'smoke: continues the run in {out}', flush=True)
      return
    why = 'is finished' if same else 'has other configs'
    print(f'smoke: the run in {out} {why}; a new one replaces it', flush=True)
    # Only what this file makes; the two that tell the state go last.
    for path in (*map(out.joinpath, FOLDERS), *out.glob('seed_*')):
      shutil.rmtree(path, ignore_errors=True)
    summary.unlink(missing_ok=True)
  write_json(mark, configs)


def read_report(path):
  """A report.json of crjax.evaluate in which something was judged."""
  report = json.loads(path.read_text())
  for kind in KINDS:
    for mode in ('greedy', 'sampled'):
      if report['kinds'][kind][mode]['strict'] is None:
        sys.exit(
          f'smoke: {path}: no {kind} item could be judged ({mode}); its infra '
          'count says how many the machinery lost'
        )
  return report


def run_seed(out, seed):
  """(seconds, numbers) of one seed after the data stage."""
  seconds = 0.0
  for name, module, flags in stages(out, seed):
    seconds += run_stage(f'seed {seed} {name}', module, [*flags, QUIET], out)
  manifest = json.loads((out / 'data' / 'manifest.json').read_text())
  reports = {
    m: read_report(out / f'seed_{seed}' / 'eval' / m / 'report.json')
    for m in MODELS
  }
  return seconds, summarize(manifest['summary']['constant_baseline'], reports)


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--seeds', type=int, default=1)
  parser.add_argument(
    '--out', default='runs/smoke', help='relative to the repository'
  )
  args = parser.parse_args()
  if args.seeds < 1:
    parser.error('--seeds must be 1 or more')
  out = ROOT / args.out
  prepare(out)
  build = ['--config=configs/data_smoke.py', f'--config.out={out / "data"}']
  seconds = run_stage('data', 'data_pipeline.build', [*build, QUIET], out)
  summaries = []
  for seed in range(args.seeds):
    spent, summary = run_seed(out, seed)
    seconds += spent
    summaries.append(summary)
  mean = average(summaries)
  summary = written(
    mean, summaries, out=pathlib.Path(args.out), seconds=seconds
  )
  write_json(out / 'summary.json', summary)
  show(summaries, mean, seconds)
  report = out / 'report.html'
  run_stage('report', 'crjax.report', [str(out), f'--out={report}'], out)
  print(f'The report: {report}')


def interrupt(*_):
  raise KeyboardInterrupt


if __name__ == '__main__':
  for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, interrupt)
  try:
    main()
  except KeyboardInterrupt:
    print('\nsmoke: interrupted; the same command continues from here')
    sys.exit(130)
