"""Grouped-query attention over slots, and rotary positions.

A *slot* is an index into the key axis S; queries sit at slots too. A query may
see every key of its segment whose slot is not after its own, which covers
packed and right-padded training rows, left-padded prompts and a cache being
filled, with one mask.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

MASKED = -1e30  # Finite: a row with no visible key stays free of NaN.


@dataclasses.dataclass(frozen=True)
class Yarn:
  """YaRN (Peng 2023): positions up to `factor` x `original`, as Qwen does it.

  Frequencies that turn at least `beta_fast` times within `original` positions
  stay as they are, those that turn at most `beta_slow` times are divided by
  `factor`, those between are blended.
  """

  factor: float
  original: int  # positions that the model was trained on
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None  # None: 0.1 ln(factor) + 1
  truncate: bool = True  # whole dimensions bound the blend

  @property
  def magnitude(self) -> float:
    """What sine and cosine are multiplied by."""
    if self.attention_factor is not None:
      return self.attention_factor
    return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


def frequencies(H: int, theta: float, yarn: Yarn | None = None):
  """freq_h: radians a position turns each of the H/2 pairs; float32.

  Computed on the host, rounded where Transformers rounds: at position 40,000
  one ulp of a frequency moves an angle by more than 1e-3.
  """
  exponent_h = np.arange(0, H, 2, dtype=np.float32) / np.float32(H)
  period_h = np.power(np.float64(theta), exponent_h).astype(np.float32)
  if yarn is None:
    return 1 / period_h
  turns = lambda n: (
    H * math.log(yarn.original / (n * 2 * math.pi)) / (2 * math.log(theta))
  )
  low, high = turns(yarn.beta_fast), turns(yarn.beta_slow)
  if yarn.truncate:
    low, high = math.floor(low), math.ceil(high)
  low, high = max(low, 0), min(high, H - 1)
  high += 0.001 * (low == high)  # A step, not a division by zero.
  ramp_h = (np.arange(H // 2, dtype=np.float32) - low) / (high - low)
  kept_h = 1 - np.clip(ramp_h, 0, 1).astype(np.float32)
  slow_h = 1 / (np.float32(yarn.factor) * period_h)
  return slow_h * (1 - kept_h) + 1 / period_h * kept_h


def rope(x_BTNH, pos_BT, theta: float, yarn: Yarn | None = None):
  """Rotates pairs (i, i + H/2) by pos * theta^(-2i/H), in float32 (Su 2021)."""
  freq_h = frequencies(x_BTNH.shape[-1], theta, yarn)
  angle_BTNh = pos_BT[..., None, None].astype(jnp.float32) * freq_h
  sin, cos = jnp.sin(angle_BTNh), jnp.cos(angle_BTNh)
  if yarn is not None:
    sin, cos = sin * yarn.magnitude, cos * yarn.magnitude
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  y_BTNH = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return y_BTNH.astype(x_BTNH.dtype)


def visible(slot_T, segment_BS, segment_BT=None, branch_BT=None):
  """mask_BTS: key s is in the query's segment and not after its slot.

  Args:
    slot_T: the slots of the queries.
    segment_BS: segment of each key, 0 for padding; a bool mask is one segment.
    segment_BT: segment of each query; None where all keys are of one segment.
    branch_BT: where queries are the keys and a segment is a tree, the branch of
      each: its tokens see their own branch and branch 0, the trunk.
  """
  causal_TS = jnp.arange(segment_BS.shape[1]) <= slot_T[:, None]
  mask_BTS = causal_TS & (segment_BS > 0)[:, None, :]
  if segment_BT is not None:
    mask_BTS &= segment_BT[:, :, None] == segment_BS[:, None, :]
  if branch_BT is not None:
    same_BTS = branch_BT[:, :, None] == branch_BT[:, None, :]
    mask_BTS &= same_BTS | (branch_BT == 0)[:, None, :]
  return mask_BTS


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


def attend_parts(q_BTNH, parts, mask_BTS):
  """`attend` of one token a row, T = 1, to keys that lie in several arrays.

  `parts` are pairs (k_BKSH, v_BKSH); the mask covers them all, in their order.
  There is one softmax, so that no sums have to be merged. Without an axis T in
  the products, XLA:CPU copies no keys.
  """
  B, _, N, H = q_BTNH.shape
  K = parts[0][0].shape[1]
  q_BKGH = q_BTNH.reshape(B, K, N // K, H)
  scores = []
  for k_BKSH, _ in parts:
    scores.append(
      jnp.einsum(
        'BKGH,BKSH->BKGS', q_BKGH, k_BKSH, preferred_element_type=jnp.float32
      )
    )
    # XLA:GPU merges products that share an operand, and would copy all keys
    # next to each other for it, at every step. It does not see that these do.
    q_BKGH = jax.lax.optimization_barrier(q_BKGH)
  a_BKGS = jnp.concatenate(scores, axis=-1) * H**-0.5
  p_BKGS = jax.nn.softmax(jnp.where(mask_BTS[:, None], a_BKGS, MASKED), axis=-1)
  y_BKGH, start = 0, 0
  for k_BKSH, v_BKSH in parts:
    end = start + k_BKSH.shape[2]
    some_BKGS = p_BKGS[..., start:end].astype(v_BKSH.dtype)
    y_BKGH += jnp.einsum('BKGS,BKSH->BKGH', some_BKGS, v_BKSH)
    start = end
  return y_BKGH.reshape(B, 1, N, H)


def attend_blocks(q_BTNH, k_BKSH, v_BKSH, mask_BTS, block: int = 512):
  """`attend` where no query sees a later key, a block of queries at a time.

  The scores of long rows exist for one block; what comes after a block is not
  read, which is half of it. The gradient computes the scores again.
  """
  T = q_BTNH.shape[1]
  if T <= block:
    return attend(q_BTNH, k_BKSH, v_BKSH, mask_BTS)

  def one(start, end):
    q, mask = q_BTNH[:, start:end], mask_BTS[:, start:end, :end]
    k, v = k_BKSH[:, :, :end], v_BKSH[:, :, :end]
    return jax.checkpoint(attend)(q, k, v, mask)

  parts = [one(i, min(i + block, T)) for i in range(0, T, block)]
  return jnp.concatenate(parts, axis=1)
