"""The update of GRPO, on the device: from a Batch to a better state."""

import functools

import jax
import jax.numpy as jnp

from crjax import lora, model, optim, xent
from crjax.sharding import put

ENTROPY_STEP = 5e-3  # How fast the entropy coefficient follows its target.


def make_score(cfg, *, temperature: float, dtype, remat: str):
  """(params, Batch, frozen) -> (logp_BC, entropy_BC) of what it predicts."""

  def score(params, batch, frozen):
    whole = lora.join(frozen, params)
    x_BTD = model.forward(
      cfg,
      whole,
      batch.tokens_BT,
      batch.group_BT,
      pos_BT=batch.pos_BT,
      branch_BT=batch.branch_BT,
      dtype=dtype,
      remat=remat,
    )
    x_BCD = jnp.take_along_axis(x_BTD, batch.index_BC[..., None], axis=1)
    return xent.token_logp(
      x_BCD,
      model.head(whole, dtype),
      batch.target_BC,
      temperature=temperature,
    )

  return score


def make_update(
  optimizer,
  rate,
  mesh,
  *,
  score,
  loss,
  frozen,
  reference,
  old: str,
  minibatches: int,
  rows: int,
  entropy_target: float,
):
  """(state, Batch on the host) -> (state, metrics); the state is donated.

  Args:
    optimizer: and `rate`, its schedule, see optim.py.
    mesh: where the batch goes.
    score: see `make_score`.
    loss: `objectives.policy_loss` with its choices made.
    frozen: the parameters beside those of the state, None where all are
      trained.
    reference: those of the state before the first step, None without a KL term.
    old: what the ratio is taken to, a key of OLD.
    minibatches: optimizer updates a batch; see `branches.pack`.
    rows: rows of a slice; gradients are accumulated over slices.
    entropy_target: in nats; the state's `entropy_coef` rises while the entropy
      is below and falls while it is above (arXiv 2505.22312). 0: no bonus.
  """
  scored = functools.partial(fixed_logp, score, minibatches, rows)

  def part_loss(params, part, frozen, coef):
    logp_BC, entropy_BC = score(params, part, frozen)
    total, sums = loss(
      logp_BC,
      entropy_BC,
      OLD[old](logp_BC, part),
      part.ref_logp_BC,
      part.logp_BC,
      part.adv_BC,
      part.weight_BC,
      part.seq_BC,
      entropy_coef=coef,
    )
    return total, sums | {'loss': total}

  def one_update(state, part, frozen):
    coef = state['entropy_coef'] if entropy_target else None
    beside = functools.partial(part_loss, frozen=frozen, coef=coef)
    micro = part.tokens_BT.shape[0] // rows
    used = lambda part: (part.seq_BC > 0).any()
    grads, sums = optim.accumulate(beside, state['params'], part, micro, used)
    state, norm = optim.apply(optimizer, state, grads)
    metrics = means(sums, (part.seq_BC > 0).sum()) | {'grad_norm': norm}
    if entropy_target:
      state |= {'entropy_coef': steer(coef, metrics['entropy'], entropy_target)}
      metrics['entropy_coef'] = coef
    return state, metrics

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, frozen, reference, batch):
    if old == 'scored':
      logp_BC = scored(state['params'], batch, frozen)
      batch = batch._replace(old_logp_BC=logp_BC)
    if reference is not None:
      logp_BC = scored(reference, batch, frozen)
      batch = batch._replace(ref_logp_BC=logp_BC)
    parts = optim.slices(batch, minibatches)
    lr = rate(state['step'] * minibatches)
    one = functools.partial(one_update, frozen=frozen)
    state, metrics = jax.lax.scan(one, state, parts)
    metrics = jax.tree.map(lambda x: x.mean(0), metrics)
    return optim.tick(state), metrics | {'lr': lr}

  return lambda state, batch: update(state, frozen, reference, put(mesh, batch))


# The log-probs that the ratio is taken to: the policy's own, where it has not
# moved since the step began; those scored at its beginning; the sampler's,
# whose numerics and staleness the ratio then corrects (bypass mode of verl).
OLD = {
  'now': lambda logp_BC, part: jax.lax.stop_gradient(logp_BC),
  'scored': lambda logp_BC, part: part.old_logp_BC,
  'sampler': lambda logp_BC, part: part.logp_BC,
}


def fixed_logp(score, minibatches, rows, params, batch, frozen):
  """logp_BC of a whole Batch, slice by slice, without a gradient."""
  B, C = batch.target_BC.shape
  micro = B // rows // minibatches
  parts = optim.slices(batch, minibatches * micro)

  def one(part):
    zeros = lambda part: jnp.zeros(part.target_BC.shape, jnp.float32)
    real = lambda part: score(params, part, frozen)[0]
    return jax.lax.cond((part.seq_BC > 0).any(), real, zeros, part)

  return jax.lax.map(one, parts).swapaxes(0, 1).reshape(B, C)


def means(sums, count):
  """The metrics of an update from sums over its `count` tokens."""
  loss = sums.pop('loss')
  sums = {k: x / jnp.maximum(count, 1) for k, x in sums.items()}
  squared = sums.pop('sampler_ratio_squared')
  # Effective sample size, as a share of the tokens (Kish 1965).
  ess = sums['sampler_ratio'] ** 2 / jnp.maximum(squared, 1e-30)
  return sums | {'loss': loss, 'sampler_ess': ess}


def steer(coef, entropy, target: float):
  """The entropy coefficient of the next update, never negative."""
  step = jnp.where(entropy < target, ENTROPY_STEP, -ENTROPY_STEP)
  return jnp.maximum(coef + step, 0.0)
