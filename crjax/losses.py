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
