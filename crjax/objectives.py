"""What a policy update minimises, token by token: pure functions of log-probs.

Arrays are [B, C]: rows of predicted tokens. A row may hold several completions;
`seq_BC` says which one a token is part of, counted from 1, and is 0 where there
is no token. Every dict below is one choice of a config.
"""

import jax
import jax.numpy as jnp

from crjax.losses import masked_sum

DUAL_CLIP = 3.0  # verl's default.
DPPO_MAX_RATIO = 20.0  # verl's default.

fixed = jax.lax.stop_gradient


def sequence_sum(x_BC, seq_BC):
  """For each token the sum over its completion."""
  segments = seq_BC.shape[1] + 1
  one = lambda x, seq: jax.ops.segment_sum(x, seq, segments)[seq]
  return jax.vmap(one)(jnp.where(seq_BC > 0, x_BC, 0.0), seq_BC)


def sequence_mean(x_BC, seq_BC):
  """For each token the mean over its completion."""
  count_BC = sequence_sum(jnp.ones_like(x_BC), seq_BC)
  return sequence_sum(x_BC, seq_BC) / jnp.maximum(count_BC, 1.0)


# Objectives: (logp, old_logp, adv, seq, low, high), all [B, C], to (loss_BC,
# true where the low bound stops the gradient, true where the high one does).


def clip(logp_BC, old_BC, adv_BC, seq_BC, low, high):
  """PPO's clipped surrogate; low < high is DAPO's clip-higher (2503.14476)."""
  return _clipped(logp_BC - old_BC, adv_BC, low, high)


def dual_clip(logp_BC, old_BC, adv_BC, seq_BC, low, high):
  """`clip`, bounded by 3 |A| for bad tokens (arXiv 1912.09729)."""
  loss_BC, low_BC, high_BC = _clipped(logp_BC - old_BC, adv_BC, low, high)
  bound_BC = -DUAL_CLIP * adv_BC
  beyond_BC = (adv_BC < 0) & (loss_BC > bound_BC)
  return jnp.where(beyond_BC, bound_BC, loss_BC), low_BC, high_BC | beyond_BC


def cispo(logp_BC, old_BC, adv_BC, seq_BC, low, high):
  """REINFORCE weighted by the clipped ratio (MiniMax-M1, arXiv 2506.13585).

  No token loses its gradient. The weight is in [1 - low, 1 + high]: (1, 4) is
  ScaleRL's absolute bound of 5 without a lower one.
  """
  ratio_BC = jnp.exp(fixed(logp_BC) - old_BC)
  weight_BC = jnp.clip(ratio_BC, 1.0 - low, 1.0 + high)
  low_BC, high_BC = ratio_BC < 1.0 - low, ratio_BC > 1.0 + high
  return -weight_BC * adv_BC * logp_BC, low_BC, high_BC


def gspo(logp_BC, old_BC, adv_BC, seq_BC, low, high):
  """`clip` of the geometric mean ratio of a completion (arXiv 2507.18071)."""
  mean_BC = sequence_mean(fixed(logp_BC) - old_BC, seq_BC)
  # The value of the completion's ratio, with the gradient of each token.
  return _clipped(mean_BC + logp_BC - fixed(logp_BC), adv_BC, low, high)


def dppo_tv(logp_BC, old_BC, adv_BC, seq_BC, low, high):
  """Masks tokens whose probability moved too far (DPPO, arXiv 2602.04879)."""
  now_BC = fixed(logp_BC)
  moved_BC = jnp.exp(now_BC) - jnp.exp(old_BC)
  high_BC = (adv_BC > 0) & (moved_BC > high)
  low_BC = (adv_BC <= 0) & (moved_BC < -low)
  ratio_BC = jnp.minimum(jnp.exp(now_BC - old_BC), DPPO_MAX_RATIO)
  loss_BC = -ratio_BC * adv_BC * logp_BC
  return jnp.where(low_BC | high_BC, 0.0, loss_BC), low_BC, high_BC


def _clipped(log_ratio_BC, adv_BC, low, high):
  ratio_BC = jnp.exp(log_ratio_BC)
  clipped_BC = jnp.clip(ratio_BC, 1.0 - low, 1.0 + high)
  loss_BC = -jnp.minimum(ratio_BC * adv_BC, clipped_BC * adv_BC)
  low_BC = (ratio_BC < 1.0 - low) & (adv_BC < 0)
  return loss_BC, low_BC, (ratio_BC > 1.0 + high) & (adv_BC > 0)


OBJECTIVES = {
  'clip': clip,
  'dual-clip': dual_clip,
  'cispo': cispo,
  'gspo': gspo,
  'dppo-tv': dppo_tv,
}

# Corrections: (log(trainer / sampler), seq, low, high) to weight_BC. The
# denominators of the loss do not change with what they drop.


def icepop(gap_BC, seq_BC, low, high):
  """The ratio of a token, 0 outside [low, high] (IcePop)."""
  w_BC = jnp.exp(gap_BC)
  return jnp.where((w_BC >= low) & (w_BC <= high), w_BC, 0.0)


def tis(gap_BC, seq_BC, low, high):
  """The ratio of a token, truncated to [low, high]; low 0 is TIS proper."""
  return jnp.clip(jnp.exp(gap_BC), low, high)


def sequence_mask(gap_BC, seq_BC, low, high):
  """The ratio of a completion, a product, 0 outside (TRL `sequence_mask`)."""
  return icepop(sequence_sum(gap_BC, seq_BC), seq_BC, low, high)


