"""Trains the one run that a config file describes, and resumes it by default.

  python -m crjax.train --config=configs/sft_smoke.py
  python -m crjax.train --config=configs/grpo_7b.py --config.lr=2e-6

The same command continues a run where it stopped. The config stops here: it is
unpacked into explicit arguments of functions that know nothing of it.
"""

import collections
import functools

from absl import app, flags, logging
import jax
from ml_collections import config_flags

from crjax import (
  checkpoint,
  cluster,
  curriculum,
  data,
  grpo,
  hf,
  lora,
  model,
  objectives,
  optim,
  policy,
  sft,
  tokenizer,
  watch,
)
from crjax.inputs import (
  CANNOT,
  DTYPES,
  first_params,
  load_frozen,
  open_examples,
  open_inputs,
  open_pool,
  parse_flags,
)
from crjax.outputs import note_sandbox, open_checkpoints, open_log, saving
from crjax.sharding import make_mesh, on_host, tree_shardings


def train_sft(c):
  """Builds the parts of an SFT run and hands them to `sft.run`."""
  with cluster.inputs(CANNOT):
    tok, cfg, load = open_inputs(c)
    mesh = make_mesh(c.mesh)
  with (
    jax.set_mesh(mesh),
    open_checkpoints(c) as m,
    cluster.watchdog(c.workdir, c.watchdog) as beat,
  ):
    batches = open_examples(c, tok)
    steps = max(int(c.epochs * batches.rows / c.batch), 1)
    optimizer, rate = make_optimizer(c, updates=steps)
    frozen = load_frozen(c, cfg, load, mesh)
    update = sft_update(c, cfg, optimizer, rate, frozen=frozen)
    state = start(c, m, mesh, cfg, load, optimizer, batches)
    with (
      open_log(c, state, steps) as (log, send),
      jax.transfer_guard('disallow'),
    ):
      due, save, log = saving(c, m, steps, beat, log, send)
      sft.run(
        state,
        batches,
        mesh=mesh,
        update=update,
        log=log,
        save=save,
        due=due,
        count=functools.partial(sft.count, cfg),
        steps=steps,
      )


def train_grpo(c):
  """Builds the parts of a GRPO run and hands them to `grpo.run`."""
  with cluster.inputs(CANNOT):
    tok, cfg, load = open_inputs(c)
    mesh = make_mesh(c.mesh)
  with (
    jax.set_mesh(mesh),
    open_checkpoints(c) as manager,
    open_pool(c) as pool,
    cluster.watchdog(c.workdir, c.watchdog) as beat,
  ):
    prompts, observe = open_prompts(c, tok)
    optimizer, rate = make_optimizer(c, updates=c.steps * c.minibatches)
    note_sandbox(c, pool.report)
    frozen = load_frozen(c, cfg, load, mesh)
    # The reference is the model that the run started from, resumed or not.
    reference = first_params(c, cfg, load, mesh) if c.kl_coef else None
    score = policy_score(c, cfg)
    clock = collections.Counter()
    collect = make_collect(
      c, cfg, mesh, tok, pool, frozen, prompts.expected, observe, clock
    )
    update = make_policy_update(
      c, mesh, score, optimizer, rate, frozen, reference
    )
    state = start(
      c, manager, mesh, cfg, load, optimizer, prompts, state_scalars(c)
    )
    with (
      open_log(c, state, c.steps, watch.alarms) as (log, send),
      jax.transfer_guard('disallow'),
    ):
      due, save, log = saving(c, manager, c.steps, beat, log, send)
      collect, log = grpo.timed(collect, log, clock)
      grpo.run(
        state,
        prompts,
        collect=collect,
        advantage=make_advantage(c, mesh, score, frozen, reference),
        batch=with_lines(c, tok, make_batching(c)),
        update=update,
        log=log,
        due=due,
        save=save,
        steps=c.steps,
      )


def open_prompts(c, tok):
  """(questions of a GRPO run, observe); by curriculum where c.pools says so.

  `observe`: see `grpo.make_collect`.
  """
  with cluster.inputs(CANNOT):
    prompts = data.prompts(
      c.data,
      tok,
      questions=1 if c.pools else c.questions,
      length=c.prompt_length,
      seed=c.seed,
      pad_id=tok.pad_token_id,
      thinking=c.thinking,
      canaries=c.canaries,
    )
  rate = lambda ids_Q, rewards_QR: None
  if c.pools:
    prompts = curriculum.Curriculum(prompts, questions=c.questions, seed=c.seed)
    rate = prompts.observe
  prompts = curriculum.Lengths(prompts)

  def observe(ids_Q, rewards_QR, length_QR):
    rate(ids_Q, rewards_QR)
    prompts.observe(ids_Q, length_QR)

  return prompts, observe


