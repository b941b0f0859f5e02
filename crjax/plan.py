"""What a run needs, before anyone pays for it.

  python -m crjax.plan --config=configs/grpo_7b.py --topology=v5e:4x4

Compiles the very functions that `crjax.train` would run, for devices that need
not be here (topology.py lists them), and says whether they fit, what fills the
memory, how fast they could be, and what the whole run would take. Nothing but
the config is read: neither weights nor data have to exist. A config that was
planned before is not compiled again.
"""

import contextlib
import json
import pathlib
import sys

from absl import app, flags
import jax
from ml_collections import config_flags

from crjax import (
  aot,
  hf,
  inputs,
  programs,
  roofline,
  tokenizer,
  topology,
  train,
)
from crjax.sharding import make_mesh

GIB = 1 << 30
KEPT = '~/.cache/crjax/plans'  # Of another price or dataset: in seconds.


def plan(c, name: str, kept=None):
  """(topology, Config, bytes held throughout, programs) of a run.

  Of a program that its compiler refuses there is the aot.TooLarge. `kept`: a
  directory of programs that were compiled before, see `aot.compile`.
  """
  target = topology.open(name)
  mesh = make_mesh(c.mesh, target.devices)
  cfg = programs.shape(c)
  optimizer, rate = train.make_optimizer(c, updates=1000)
  scalars = train.state_scalars(c) if c.task == 'grpo' else ()
  _, state = train.abstract_state(c, cfg, optimizer, mesh, scalars)
  frozen = None
  if cfg.lora:
    base = lambda x: jax.ShapeDtypeStruct(x.shape, inputs.DTYPES[c.dtype])
    frozen = aot.placed(jax.tree.map(base, hf.abstract(cfg.base)), mesh)
  held = {'parameters': aot.held(state['params']), 'optimizer': 0, 'frozen': 0}
  held['optimizer'] = aot.held(state) - held['parameters']
  held['frozen'] = aot.held(frozen)
  kind = {'sft': programs.of_sft, 'grpo': programs.of_grpo}[c.task]
  todo = kind(c, cfg, mesh, optimizer, rate, state, frozen)
  kept = kept and pathlib.Path(kept).expanduser() / name
  done = {}
  with jax.set_mesh(mesh):
    for k, (f, *args) in todo.items():
      try:
        done[k] = aot.compile(k, f, *args, kept=kept)
      except aot.TooLarge as error:
        done[k] = error
  return target, cfg, held, done


def needs(program, held) -> int:
  """Bytes a device needs while a program runs: it and what stays beside it.

  The decode programs read the copy; parameters and optimizer lie beside.
  """
  refused = isinstance(program, aot.TooLarge)
  peak = program.used if refused else program.memory['peak']
  if program.name in ('prefill', 'decode'):
    return peak + sum(held.values())
  return peak + (held['optimizer'] if program.name == 'decode copy' else 0)


def judge(c, target, cfg, held, compiled) -> dict:
  """Memory, time and pace of a run as numbers; no pace of what is refused."""
  n, capacity = len(target.devices), target.chip.memory
  need = {k: needs(p, held) for k, p in compiled.items()}
  refused = [k for k, p in compiled.items() if isinstance(p, aot.TooLarge)]
  done = {k: p for k, p in compiled.items() if k not in refused}
  timed = {k: aot.times(p, target.chip, n) for k, p in done.items()}
  report = {
    'topology': target.name,
    'devices': n,
    'chip': target.chip._asdict(),
    'mesh': list(c.mesh),
    'slots': c.get('slots', 0),
    'fits': not refused and max(need.values()) <= capacity,
    'capacity': capacity,
    'held': held,
    'needs': need,
    'refused': refused,
    'programs': {
      k: p._asdict()
      | {'times': timed[k], 'collectives': [x._asdict() for x in p.collectives]}
      for k, p in done.items()
    },
  }
  if refused:
    return report | {'suggestions': suggest(c, report)}
  pace = {'sft': sft_pace, 'grpo': grpo_pace}[c.task]
  report |= pace(c, cfg, timed)
  ideal = timed['update']['roofline'] * n * target.chip.flops
  report['mfu'] = report.pop('update_flops') / ideal
  return report | {'suggestions': suggest(c, report)}


