"""Plans every config on every topology that it names, as one table.

  PYTHONPATH=aot python launch/plans.py --out=docs/plans.md

`make test-all` runs it. A config's `topologies` are those it is made for, each
with the values to set there. Each of the programs takes minutes to compile;
`crjax.plan` remembers them, so that the same command, stopped, continues and,
where nothing changed, ends in a minute. Rows of a table that is there already
stay unless their config is planned again (`--only=sft_7b,grpo_7b`); a topology
whose compiler is not installed is left out and named.
"""

import argparse
import importlib
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
HEAD = (
  '| config | topology | set there | fits | GiB a device | fullest | '
  'tokens/s | MFU at the roofline |'
)
TITLE = """# What the configs need

Compiled for devices that were not here, by `python launch/plans.py`; no time in
it was measured. GiB: what the fullest program needs, of what a device has.
Tokens/s: from everything in turn at 60 % of the vendor's rates to everything
at once at 90 %; of SFT trained tokens, of GRPO sampled ones.

"""


def planned(name: str) -> dict:
  """The topologies of a config: {} where it names none."""
  config = importlib.import_module(f'configs.{name}')
  c = config.get_config() if hasattr(config, 'get_config') else {}
  return dict(c.get('topologies') or {})


def plan(name, topology, changes):
  """One row; None where nothing here compiles for the topology."""
  flags = [f'--config.{k}={v}' for k, v in changes.items()]
  command = [
    sys.executable,
    '-m',
    'crjax.plan',
    f'--config=configs/{name}.py',
    f'--topology={topology}',
    '--json',
    *flags,
  ]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  said = (done.stderr.strip().splitlines() or [''])[-1]
  if done.returncode:
    print(f'{name} on {topology}: {said}', flush=True)
    return None
  report = json.loads(done.stdout)
  seconds = sum(p['seconds'] for p in report['programs'].values())
  print(f'{name} on {topology}: compiled in {seconds:.0f} s', flush=True)
  for line in report['suggestions']:
    print(f'  {line}', flush=True)
  return f'| {name} | {topology} | {" ".join(flags)} | {numbers(report)}'


def numbers(x) -> str:
  fullest = max(x['needs'], key=x['needs'].get)
  gib = lambda n: f'{n / 2**30:.1f}'
  pace = ' | '
  if 'tokens_per_s' in x:
    slow, fast = sorted(x['tokens_per_s'])
    pace = f'{slow:,.0f} to {fast:,.0f} | {x["mfu"]:.0%}'
  return (
    f'{"yes" if x["fits"] else "**no**"} | {gib(x["needs"][fullest])} of '
    f'{gib(x["capacity"])} | {fullest} | {pace} |'
  )


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--out', type=pathlib.Path, required=True)
  parser.add_argument('--only', default='', help='configs, by comma')
  args = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  rows = {}
  if args.out.exists():
    for line in args.out.read_text().splitlines():
      cells = line.split('|')
      if len(cells) > 5 and cells[1].strip() not in ('config', '---'):
        rows[cells[1].strip(), cells[2].strip()] = line
  names = [p.stem for p in sorted((ROOT / 'configs').glob('*.py'))]
  for name in filter(None, args.only.split(',')) if args.only else names:
    for topology, changes in planned(name).items():
      row = plan(name, topology, dict(changes))
      if row:
        rows[name, topology] = row
        write(args.out, rows)
  return any('**no**' in row for row in rows.values())


def write(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  lines = [HEAD, '| --- ' * (HEAD.count('|') - 1) + '|', *rows.values()]
  path.write_text(TITLE + '\n'.join(lines) + '\n')


if __name__ == '__main__':
  sys.exit(main())