def make_collect(c, cfg, mesh, tok, pool, frozen, expected, observe, clock):
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
    expected=expected,
  )
  judge = grpo.make_judge(
    tok,
    pool,
    rollouts=c.rollouts,
    steps=c.completion_length,
    pad_id=tok.pad_token_id,
    clock=clock,
  )
  return grpo.make_collect(
    rollout,
    judge,
    groups=c.groups,
    rounds=c.rounds if c.dynamic else 1,
    observe=observe,
  )


def make_advantage(c, mesh, score, frozen, reference):
  """See `grpo.make_advantage`."""
  penalty = None
  if c.kl_coef and c.kl_in == 'reward':
    everything = make_batching(
      c,
      groups=c.rounds * c.questions,
      minibatches=1,
      everything=True,
      mask_truncated=False,
    )
    penalty = policy.make_penalty(
      mesh,
      score,
      everything,
      reference=reference,
      frozen=frozen,
      kl=c.kl,
      rows=c.rows,
    )
  return grpo.make_advantage(
    c.advantage,
    eps=c.advantage_eps,
    limit=c.completion_length,
    overlong=int(c.overlong * c.completion_length),
    kl_coef=c.kl_coef,
    penalty=penalty,
  )


def make_batching(c, **changes):
  """See `grpo.make_batch`."""
  choices = {
    'groups': c.groups,
    'minibatches': c.minibatches,
    'length': c.row,
    'rows': c.rows,
    'aggregation': c.aggregation,
    'limit': c.completion_length,
    'everything': bool(kl_in_loss(c) or c.entropy_target),
    'mask_truncated': c.mask_truncated,
  }
  return functools.partial(grpo.make_batch, **choices | changes)


def with_lines(c, tok, batch):
  """`batch` of `grpo.run`, in which lines may have advantages of their own."""
  lines = grpo.make_lines(tok, rollouts=c.rollouts, coef=c.step_coef)

  def whole(questions, rolled, rewards_QR, adv_QR, rows):
    extra_BT = lines(rolled, rows)
    return batch(questions, rolled, rewards_QR, adv_QR, extra_BT)

  return whole


def policy_score(c, cfg):
  """See `policy.make_score`."""
  return policy.make_score(
    cfg, temperature=c.temperature, dtype=DTYPES[c.dtype], remat=c.remat
  )


def make_policy_update(c, mesh, score, optimizer, rate, frozen, reference):
  """See `policy.make_update`."""
  loss = functools.partial(
    objectives.policy_loss,
    objective=c.objective,
    clip=tuple(c.clip),
    correction=c.correction,
    band=tuple(c.band),
    kl=c.kl,
    kl_coef=kl_in_loss(c),
  )
  return policy.make_update(
    optimizer,
    rate,
    mesh,
    score=score,
    loss=loss,
    frozen=frozen,
    reference=reference if kl_in_loss(c) else None,
    old=old_logp(c),
    minibatches=c.minibatches,
    rows=c.rows,
    entropy_target=c.entropy_target,
  )


def kl_in_loss(c) -> float:
  """The weight of the KL in the loss: 0 where it is part of the reward."""
  return c.kl_coef if c.kl_in == 'loss' else 0.0


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
  with cluster.inputs(CANNOT):
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
  with cluster.inputs(CANNOT):
    found = checkpoint.restore(manager, abstract)
  if found is None:
    params = first_params(c, cfg, load, mesh)
    print(f'{c.task}: {model.count(params):,} trained parameters, a fresh run')
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    # Parameters are there once; halves have no place in whole ones.
    donated = () if MASTERS[c.masters] else 0
    fresh = jax.jit(make, out_shardings=shardings, donate_argnums=donated)
    return fresh(params)
  state, position = found
  batches.set_state(position)
  print(f'{c.task}: resumed at step {manager.latest_step()} in {c.workdir}')
  return state


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'One file, one run.')
  flags.mark_flag_as_required('config')
  flags.DEFINE_bool('distributed', False, 'Join the other processes of a pod.')


def main(_):
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot at INFO.
  cluster.begin(flags.FLAGS.distributed)
  config = flags.FLAGS.config
  TASKS[config.task](config)


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
