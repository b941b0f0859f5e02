"""Trains the one run that a config file describes, and resumes it by default.

  python -m crjax.train --config=configs/sft_smoke.py
  python -m crjax.train --config=configs/grpo_7b.py --config.lr=2e-6

The same command continues a run where it stopped. The config stops here: it is
unpacked into explicit arguments of functions that know nothing of it.
"""

import contextlib
import dataclasses
import functools
import json
import pathlib
import sys

from absl import app, flags, logging
import jax
import jax.numpy as jnp
from ml_collections import config_flags

from crjax import (
  advantages,
  checkpoint,
  data,
  execution,
  grpo,
  hf,
  lora,
  metrics,
  model,
  optim,
  sft,
  tokenizer,
)
from crjax.sharding import make_mesh, tree_shardings

DTYPES = {'bfloat16': jnp.bfloat16, 'float32': jnp.float32}
# What a resumed run may change; anything else would make it another run.
MAY_CHANGE = {'epochs', 'steps', 'save_every', 'keep', 'samples_every', 'how'}


def train_sft(c):
  """Builds the parts of an SFT run and hands them to `sft.run`."""
  tok, cfg, load = open_inputs(c)
  mesh = make_mesh(c.mesh)
  batches = data.examples(
    c.data,
    tok,
    batch=c.batch,
    length=c.length,
    seed=c.seed,
    pad_id=tok.pad_token_id,
    thinking=c.thinking,
  )
  steps = max(int(c.epochs * batches.rows / c.batch), 1)
  optimizer, rate = make_optimizer(c, updates=steps)
  with jax.set_mesh(mesh), checkpoint.open_manager(c.workdir, keep=c.keep) as m:
    update = sft.make_update(
      cfg,
      optimizer,
      rate,
      frozen=load_frozen(c, cfg, load, mesh),
      micro=c.micro,
      dtype=DTYPES[c.dtype],
      remat=c.remat,
    )
    state = start(c, m, mesh, cfg, load, optimizer, batches)
    with open_log(c, state, steps) as log, jax.transfer_guard('disallow'):
      run = functools.partial(sft.run, mesh=mesh, update=update, log=log)
      run(state, batches, save=saver(c, m, steps), steps=steps)


def train_grpo(c):
  """Builds the parts of a GRPO run and hands them to `grpo.run`."""
  tok, cfg, load = open_inputs(c)
  mesh = make_mesh(c.mesh)
  dtype = DTYPES[c.dtype]
  prompts = data.prompts(
    c.data,
    tok,
    questions=c.questions,
    length=c.prompt_length,
    seed=c.seed,
    pad_id=tok.pad_token_id,
    thinking=c.thinking,
  )
  optimizer, rate = make_optimizer(c, updates=c.steps * c.minibatches)
  with (
    jax.set_mesh(mesh),
    checkpoint.open_manager(c.workdir, keep=c.keep) as manager,
    execution.Pool(c.workers, min_level=c.sandbox_min_level) as pool,
  ):
    note_sandbox(c, pool.report)
    frozen = load_frozen(c, cfg, load, mesh)
    rollout = grpo.make_rollout(
      cfg,
      mesh,
      frozen=frozen,
      rollouts=c.rollouts,
      steps=c.completion_length,
      stop_ids=tokenizer.stop_ids(tok),
      pad_id=tok.pad_token_id,
      dtype=dtype,
      temperature=c.temperature,
      waves=c.waves,
    )
    update = grpo.make_update(
      cfg,
      optimizer,
      rate,
      mesh,
      frozen=frozen,
      # The reference is the model that the run started from, resumed or not.
      reference=first_params(c, cfg, load, mesh) if c.kl_coef else None,
      minibatches=c.minibatches,
      micro=c.micro,
      temperature=c.temperature,
      clip=tuple(c.clip),
      band=tuple(c.band),
      kl_coef=c.kl_coef,
      dtype=dtype,
      remat=c.remat,
    )
    state = start(c, manager, mesh, cfg, load, optimizer, prompts)
    with open_log(c, state, c.steps) as log, jax.transfer_guard('disallow'):
      grpo.run(
        state,
        prompts,
        rollout=rollout,
        judge=grpo.make_judge(tok, pool, rollouts=c.rollouts),
        advantage=advantages.ADVANTAGES[c.advantage_std],
        batch=functools.partial(
          grpo.make_batch, groups=c.groups, multiple=c.multiple
        ),
        update=update,
        log=log,
        save=saver(c, manager, c.steps),
        steps=c.steps,
      )


TASKS = {'sft': train_sft, 'grpo': train_grpo}


def open_inputs(c):
  """(tokenizer, model Config, load) of what the config names.

  `load(mesh, dtype=)` puts the parameters on the devices: those of the
  checkpoint `c.model`, or, where that is empty, random ones of shape `c.shape`.
  The run's `source` keeps what an export will carry over.
  """
  try:
    found = find_inputs(c)
    cfg = found.cfg if found else model.Config(**c.shape)
    tok = tokenizer.load(c.tokenizer or found.place.path)
    rows = f'vocab_size of {c.model}' if found else 'config.shape.V'
    tokenizer.check(tok, cfg.V, rows)
    adapted = with_adapters(c, cfg)
    describe(c, cfg, found)
  except (ValueError, OSError) as error:
    sys.exit(f'This run cannot start: {error}')
  if not found:
    return tok, cfg, functools.partial(random_params, cfg, c.seed)
  return tok, adapted, functools.partial(load_weights, found)


