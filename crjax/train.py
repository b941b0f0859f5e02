"""Trains the one run that a config file describes, and resumes it by default.

  python -m crjax.train --config=configs/sft_smoke.py
  python -m crjax.train --config=configs/grpo_7b.py --config.lr=2e-6

The same command continues a run where it stopped. The config stops here: it is
unpacked into explicit arguments of functions that know nothing of it.
"""

import contextlib
import functools
import pathlib

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from crjax import (
  checkpoint,
  curriculum,
  data,
  execution,
  grpo,
  hf,
  lora,
  metrics,
  model,
  objectives,
  optim,
  policy,
  runtime,
  sft,
  tokenizer,
  watch,
)
from crjax.inputs import (
  DTYPES,
  first_params,
  load_frozen,
  open_examples,
  open_inputs,
  parse_flags,
)
from crjax.sharding import make_mesh, on_host, tree_shardings


def train_sft(c):
  """Builds the parts of an SFT run and hands them to `sft.run`."""
  tok, cfg, load = open_inputs(c)
  mesh = make_mesh(c.mesh)
  batches = open_examples(c, tok)
  steps = max(int(c.epochs * batches.rows / c.batch), 1)
  optimizer, rate = make_optimizer(c, updates=steps)
  with jax.set_mesh(mesh), checkpoint.open_manager(c.workdir, keep=c.keep) as m:
    frozen = load_frozen(c, cfg, load, mesh)
    update = sft_update(c, cfg, optimizer, rate, frozen=frozen)
    state = start(c, m, mesh, cfg, load, optimizer, batches)
    with open_log(c, state, steps) as log, jax.transfer_guard('disallow'):
      run = functools.partial(sft.run, mesh=mesh, update=update, log=log)
      run(
        state,
        batches,
        save=saver(c, m, steps),
        count=functools.partial(sft.count, cfg),
        due=functools.partial(due, c, steps=steps),
        steps=steps,
      )


def train_grpo(c):
  """Builds the parts of a GRPO run and hands them to `grpo.run`."""
  tok, cfg, load = open_inputs(c)
  mesh = make_mesh(c.mesh)
  prompts = open_prompts(c, tok)
  optimizer, rate = make_optimizer(c, updates=c.steps * c.minibatches)
  with (
    jax.set_mesh(mesh),
    checkpoint.open_manager(c.workdir, keep=c.keep) as manager,
    execution.Pool(c.workers, min_level=c.sandbox_min_level) as pool,
  ):
    note_sandbox(c, pool.report)
    frozen = load_frozen(c, cfg, load, mesh)
    # The reference is the model that the run started from, resumed or not.
    reference = first_params(c, cfg, load, mesh) if c.kl_coef else None
    collect = make_collect(c, cfg, mesh, tok, pool, prompts, frozen)
    update = make_policy_update(
      c, cfg, mesh, optimizer, rate, frozen, reference
    )
    state = start(
      c, manager, mesh, cfg, load, optimizer, prompts, state_scalars(c)
    )
    with (
      open_log(c, state, c.steps, watch.alarms) as log,
      jax.transfer_guard('disallow'),
    ):
      grpo.run(
        state,
        prompts,
        collect=collect,
        advantage=grpo.make_advantage(
          c.advantage,
          eps=c.advantage_eps,
          limit=c.completion_length,
          overlong=int(c.overlong * c.completion_length),
        ),
        batch=make_batching(c),
        update=update,
        log=log,
        save=saver(c, manager, c.steps),
        steps=c.steps,
      )


def open_prompts(c, tok):
  """The questions of a GRPO run, by curriculum where `c.pools` says so."""
  prompts = data.prompts(
    c.data,
    tok,
    questions=1 if c.pools else c.questions,
    length=c.prompt_length,
    seed=c.seed,
    pad_id=tok.pad_token_id,
    thinking=c.thinking,
  )
  if not c.pools:
    return prompts
  return curriculum.Curriculum(prompts, questions=c.questions, seed=c.seed)


def make_collect(c, cfg, mesh, tok, pool, prompts, frozen):
  """See `grpo.make_collect`."""
  rollout = grpo.make_rollout(
    cfg,
    mesh,
    frozen=frozen,
    rollouts=c.rollouts,
    length=c.prompt_length,
    steps=c.completion_length,
    stop_ids=tokenizer.stop_ids(tok),
    dtype=DTYPES[c.dtype],
    temperature=c.temperature,
    slots=c.slots,
    chunk=c.chunk,
  )
  judge = grpo.make_judge(
    tok,
    pool,
    rollouts=c.rollouts,
    steps=c.completion_length,
    pad_id=tok.pad_token_id,
  )
  return grpo.make_collect(
    rollout,
    judge,
    groups=c.groups,
    rounds=c.rounds if c.dynamic else 1,
    observe=prompts.observe if c.pools else lambda *_: None,
  )


def make_batching(c):
  """See `grpo.make_batch`."""
  return functools.partial(
    grpo.make_batch,
    groups=c.groups,
    minibatches=c.minibatches,
    length=c.row,
    rows=c.rows,
    aggregation=c.aggregation,
    limit=c.completion_length,
    everything=bool(c.kl_coef or c.entropy_target),
    mask_truncated=c.mask_truncated,
  )


