"""Group-relative policy optimization with execution rewards, read from `run`.

Tokens that were sampled are the tokens that are trained on: text is decoded
for rewards and logs only, and never encoded again.
"""

import collections
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crjax import lora, losses, model, optim, rewards, sampling, tokenizer
from crjax.advantages import solved
from crjax.sharding import gather, put, replicate, sum_over_processes


class Batch(NamedTuple):
  """What one update reads: B rollouts, prompts of P tokens, completions of C.

  Rows are left-padded prompts followed by right-padded completions.
  """

  tokens_BT: jax.Array  # int32, T = P + C
  valid_BT: jax.Array  # true on prompt and completion
  mask_BC: jax.Array  # true on completion tokens, the end token included
  logp_BC: jax.Array  # of the sampler, in its numerics
  old_logp_BC: jax.Array  # of the trainer, at the start of the step
  ref_logp_BC: jax.Array  # of the frozen reference
  adv_B: jax.Array


def run(
  state, prompts, *, rollout, judge, advantage, batch, update, log, save, steps
):
  """Trains to `steps` from wherever `state` and `prompts` stand.

  Args:
    state: see optim.py; donated, step by step.
    prompts: iterator of `data.Prompts`; its position belongs to the state.
    rollout: (state, Prompts) -> list of Rollout on the device, one a wave.
    judge: (tasks, list of Rollout) -> (Rollout on the host, rewards_QR, rows).
    advantage: rewards_QR -> adv_QR, see advantages.py.
    batch: (Prompts, Rollout, adv_QR) -> Batch, see `make_batch`.
    update: (state, Batch on the host) -> (state, metrics on the device).
    log: called with (step, metrics, tokens sampled, rows of samples).
    save: called with (step, state, prompts); decides itself whether to write.
    steps: total batches of the run.
  """
  start = int(gather(state['step']))
  save(start, state, prompts)
  for step in range(start + 1, steps + 1):
    questions = next(prompts)
    rolled, rewards_QR, rows = judge(questions.tasks, rollout(state, questions))
    adv_QR = advantage(rewards_QR)
    state, metrics = update(state, batch(questions, rolled, adv_QR))
    metrics = gather(metrics) | summarize(rewards_QR, rolled, rows)
    for row in rows:
      row['advantage'] = float(adv_QR.ravel()[row['row']])
    log(step, metrics, tokens=int(rolled.mask_BT.sum()), rows=rows)
    save(step, state, prompts)
  return state


def make_rollout(
  cfg,
  mesh,
  *,
  frozen,
  rollouts: int,
  steps: int,
  stop_ids,
  pad_id: int,
  dtype,
  temperature: float,
  waves: int,
):
  """(state, Prompts) -> Rollouts on the device, still being computed.

  The questions are sampled in `waves` equal parts, in order: the host judges
  one part while the device samples the next. `frozen`: see `make_update`.
  """
  decode_copy = sampling.make_decode_copy(cfg, mesh, dtype)
  sample = sampling.make(
    cfg.base, rollouts=rollouts, steps=steps, stop_ids=stop_ids, pad_id=pad_id
  )
  step_key = jax.jit(
    lambda key, step: jax.random.fold_in(jax.random.wrap_key_data(key), step)
  )
  knobs = [np.float32(temperature), np.float32(1.0), np.int32(0)]

  def rollout(state, questions):
    params = decode_copy(state['params'], frozen)
    key = step_key(state['key'], state['step'])
    scalars = [replicate(mesh, x) for x in knobs]
    parts = zip(*(np.split(x, waves) for x in questions[:3]), strict=True)
    return [sample(params, *put(mesh, part), key, *scalars) for part in parts]

  return rollout


def make_judge(tok, pool, *, rollouts: int):
  """(tasks, waves) -> (the whole Rollout on the host, rewards_QR, rows).

  Each process judges its share of every wave; all processes see all rewards.
  `rows` describe this process's share, for the sample table.
  """
  share = slice(jax.process_index(), None, jax.process_count())

  def judge(tasks, waves):
    tasks_B = [task for task in tasks for _ in range(rollouts)]
    done, rewards_B, rows = [], np.zeros(len(tasks_B), np.float32), []
    for wave in waves:
      first = sum(len(w.stopped_B) for w in done)
      done.append(gather(wave))
      mine = range(first, first + len(done[-1].stopped_B))[share]
      part = jax.tree.map(lambda x: x[share], done[-1])
      length_B = part.mask_BT.sum(1) - part.stopped_B  # Without the end token.
      texts = tokenizer.decode(tok, part.tokens_BT, length_B)
      some = [tasks_B[i] for i in mine]
      rewards_B[mine], infos = rewards.score(some, texts, ~part.stopped_B, pool)
      rows += [
        {'row': i, 'reward': float(rewards_B[i]), 'text': text} | task | info
        for i, text, task, info in zip(mine, texts, some, infos, strict=True)
      ]
    rolled = sampling.Rollout(*map(np.concatenate, zip(*done, strict=True)))
    rewards_QR = sum_over_processes(rewards_B).reshape(-1, rollouts)
    return rolled, rewards_QR, rows

  return judge