def find_inputs(c):
  """The checkpoint of `c.model`, None without one; all that lacks is named."""
  found, missing = None, []
  for name in ('model', 'tokenizer', 'data'):
    try:
      if name == 'model' and c.model:
        found = hf.inspect(c.model)
      elif c[name] and not pathlib.Path(c[name]).exists():
        raise FileNotFoundError(f'{c[name]} does not exist')
    except FileNotFoundError as error:
      missing.append(
        f'  config.{name} = {c[name]!r}: {error}. Get it with:\n'
        f'    {c.how[name]}'
      )
  if missing:
    sys.exit('This run cannot start yet:\n' + '\n'.join(missing))
  return found


def load_weights(found, mesh, **kwargs):
  """hf.load with progress; damage ends the run with a message."""
  report = metrics.byte_report('load') if not jax.process_index() else None
  try:
    return hf.load(found, mesh, report=report, **kwargs)
  except (ValueError, OSError) as error:
    sys.exit(f'This run cannot start: {error}')


def with_adapters(c, cfg):
  """The Config with the adapters that `c.lora` asks for."""
  if not c.lora.rank:
    return cfg
  if not c.model:
    raise ValueError('config.lora needs a config.model to adapt')
  return dataclasses.replace(cfg, lora=lora.Lora(**c.lora))


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


def make_optimizer(c, *, updates: int):
  """(optimizer, schedule) for a run of so many optimizer updates."""
  rate = optim.schedule(
    c.lr,
    name=c.schedule,
    warmup=int(c.warmup * updates) if c.warmup < 1 else int(c.warmup),
    steps=updates,
  )
  optimizer = optim.make(
    c.optimizer,
    rate,
    betas=tuple(c.betas),
    weight_decay=c.weight_decay,
    max_norm=c.max_norm,
  )
  return optimizer, rate


def start(c, manager, mesh, cfg, load, optimizer, batches):
  """The state to train from: the newest checkpoint, else a fresh start.

  Also moves `batches` to the position that belongs to the state.
  """
  make = functools.partial(optim.init_state, optimizer, seed=c.seed)
  whole = hf.abstract(cfg)
  abstract = jax.eval_shape(make, lora.split(whole)[1] if cfg.lora else whole)
  shardings = tree_shardings(abstract, mesh)
  found = checkpoint.restore(
    manager,
    jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      abstract,
      shardings,
    ),
  )
  if found is None:
    params = first_params(c, cfg, load, mesh)
    print(f'{c.task}: {model.count(params):,} trained parameters, a fresh run')
    return jax.jit(make, out_shardings=shardings)(params)
  state, position = found
  batches.set_state(position)
  print(f'{c.task}: resumed at step {manager.latest_step()} in {c.workdir}')
  return state


def describe(c, cfg, found):
  """Writes config.json and `source`; refuses a run that is another one."""
  workdir = pathlib.Path(c.workdir)
  path, now = workdir / 'config.json', json.loads(c.to_json())
  if path.exists():
    before = json.loads(path.read_text())
    changed = [
      f'  {name}: {before.get(name)!r} before, {now.get(name)!r} now'
      for name in sorted({*before, *now} - MAY_CHANGE)
      if before.get(name) != now.get(name)
    ]
    if changed:
      sys.exit(
        f'{workdir} holds a run with another config:\n'
        + '\n'.join(changed)
        + '\nSet them back to resume it, or choose another --config.workdir.'
      )
  if jax.process_index() == 0:
    if found:
      hf.remember(found, workdir / 'source', c.tokenizer)
    else:
      hf.remember_new(cfg, workdir / 'source', c.tokenizer)
    checkpoint.write_json(path, now)


def note_sandbox(c, report):
  """Says, and keeps in the run, how programs are isolated on this machine."""
  if jax.process_index() == 0:
    checkpoint.write_json(pathlib.Path(c.workdir) / 'sandbox.json', report)
  print(f'{c.task}: programs run at isolation level {report["level"]}')


def saver(c, manager, steps: int):
  """(step, state, batches) -> None: writes every c.save_every and at the end.

  Step 0 is kept for a random start: it exists nowhere else.
  """

  def save(step, state, batches):
    first = step == 0 and not c.model
    if first or (step and (step % c.save_every == 0 or step == steps)):
      checkpoint.save(manager, step, state, batches.get_state())

  return save


@contextlib.contextmanager
def open_log(c, state, steps: int):
  """Yields log(step, metrics, tokens, rows): files, progress, samples.

  The first process of several writes for all; the rows are its own.
  """
  if jax.process_index():
    yield lambda *_, **__: None
    return
  first = int(jax.device_get(state['step']))
  with metrics.Writer(c.workdir, start_step=first, total_steps=steps) as writer:

    def log(step, scalars, tokens, rows=()):
      writer.write(step, {k: float(v) for k, v in scalars.items()}, tokens)
      if rows and (step % c.samples_every == 0 or step == steps):
        writer.samples(step, rows)

    yield log


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'One file, one run.')
  flags.mark_flag_as_required('config')
  flags.DEFINE_bool('distributed', False, 'Join the other processes of a pod.')


def main(_):
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot at INFO.
  if flags.FLAGS.distributed:
    jax.distributed.initialize()
  config = flags.FLAGS.config
  TASKS[config.task](config)


if __name__ == '__main__':
  define_flags()
  app.run(main)