def make_policy_update(c, cfg, mesh, optimizer, rate, frozen, reference):
  """See `policy.make_update`."""
  loss = functools.partial(
    objectives.policy_loss,
    objective=c.objective,
    clip=tuple(c.clip),
    correction=c.correction,
    band=tuple(c.band),
    kl=c.kl,
    kl_coef=c.kl_coef,
  )
  score = policy.make_score(
    cfg, temperature=c.temperature, dtype=DTYPES[c.dtype], remat=c.remat
  )
  return policy.make_update(
    optimizer,
    rate,
    mesh,
    score=score,
    loss=loss,
    frozen=frozen,
    reference=reference,
    old=old_logp(c),
    minibatches=c.minibatches,
    rows=c.rows,
    entropy_target=c.entropy_target,
  )


def state_scalars(c):
  """What the state of a GRPO run holds beside that of an SFT run."""
  return ('entropy_coef',) if c.entropy_target else ()


def old_logp(c) -> str:
  """What the ratio of a GRPO update is taken to, a key of `policy.OLD`."""
  if c.bypass:
    return 'sampler'
  return 'scored' if c.minibatches > 1 else 'now'


MASTERS = {'float32': False, 'split': True}
TASKS = {'sft': train_sft, 'grpo': train_grpo}


def sft_update(c, cfg, optimizer, rate, *, frozen):
  """The step of an SFT run; what `plan` compiles, too."""
  return sft.make_update(
    cfg,
    optimizer,
    rate,
    frozen=frozen,
    micro=c.micro,
    dtype=DTYPES[c.dtype],
    remat=c.remat,
    chunk=c.chunk,
    ema=c.ema,
    offload=c.offload,
  )


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
    moments=tuple(c.moments),
  )
  return optimizer, rate


def abstract_state(c, cfg, optimizer, mesh, scalars=()):
  """(params -> state, shapes and shardings of that state).

  `scalars`: see `optim.init_state`.
  """
  make = functools.partial(
    optim.init_state,
    optimizer,
    seed=c.seed,
    split=MASTERS[c.masters],
    ema=bool(c.get('ema')),
    scalars=scalars,
  )
  whole = hf.abstract(cfg)
  shapes = jax.eval_shape(make, lora.split(whole)[1] if cfg.lora else whole)
  shardings = tree_shardings(shapes, mesh)
  if c.get('offload'):
    shardings |= {'opt': on_host(shapes['opt'], shardings['opt'])}
  return make, jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def start(c, manager, mesh, cfg, load, optimizer, batches, scalars=()):
  """The state to train from: the newest checkpoint, else a fresh start.

  Also moves `batches` to the position that belongs to the state.
  """
  make, abstract = abstract_state(c, cfg, optimizer, mesh, scalars)
  found = checkpoint.restore(manager, abstract)
  if found is None:
    params = first_params(c, cfg, load, mesh)
    print(f'{c.task}: {model.count(params):,} trained parameters, a fresh run')
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(make, out_shardings=shardings)(params)
  state, position = found
  batches.set_state(position)
  print(f'{c.task}: resumed at step {manager.latest_step()} in {c.workdir}')
  return state


def note_sandbox(c, report):
  """Says, and keeps in the run, how programs are isolated on this machine."""
  if jax.process_index() == 0:
    checkpoint.write_json(pathlib.Path(c.workdir) / 'sandbox.json', report)
  print(f'{c.task}: programs run at isolation level {report["level"]}')


def due(c, step: int, steps: int) -> bool:
  """Whether the state of a step is kept: every c.save_every, and the last.

  Step 0 is kept for a random start: it exists nowhere else.
  """
  if step == 0:
    return not c.model
  return step % c.save_every == 0 or step == steps


def saver(c, manager, steps: int):
  """(step, state, batches) -> None: writes where it is `due`."""

  def save(step, state, batches):
    if due(c, step, steps):
      checkpoint.save(manager, step, state, batches.get_state())

  return save


@contextlib.contextmanager
def open_log(c, state, steps: int, alarms=lambda lines: {}):
  """Yields log(step, metrics, tokens, rows): files, progress, samples.

  The first process of several writes for all; the rows are its own.
  """
  if jax.process_index():
    yield lambda *_, **__: None
    return
  with metrics.Writer(
    c.workdir,
    start_step=int(jax.device_get(state['step'])),
    total_steps=steps,
    chips=jax.device_count(),
    peak=metrics.peak(jax.devices()[0].device_kind),
    alarms=alarms,
  ) as writer:

    def log(step, scalars, tokens, rows=(), **counts):
      numbers = {k: float(v) for k, v in scalars.items()}
      writer.write(step, numbers, tokens, **counts)
      if rows and (step % c.samples_every == 0 or step == steps):
        writer.samples(step, rows)

    yield log


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'One file, one run.')
  flags.mark_flag_as_required('config')
  flags.DEFINE_bool('distributed', False, 'Join the other processes of a pod.')


def main(_):
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot at INFO.
  runtime.prepare()
  if flags.FLAGS.distributed:
    jax.distributed.initialize()
  config = flags.FLAGS.config
  TASKS[config.task](config)


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