def sft_pace(c, cfg, timed):
  """Seconds a step, tokens a second with padding: both [best, usual]."""
  tokens = c.batch * c.length
  step = [timed['update'][k] for k in ('least', 'usual')]
  return {
    'update_flops': tokens * roofline.train_flops(cfg, c.length),
    'step_seconds': step,
    'tokens_per_s': [tokens / s for s in step],
  }


def grpo_pace(c, cfg, timed):
  """The same of a GRPO step whose completions are all half as long as allowed.

  An update of such rows costs about that share of the longest.
  """
  mean = c.completion_length / 2
  whole = c.prompt_length + c.completion_length
  share = (c.prompt_length + mean) / whole
  tokens = c.questions * c.rollouts * mean
  found = {'update_flops': 0.0, 'step_seconds': [], 'rollout_seconds': []}
  found['update_flops'] = (
    c.groups * c.rollouts * whole * roofline.train_flops(cfg, whole)
  )
  for k in ('least', 'usual'):
    steps = max(tokens / c.slots, c.completion_length)
    rollout = timed['decode'][k] * steps + timed['decode copy'][k]
    rollout += timed['prefill'][k] * c.questions / programs.PROMPTS
    found['rollout_seconds'].append(rollout)
    found['step_seconds'].append(rollout + timed['update'][k] * share)
  found['tokens_per_s'] = [tokens / s for s in found['step_seconds']]
  return found


def suggest(c, report):
  """What to change, where something does not fit: the largest first."""
  found, mesh = [], dict(zip(('data', 'fsdp', 'tensor'), c.mesh, strict=True))
  most = report['capacity']
  over = {k for k, n in report['needs'].items() if n > most}
  over |= set(report['refused'])
  held = sum(report['held'].values())
  if over and held > 0.7 * most:
    found.append(
      f'parameters and optimizer fill {held / GIB:.1f} GiB of a device: more '
      'devices, a first moment in bfloat16 (config.moments), or adapters: '
      '--config.lora.rank=16'
    )
  if 'update' in over:
    found += update_suggestions(c, report, mesh)
  if 'decode' in over or 'prefill' in over:
    found.append(
      f'halve the slots: --config.slots={c.slots // 2}, or split the decode '
      f'copy further: --config.mesh=({mesh["data"]}, {mesh["fsdp"]}, '
      f'{2 * mesh["tensor"]})'
    )
  return found


def update_suggestions(c, report, mesh):
  """For an update that does not fit: less at a time, kept or computed again."""
  found = []
  if c.remat != 'full':
    found.append('compute activations again: --config.remat=full')
  ways = report['devices'] // max(mesh['tensor'], 1)
  if c.task == 'sft':
    now, less = c.batch // c.micro, f'micro={2 * c.micro}'
  else:
    now, less = c.rows, f'rows={c.rows // 2}'
  if now // 2 >= ways:
    found.append(f'half as many rows at a time, --config.{less}: same result')
  else:
    found.append(
      f'a slice of {now} rows has no more to give to {ways} ways: split the '
      f'matrices instead, --config.mesh=({mesh["data"]}, {mesh["fsdp"]}, '
      f'{2 * mesh["tensor"]}), or take more devices'
    )
  return found


def hours(c, report, rows: int):
  """[best, usual] hours of the whole run; None where its length is unknown."""
  steps = c.steps if c.task == 'grpo' else int(c.epochs * rows / c.batch)
  if not steps or 'step_seconds' not in report:
    return None
  report['steps'] = steps
  return [s * steps / 3600 for s in report['step_seconds']]


def count_rows(c) -> int:
  """Rows of an SFT config's data, packed as the run packs them.

  0 where data or tokenizer are not on this machine: the hub is not asked.
  """
  files = [pathlib.Path(name) for name in inputs.named(c.data)]
  place = pathlib.Path(c.tokenizer or c.model)
  here = (place / 'tokenizer_config.json').exists()
  if c.task != 'sft' or not here or not all(f.exists() for f in files):
    return 0
  with contextlib.redirect_stdout(sys.stderr):  # It says what it leaves out.
    return inputs.open_examples(c, tokenizer.load(place)).rows


