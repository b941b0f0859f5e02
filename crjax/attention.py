"""Grouped-query attention over slots, and rotary positions.

A *slot* is an index into the key axis S; queries sit at slots too. A query may
see every valid key whose slot is not after its own, which covers right-padded
training rows, left-padded prompts and a cache being filled, with one mask.
"""

import jax
import jax.numpy as jnp

MASKED = -1e30  # Finite: a row with no visible key stays free of NaN.


def rope(x_BTNH, pos_BT, theta: float):
  """Rotates pairs (i, i + H/2) by pos * theta^(-2i/H), in float32 (Su 2021)."""
  H = x_BTNH.shape[-1]
  freq_h = theta ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
  angle_BTNh = pos_BT[..., None, None].astype(jnp.float32) * freq_h
  sin, cos = jnp.sin(angle_BTNh), jnp.cos(angle_BTNh)
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  y_BTNH = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return y_BTNH.astype(x_BTNH.dtype)


def visible(slot_T, valid_BS):
  """mask_BTS: key s is valid and not after the query's slot."""
  causal_TS = jnp.arange(valid_BS.shape[1]) <= slot_T[:, None]
  return causal_TS & valid_BS[:, None, :]


def attend(q_BTNH, k_BKSH, v_BKSH, mask_BTS):
  """Scaled dot-product attention, softmax in float32; returns y_BTNH.

  Query head n reads key-value head n // G, as in every Qwen checkpoint.
  """
  B, T, N, H = q_BTNH.shape
  K = k_BKSH.shape[1]
  q_BTKGH = q_BTNH.reshape(B, T, K, N // K, H)
  a_BKGTS = jnp.einsum(
    'BTKGH,BKSH->BKGTS', q_BTKGH, k_BKSH, preferred_element_type=jnp.float32
  )
  a_BKGTS = jnp.where(mask_BTS[:, None, None], a_BKGTS * H**-0.5, MASKED)
  p_BKGTS = jax.nn.softmax(a_BKGTS, axis=-1).astype(v_BKSH.dtype)
  y_BTKGH = jnp.einsum('BKGTS,BKSH->BTKGH', p_BKGTS, v_BKSH)
  return y_BTKGH.reshape(B, T, N, H)