def geometric_mask(gap_BC, seq_BC, low, high):
  """The ratios of tokens, 0 in completions whose geometric mean is outside."""
  kept_BC = geometric_reject(gap_BC, seq_BC, low, high)
  return kept_BC * jnp.exp(gap_BC)


def geometric_reject(gap_BC, seq_BC, low, high):
  """1, or 0 in completions whose geometric mean ratio is outside (Geo-RS)."""
  return icepop(sequence_mean(gap_BC, seq_BC), seq_BC, low, high) > 0


CORRECTIONS = {
  'none': lambda gap_BC, seq_BC, low, high: jnp.ones_like(gap_BC),
  'icepop': icepop,
  'tis': tis,
  'sequence-mask': sequence_mask,
  'geometric-mask': geometric_mask,
  'geometric-reject': geometric_reject,
}

# Estimates of KL(policy || reference) of a sampled token (Schulman 2020).


def k1(logp_BC, ref_BC):
  """Unbiased; as a loss its expected gradient is zero."""
  return logp_BC - ref_BC


def k2(logp_BC, ref_BC):
  """Biased, small variance; its gradient is that of the KL."""
  return 0.5 * (logp_BC - ref_BC) ** 2


def k3(logp_BC, ref_BC):
  """Unbiased and never negative; its gradient is not that of the KL."""
  d_BC = jnp.clip(ref_BC - logp_BC, -20.0, 20.0)
  return jnp.exp(d_BC) - d_BC - 1.0


def straight_through(kl):
  """The value of an estimate with the gradient of k2 (verl `k1+`, `k3+`)."""

  def estimate(logp_BC, ref_BC):
    good_BC = k2(logp_BC, ref_BC)
    return good_BC + fixed(kl(logp_BC, ref_BC) - good_BC)

  return estimate


KLS = {
  'k1': k1,
  'k2': k2,
  'k3': k3,
  'k1+': straight_through(k1),
  'k3+': straight_through(k3),
}


def entropy_bonus(logp_BC, entropy_BC):
  """The entropy, with a gradient that needs nothing but sampled tokens.

  In expectation over them it is that of the entropy, -sum p log p grad log p;
  the entropy itself is the baseline.
  """
  nothing_BC = logp_BC - fixed(logp_BC)
  return fixed(entropy_BC) - fixed(logp_BC + entropy_BC) * nothing_BC


def policy_loss(
  logp_BC,
  entropy_BC,
  old_BC,
  ref_BC,
  roll_BC,
  adv_BC,
  weight_BC,
  seq_BC,
  *,
  objective: str,
  clip: tuple[float, float],
  correction: str,
  band: tuple[float, float],
  kl: str,
  kl_coef: float,
  entropy_coef=None,
):
  """The loss of some rows of an update, and sums over its tokens to log.

  Args:
    logp_BC: log-probs under the parameters being differentiated.
    entropy_BC: entropies of the same distributions.
    old_BC: log-probs that the ratio is taken to.
    ref_BC: log-probs under the frozen reference; read if kl_coef > 0.
    roll_BC: the sampler's own log-probs of its tokens.
    adv_BC: the advantage of each token; 0 is without policy gradient.
    weight_BC: what a token counts in the mean, see branches.AGGREGATIONS.
    seq_BC: the completion of each token, 0 for none.
    objective: a key of OBJECTIVES; `clip` are its bounds (low, high).
    correction: a key of CORRECTIONS; `band` are its bounds on old / roll.
    kl: a key of KLS, weighted by `kl_coef`.
    entropy_coef: weight of the entropy that is added to the objective.

  Returns:
    (loss, sums): the first adds up over rows to the loss of the update, the
    second is to be divided by its token count.
  """
  mask_BC = seq_BC > 0
  inside = lambda x_BC: jnp.where(mask_BC, x_BC, 0.0)
  logp_BC, old_BC, roll_BC = map(inside, (logp_BC, old_BC, roll_BC))
  gap_BC = fixed(old_BC) - roll_BC
  loss_BC, low_BC, high_BC = OBJECTIVES[objective](
    logp_BC, old_BC, adv_BC, seq_BC, *clip
  )
  correct_BC = CORRECTIONS[correction](gap_BC, seq_BC, *band)
  loss_BC = correct_BC * loss_BC
  kl_BC = jnp.zeros_like(logp_BC)
  if kl_coef:
    kl_BC = KLS[kl](logp_BC, inside(ref_BC))
    loss_BC += kl_coef * kl_BC
  if entropy_coef is not None:
    loss_BC -= entropy_coef * entropy_bonus(logp_BC, inside(entropy_BC))
  ratio_BC = jnp.exp(gap_BC)
  sums = {
    'entropy': entropy_BC,
    'kl_ref': kl_BC,
    'clip_low': low_BC,
    'clip_high': high_BC,
    'corrected_away': correct_BC == 0.0,
    'sampler_gap': jnp.abs(gap_BC),
    'sampler_kl': k3(roll_BC, fixed(old_BC)),  # KL(sampler || trainer)
    'sampler_ratio': ratio_BC,
    'sampler_ratio_squared': ratio_BC**2,
  }
  total = masked_sum(weight_BC * loss_BC, mask_BC)
  return total, {k: masked_sum(x, mask_BC) for k, x in sums.items()}