def show(c, report):
  gib = lambda n: f'{n / GIB:.2f}'
  print(
    f'{report["devices"]} devices of {report["topology"]}, '
    f'{gib(report["capacity"])} GiB each, mesh {tuple(report["mesh"])} (data, '
    'fsdp, tensor); GiB a device:'
  )
  held = {k: n for k, n in report['held'].items() if n}
  print('  held: ' + ', '.join(f'{k} {gib(n)}' for k, n in held.items()))
  head = ('program', 'arguments', 'results', 'scratch', 'needs', 'TFLOP', 'GB')
  rows = [(*head, 'roofline s', 'bound by', 'compiled in s')]
  for name, p in report['programs'].items():
    m, t = p['memory'], p['times']
    parts = [gib(m[k]) for k in ('arguments', 'results', 'scratch')]
    bound = max(('compute', 'memory', 'links'), key=t.get)
    cost = [f'{p["flops"] / 1e12:.2f}', f'{p["traffic"] / 1e9:.1f}']
    cost += [f'{t["roofline"]:.4f}', bound, f'{p["seconds"]:.0f}']
    rows.append((name, *parts, gib(report['needs'][name]), *cost))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    print(
      '  ' + '  '.join(x.rjust(n) for x, n in zip(row, widths, strict=True))
    )
  for name in report['refused']:
    print(f'  {name}: refused by the compiler, {gib(report["needs"][name])}')
  show_collectives(report)
  if 'step_seconds' in report:
    show_pace(c, report)
  print('fits' if report['fits'] else 'DOES NOT FIT')
  for line in report['suggestions']:
    print(f'  {line}')


def show_collectives(report, most: int = 4):
  for name, p in report['programs'].items():
    for x in p['collectives'][:most]:
      print(
        f'  {name}: {x["count"]} x {x["kind"]} of {x["bytes"] / 1e6:,.1f} MB '
        f'over {x["group"]}'
      )
    if kernels := p['kernels']:
      print(f'  {name}: kernels {kernels}')


def show_pace(c, report):
  between = lambda xs, form: ' to '.join(format(x, form) for x in sorted(xs))
  print(
    f'a step {between(report["step_seconds"], ".3g")} s, '
    f'{between(report["tokens_per_s"], ",.0f")} tokens/s; the update at its '
    f'roofline has {report["mfu"]:.0%} MFU'
  )
  if 'rollout_seconds' in report:
    print(
      f'of it rollouts {between(report["rollout_seconds"], ".3g")} s with '
      f'{report["slots"]} slots'
    )
  if report.get('hours'):
    cost = ''
    if 'cost' in report:
      cost = f', {between(report["cost"], ",.0f")} at the price given'
    print(
      f'{report["steps"]:,} steps: {between(report["hours"], ",.1f")} h{cost}'
    )
  else:
    print(
      'data or tokenizer are not here: --rows=N, packed rows, gives hours and '
      'cost'
    )


def main(_):
  f = flags.FLAGS
  c = f.config
  try:
    topology.prepare(f.topology)
    rows = f.rows or count_rows(c)
    target, cfg, held, compiled = plan(c, f.topology, KEPT)
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f'No plan: {error}')
  report = judge(c, target, cfg, held, compiled)
  report['hours'] = hours(c, report, rows)
  if f.price and report['hours']:
    price = f.price * report['devices']
    report['cost'] = [h * price for h in report['hours']]
  if f.json:
    print(json.dumps(report, indent=2))
  else:
    show(c, report)


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'One file, one run.')
  flags.DEFINE_string('topology', None, 'v5e:4x4, v5p:2x2x1, h200x8, cpu8 ...')
  flags.mark_flags_as_required(['config', 'topology'])
  flags.DEFINE_bool('json', False, 'All numbers, as JSON.')
  flags.DEFINE_integer('rows', 0, 'Rows of the data, where it is not here.')
  flags.DEFINE_float('price', 0.0, 'Of one device for an hour.')


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=inputs.parse_flags)
