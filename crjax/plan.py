"""What a run needs, before anyone pays for it.

  python -m crjax.plan --config=configs/grpo_7b.py --topology=v5e:4x4

Compiles the very functions that `crjax.train` would run, for devices that need
not be here (topology.py lists them), and says whether they fit, what fills the
memory, how fast they could be, and what the whole run would take. Nothing but
the config is read: neither weights nor data have to exist.
"""

import json
import pathlib

from absl import app, flags
import jax
from ml_collections import config_flags

from crjax import aot, hf, inputs, programs, roofline, topology, train
from crjax.sharding import make_mesh

GIB = 1 << 30


def plan(c, name: str):
  """(topology, Config, bytes held throughout, programs) of a run.

  Raises aot.TooLarge where a compiler refuses.
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
  with jax.set_mesh(mesh):
    done = {k: aot.compile(k, f, *args) for k, (f, *args) in todo.items()}
  return target, cfg, held, done


def needs(program, held) -> int:
  """Bytes a device needs while a program runs: it and what stays beside it.

  The decode programs read the copy; parameters and optimizer lie beside.
  """
  beside = 0
  if program.name in ('prefill', 'decode'):
    beside = sum(held.values())
  elif program.name == 'decode copy':
    beside = held['optimizer']
  return program.memory['peak'] + beside


def judge(c, target, cfg, held, compiled) -> dict:
  """Memory, time and pace of a run as numbers."""
  n, capacity = len(target.devices), target.chip.memory
  timed = {k: aot.times(p, target.chip, n) for k, p in compiled.items()}
  need = {k: needs(p, held) for k, p in compiled.items()}
  report = {
    'topology': target.name,
    'devices': n,
    'chip': target.chip._asdict(),
    'mesh': list(c.mesh),
    'slots': c.get('slots', 0),
    'fits': max(need.values()) <= capacity,
    'capacity': capacity,
    'held': held,
    'programs': {
      k: p._asdict()
      | {'needs': need[k], 'times': timed[k]}
      | {'collectives': [x._asdict() for x in p.collectives]}
      for k, p in compiled.items()
    },
  }
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
  over = {
    k: p
    for k, p in report['programs'].items()
    if p['needs'] > report['capacity']
  }
  held = sum(report['held'].values())
  if held > 0.7 * report['capacity']:
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
  if not steps:
    return None
  report['steps'] = steps
  return [s * steps / 3600 for s in report['step_seconds']]


def count_rows(c) -> int:
  """Rows of the config's data, 0 where it is not here."""
  path = pathlib.Path(c.data)
  if path.suffix != '.parquet' or not path.exists():
    return 0
  import pyarrow.parquet  # Only a plan for data that is there needs it.

  return pyarrow.parquet.read_metadata(path).num_rows


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
    rows.append((name, *parts, gib(p['needs']), *cost))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    print(
      '  ' + '  '.join(x.rjust(n) for x, n in zip(row, widths, strict=True))
    )
  show_collectives(report)
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
    print('the data is not here: --rows=N gives hours and cost')


def main(_):
  f = flags.FLAGS
  c = f.config
  topology.prepare(f.topology)
  rows = f.rows or count_rows(c)
  try:
    target, cfg, held, compiled = plan(c, f.topology)
  except (ValueError, ImportError) as error:
    raise SystemExit(f'No plan: {error}') from error
  except aot.TooLarge as error:
    raise SystemExit(f'DOES NOT FIT: {error}') from error
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
  app.run(main)
