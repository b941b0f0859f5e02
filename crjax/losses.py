"""Pure losses over per-token log-probabilities. No model, no mesh, no config.

Every loss returns sums over its tokens, never means: the caller divides by the
token count of the *whole* optimizer step, so the result does not depend on
micro-batches, padding or the number of devices (verl #5625, TRL
`num_items_in_batch`).
"""

import jax
import jax.numpy as jnp


def token_logp(logits_BTV, targets_BT):
  """(logp_BT of the targets, entropy_BT in nats), both float32."""
  logits_BTV = logits_BTV.astype(jnp.float32)
  logz_BT = jax.nn.logsumexp(logits_BTV, axis=-1)
  target_BT1 = jnp.take_along_axis(logits_BTV, targets_BT[..., None], axis=-1)
  p_BTV = jnp.exp(logits_BTV - logz_BT[..., None])
  entropy_BT = logz_BT - (p_BTV * logits_BTV).sum(-1)
  return target_BT1[..., 0] - logz_BT, entropy_BT


def masked_sum(x_BT, mask_BT):
  """Sum where the mask holds; a NaN or inf behind the mask cannot leak in."""
  return jnp.where(mask_BT, x_BT, 0.0).sum()


def cross_entropy(logp_BT, mask_BT):
  """Negative log-likelihood in nats, summed over the masked tokens."""
  return -masked_sum(logp_BT, mask_BT)


def k3(logp_BT, ref_logp_BT):
  """Unbiased, never negative estimate of KL(policy || ref) (Schulman 2020)."""
  d_BT = jnp.clip(ref_logp_BT - logp_BT, -20.0, 20.0)
  return jnp.exp(d_BT) - d_BT - 1.0


def icepop(old_logp_BT, roll_logp_BT, low: float, high: float):
  """Trainer-over-sampler weight, 0 outside [low, high] (IcePop); no gradient.

  Corrects for the numerics in which the rollout was sampled.
  """
  w_BT = jnp.exp(jax.lax.stop_gradient(old_logp_BT) - roll_logp_BT)
  return jnp.where((w_BT >= low) & (w_BT <= high), w_BT, 0.0)


def policy_gradient(
  logp_BT,
  old_logp_BT,
  roll_logp_BT,
  ref_logp_BT,
  adv_B,
  mask_BT,
  *,
  clip: tuple[float, float],
  band: tuple[float, float],
  kl_coef: float,
):
  """Clipped GRPO objective (PPO-clip, clip-higher of DAPO), summed over tokens.

  Args:
    logp_BT: log-probs under the parameters being differentiated.
    old_logp_BT: the same at the start of the step, in the trainer's numerics.
    roll_logp_BT: the sampler's own log-probs of its tokens.
    ref_logp_BT: log-probs under the frozen reference; read if kl_coef > 0.
    adv_B: one advantage per rollout; 0 leaves a rollout without gradient.
    mask_BT: tokens of the completion, the end token included.
    clip: (low, high): the ratio is clipped to [1 - low, 1 + high].
    band: IcePop bounds on exp(old - roll).
    kl_coef: weight of the k3 estimate.

  Returns:
    (loss sum, dict of sums to be divided by the step's token count).
  """
  ratio_BT = jnp.exp(jnp.where(mask_BT, logp_BT - old_logp_BT, 0.0))
  adv_BT = adv_B[:, None]
  clipped_BT = jnp.clip(ratio_BT, 1.0 - clip[0], 1.0 + clip[1])
  surrogate_BT = jnp.minimum(ratio_BT * adv_BT, clipped_BT * adv_BT)
  weight_BT = icepop(old_logp_BT, roll_logp_BT, *band)
  loss = -masked_sum(weight_BT * surrogate_BT, mask_BT)
  kl = jnp.zeros(())
  if kl_coef:
    kl = masked_sum(k3(logp_BT, ref_logp_BT), mask_BT)
    loss += kl_coef * kl
  drift_BT = old_logp_BT - roll_logp_BT
  return loss, {
    'kl_ref': kl,
    'clip_low': masked_sum((ratio_BT < 1.0 - clip[0]) & (adv_BT < 0), mask_BT),
    'clip_high': masked_sum((ratio_BT > 1.0 + clip[1]) & (adv_BT > 0), mask_BT),
    'icepop_dropped': masked_sum(weight_BT == 0.0, mask_BT),
    'sampler_gap': masked_sum(jnp.abs(drift_BT), mask_BT),
  }