def make_batch(questions, rolled, adv_QR, *, groups: int, multiple=1) -> Batch:
  """The update's input from prompts, their rollouts and advantages; NumPy.

  Of the groups that were sampled, `groups` are kept: in dispatch order those
  with an advantage, then, where they do not suffice, the others, which have no
  gradient (dynamic sampling, DAPO). Order of completion plays no part, so
  short answers win nothing. Columns that no kept row uses are cut off at both
  ends, down to a `multiple`: the update costs what was sampled, at one
  compilation per width.
  """
  kept_G = keep(adv_QR, groups)
  R = adv_QR.shape[1]
  rows_B = (kept_G[:, None] * R + np.arange(R)).ravel()
  rolled = jax.tree.map(lambda x: x[rows_B], rolled)
  mask_QP = questions.mask_QP[kept_G]
  P = _width(mask_QP.any(0)[::-1], multiple)
  C = _width(rolled.mask_BT.any(0), multiple)
  repeat = lambda x_QP: np.repeat(x_QP[:, -P:], R, axis=0)
  mask_BC, logp_BC = rolled.mask_BT[:, :C], rolled.logp_BT[:, :C]
  prompts_BP = repeat(questions.tokens_QP[kept_G])
  return Batch(
    tokens_BT=np.hstack([prompts_BP, rolled.tokens_BT[:, :C]]),
    valid_BT=np.hstack([repeat(mask_QP), mask_BC]),
    mask_BC=mask_BC,
    logp_BC=logp_BC,
    old_logp_BC=np.zeros_like(logp_BC),
    ref_logp_BC=np.zeros_like(logp_BC),
    adv_B=adv_QR[kept_G].ravel(),
  )


def keep(adv_QR, groups: int):
  """Indices of the groups to train on, ascending; see `make_batch`."""
  silent_Q = ~(adv_QR != 0).any(1)
  return np.sort(np.argsort(silent_Q, kind='stable')[:groups])


def _width(used_T, multiple):
  """Columns up to the last used one, rounded up, at most all of them."""
  last = int(np.nonzero(used_T)[0].max()) + 1
  return min(-(-last // multiple) * multiple, len(used_T))


def make_update(
  cfg,
  optimizer,
  rate,
  mesh,
  *,
  frozen,
  reference,
  minibatches: int,
  micro: int,
  temperature: float,
  clip: tuple[float, float],
  band: tuple[float, float],
  kl_coef: float,
  dtype,
  remat: str,
):
  """(state, Batch on the host) -> (state, metrics); the state is donated.

  A batch makes `minibatches` optimizer updates, each accumulated over `micro`
  slices and divided by its own token count over all devices. `frozen` are the
  parameters beside those of the state, None where all are trained; `reference`
  those of the state before the first step, None without a KL term.
  """

  def score(params, batch, frozen):
    return model.score(
      cfg,
      lora.join(frozen, params),
      batch.tokens_BT,
      batch.valid_BT,
      start=batch.tokens_BT.shape[1] - batch.mask_BC.shape[1],
      temperature=temperature,
      dtype=dtype,
      remat=remat,
    )

  def fixed_logp(params, batch, frozen):
    parts = optim.slices(batch, minibatches * micro)
    logp = jax.lax.map(lambda part: score(params, part, frozen)[0], parts)
    return logp.swapaxes(0, 1).reshape(batch.mask_BC.shape)

  def loss(params, part, frozen):
    logp_BC, entropy_BC = score(params, part, frozen)
    # With one update a batch the policy has not moved since the step began.
    now_BC = jax.lax.stop_gradient(logp_BC)
    old_BC = now_BC if minibatches == 1 else part.old_logp_BC
    total, sums = losses.policy_gradient(
      logp_BC,
      old_BC,
      part.logp_BC,
      part.ref_logp_BC,
      part.adv_B,
      part.mask_BC,
      clip=clip,
      band=band,
      kl_coef=kl_coef,
    )
    entropy = losses.masked_sum(entropy_BC, part.mask_BC)
    return total, sums | {'loss': total, 'entropy': entropy}

  def one_update(state, part, frozen):
    count = jnp.maximum(part.mask_BC.sum(), 1)
    beside = functools.partial(loss, frozen=frozen)
    grads, sums = optim.accumulate(beside, state['params'], part, micro)
    grads, means = jax.tree.map(lambda x: x / count, (grads, sums))
    state, norm = optim.apply(optimizer, state, grads)
    return state, means | {'grad_norm': norm}

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, frozen, reference, batch):
    if minibatches > 1:
      old = fixed_logp(state['params'], batch, frozen)
      batch = batch._replace(old_logp_BC=old)
    if kl_coef:
      ref = fixed_logp(reference, batch, frozen)
      batch = batch._replace(ref_logp_BC=ref)
    parts = optim.slices(batch, minibatches)
    lr = rate(state['step'] * minibatches)
    one = functools.partial(one_update, frozen=frozen)
    state, metrics = jax.lax.scan(one, state, parts)
    metrics = jax.tree.map(lambda x: x.mean(0), metrics)
    return optim.tick(state), metrics | {'lr': lr}

  return lambda state, batch: update(state, frozen, reference, put(mesh, batch))


def summarize(rewards_QR, rolled, rows):
  """Host metrics of one batch: rewards, lengths, formats, where signal is."""
  length_B = rolled.mask_BT.sum(1)
  mean = lambda values: float(np.nanmean(values)) if len(values) else 0.0
  kinds = {row['kind'] for row in rows}
  verdicts = collections.Counter(row['verdict'] for row in rows)
  return {
    'reward': mean(rewards_QR[~np.isnan(rewards_QR)]),
    'infra': float(np.isnan(rewards_QR).mean()),
    'format_rate': mean([row['format_ok'] for row in rows]),
    'completion/length': float(length_B.mean()),
    'completion/truncated': float((~rolled.stopped_B).mean()),
    **solved(rewards_QR),
    **{f'verdict/{k}': n / len(rows) for k, n in sorted(verdicts.items())},
    **{
      f'reward/{kind}': mean(
        [row['reward'] for row in rows if row['kind'] == kind]
      )
      for kind in sorted(kinds)
    },
  }
