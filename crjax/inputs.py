"""What a run starts from: its inputs, found and checked before anything else.

Part of train.py's reading of the config; what lacks or does not fit ends the
run with a message that says what to do.
"""

import dataclasses
import functools
import json
import pathlib
import traceback

from absl import flags
from etils import epath
import jax
import jax.numpy as jnp

from crjax import (
  checkpoint,
  cluster,
  data,
  execution,
  files,
  hf,
  lora,
  metrics,
  model,
  tokenizer,
)
from crjax.examples import is_hub_name
from crjax.sharding import tree_shardings

CANNOT = 'This run cannot start'
DTYPES = {'bfloat16': jnp.bfloat16, 'float32': jnp.float32}
# What a resumed run may change; anything else would make it another run.
MAY_CHANGE = {
  'workdir',
  'epochs',
  'steps',
  'save_every',
  'keep',
  'keep_best',
  'samples_every',
  'watchdog',
  'topologies',
  'how',
  # What fits other machines; losses are the same to rounding.
  'mesh',
  'micro',
  'rows',
  'slots',
  'chunk',
  'remat',
  'offload',
  'workers',
}


def open_inputs(c):
  """(tokenizer, model Config, load) of what the config names.

  `load(mesh, dtype=)` puts the parameters on the devices: those of the
  checkpoint `c.model`, or, where that is empty, random ones of shape `c.shape`.
  The run's `source` keeps what an export will carry over.
  """
  found = find_inputs(c)
  cfg = found.cfg if found else model.Config(**c.shape)
  compare_shape(c, cfg)
  tok = tokenizer.load(c.tokenizer or found.place.path)
  rows = f'vocab_size of {c.model}' if found else 'config.shape.V'
  tokenizer.check(tok, cfg.V, rows)
  adapted = with_adapters(c, cfg)
  describe(c, cfg, found)
  if not found:
    return tok, cfg, functools.partial(random_params, cfg, c.seed)
  return tok, adapted, functools.partial(load_weights, found)


def compare_shape(c, cfg):
  """Says so where config.shape, which plans go by, is not the checkpoint's."""
  said = dict(c.get('shape') or {})
  found = {name: getattr(cfg, name) for name in said}
  if found != said:
    print(
      f'{c.task}: {c.model} has the shape {found}, and this run too; '
      f'config.shape, for `crjax.plan`, is {said}'
    )


def find_inputs(c):
  """The checkpoint of `c.model`, None without one; all that lacks is named."""
  found, missing = None, []
  for name in ('model', 'tokenizer', 'data'):
    try:
      if name == 'model' and c.model:
        found = hf.inspect(c.model)
      elif name == 'data':
        find_data(c.data)
      elif c[name] and not pathlib.Path(c[name]).exists():
        raise FileNotFoundError(f'{c[name]} does not exist')
    except FileNotFoundError as error:
      missing.append(
        f'  config.{name} = {c[name]!r}: {error}. Get it with:\n'
        f'    {c.how[name]}'
      )
  if missing:
    cluster.refuse(f'{CANNOT} yet:\n' + '\n'.join(missing))
  return found


def named(sources) -> tuple:
  """The files of config.data: one, or those of pairs (file, weight)."""
  if isinstance(sources, str):
    return (sources,)
  return tuple(path for path, _ in sources)


def find_data(sources):
  """Raises FileNotFoundError for a missing file; the hub is not asked."""
  for path in named(sources):
    if not (is_hub_name(path) or files.exists(path)):
      raise FileNotFoundError(f'{path} does not exist')


def open_examples(c, tok):
  """The batches of an SFT run; rows that cannot be read end it."""
  with cluster.inputs(CANNOT):
    return data.examples(
      c.data,
      tok,
      batch=c.batch,
      length=c.length,
      seed=c.seed,
      pad_id=tok.pad_token_id,
      thinking=c.thinking,
      packed=c.packed,
    )


def open_pool(c):
  """The sandbox; refuses a machine that isolates less than the config asks."""
  try:
    return execution.Pool(c.workers, min_level=c.sandbox_min_level)
  except RuntimeError as error:
    cluster.refuse(f'{CANNOT}: {error}')


def parse_flags(argv):
  """absl's parser, for which a mistyped field or file is no crash."""
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS and flags.FLAGS.config is not None:
      flags.FLAGS.config.to_json()  # A file that is not there fails only now.
    return rest
  except AttributeError as error:  # Of ml_collections, with the nearest name.
    text = str(getattr(error.args[0], 'args', error.args)[0])
    cluster.refuse('config has no such field: ' + ' '.join(text.split('\n')))
  except (flags.Error, *cluster.GIVEN) as error:
    cluster.refuse(f'{error}\n--helpshort lists the flags')
  except Exception:  # The config is Python, and may do anything.
    traceback.print_exc()
    cluster.refuse('the config file does not run, see above')


def describe(c, cfg, found):
  """Writes config.json and `source`; refuses a run that is another one."""
  workdir = epath.Path(c.workdir)
  path, now = workdir / 'config.json', json.loads(c.to_json())
  if path.exists():
    before = json.loads(path.read_text())
    changed = [
      f'  {name}: {before.get(name)!r} before, {now.get(name)!r} now'
      for name in sorted({*before, *now} - MAY_CHANGE)
      if before.get(name) != now.get(name)
    ]
    if changed:
      cluster.refuse(
        f'{workdir} holds a run with another config:\n'
        + '\n'.join(changed)
        + '\nSet them back to resume it, or choose another --config.workdir.'
      )
  if jax.process_index() == 0:
    with files.local(workdir / 'source') as source:
      if found:
        hf.remember(found, source, c.tokenizer)
      else:
        hf.remember_new(cfg, source, c.tokenizer)
    checkpoint.write_json(path, now)


def with_adapters(c, cfg):
  """The Config with the adapters that `c.lora` asks for."""
  if not c.lora.rank:
    return cfg
  if not c.model:
    raise ValueError('config.lora needs a config.model to adapt')
  return dataclasses.replace(cfg, lora=lora.Lora(**c.lora))


def load_weights(found, mesh, **kwargs):
  """hf.load with progress; damage ends the run with a message."""
  report = metrics.byte_report('load') if not jax.process_index() else None
  with cluster.inputs(CANNOT):
    return hf.load(found, mesh, report=report, **kwargs)


def random_params(cfg, seed, mesh):
  shardings = tree_shardings(hf.abstract(cfg), mesh)
  init = jax.jit(functools.partial(model.init, cfg), out_shardings=shardings)
  return init(jax.random.key(seed))


def load_frozen(c, cfg, load, mesh):
  """What is not trained: the base under adapters, in the compute dtype."""
  return load(mesh, dtype=DTYPES[c.dtype]) if cfg.lora else None


def first_params(c, cfg, load, mesh):
  """What is trained, as it is before the first step."""
  if cfg.lora is None:
    return load(mesh)
  draw = lambda key: lora.split(model.init(cfg, key))[1]
  key = jax.random.key(c.seed)
  shardings = tree_shardings(jax.eval_shape(draw, key), mesh)
  return jax.jit(draw, out_shardings=shardings)(key)
