"""From logits to tokens: what is drawn, with which log-prob.

The noise of a token is a function of (key, question, rollout, position) only:
what is sampled does not depend on the order, the slot or the padding of a
batch, nor on the number of devices. engine.py decides what is computed when.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from crjax import lora, model
from crjax.sharding import DECODE_WEIGHTS, tree_shardings


class Rollout(NamedTuple):
  """B = Q x R completions of T tokens; row q * R + r is rollout r of q.

  On the host: tokens are handed out as they are sampled, see engine.py.
  """

  tokens_BT: np.ndarray  # int32, pad after the end token
  logp_BT: np.ndarray  # float32, of the distribution that was sampled from
  mask_BT: np.ndarray  # true up to and including the end token
  stopped_B: np.ndarray  # true where an end token was sampled, else truncated


def make_decode_copy(cfg, mesh, dtype):
  """A jitted (params, frozen=None) -> `model.unstack` of both together.

  D is gathered once, not at every token. Where a mesh has more ways than heads
  the weights of attention are whole on every device.
  """
  unstack = lambda params, frozen=None: model.unstack(
    lora.join(frozen, params), dtype, cfg.lora
  )
  init = lambda key: unstack(model.init(cfg, key))
  shapes = jax.eval_shape(init, jax.random.key(0))
  shardings = tree_shardings(shapes, mesh, DECODE_WEIGHTS, strict=False)
  return jax.jit(unstack, out_shardings=shardings)


def greedy(cfg, params, tokens_BP, steps: int):
  """tokens_BT, `steps` most likely ones behind prompts of one length.

  Decoding at its plainest, for what checks a model: no end, no queue. `params`
  is the decode copy.
  """
  B, P = tokens_BP.shape
  x_BPD, cache = model.prefill(cfg, params, tokens_BP)
  best = lambda x_BD: jnp.argmax(model.logits(params, x_BD[:, None])[:, 0], -1)
  seen_BS = jnp.ones((B, P), bool)

  def step(state, i):
    token_B, side = state
    pos_B = jnp.full(B, P + i)
    x_BD, side = model.step(
      cfg, params, token_B, pos_B, cache, seen_BS, side, i
    )
    return (best(x_BD), side), token_B

  side = model.new_cache(cfg, B, steps, cache[0][0].dtype)
  start = best(x_BPD[:, -1]), side
  return jax.lax.scan(step, start, jnp.arange(steps))[1].swapaxes(0, 1)


def draw(logits_BV, keys_B, temperature, top_p=1.0, top_k=0, min_p=0.0):
  """(token_B, logp_B) from softmax(logits / temperature), cut by three knobs.

  The knobs are scalars or have a value a row; temperature 0 is greedy. The
  log-prob is that of the cut, renormalised distribution.

  Gumbel-max in two stages, over the columns of the vocabulary laid out as a
  table, then over the rows of the column that was drawn: exact, for R + C
  random numbers instead of R x C (2,438 of 151,936).
  """
  B, V = logits_BV.shape
  temperature, top_p, top_k, min_p = (
    jnp.broadcast_to(x, (B,))[:, None]
    for x in (temperature, top_p, top_k, min_p)
  )
  greedy = temperature == 0
  z_BV = logits_BV / jnp.where(greedy, 1.0, temperature)
  cut = (top_p < 1) | (min_p > 0) | ((top_k > 0) & (top_k < V))
  z_BV = jax.lax.cond(
    (cut & ~greedy).any(),
    lambda z: jnp.where(greedy, z, truncate(z, top_p, top_k, min_p)),
    lambda z: z,
    z_BV,
  )
  z_BRC = table(z_BV)
  _, R, C = z_BRC.shape
  top_B1 = largest(z_BV)
  mass_BC = jnp.exp(z_BRC - top_B1[..., None]).sum(1)
  noise = jax.vmap(lambda key: jax.random.gumbel(key, (R + C,), jnp.float32))
  noise_BC, noise_BR = jnp.split(noise(keys_B), [C], axis=1)
  best_B1 = jax.lax.cond(
    greedy.any(), first, lambda *_: jnp.zeros((B, 1), jnp.int32), z_BV, top_B1
  )
  pick = lambda x: jnp.argmax(x, axis=-1, keepdims=True).astype(jnp.int32)
  column_B1 = pick(jnp.log(mass_BC) + noise_BC)
  column_B1 = jnp.where(greedy, best_B1 % C, column_B1)
  z_BR = jnp.take_along_axis(z_BRC, column_B1[..., None], axis=2)[..., 0]
  row_B1 = jnp.where(greedy, best_B1 // C, pick(z_BR + noise_BR))
  z_B1 = jnp.take_along_axis(z_BR, row_B1, axis=1)
  logp_B1 = z_B1 - top_B1 - jnp.log(mass_BC.sum(1, keepdims=True))
  return (row_B1 * C + column_B1)[:, 0], logp_B1[:, 0]


def table(x_BV):
  """x_BRC with V = R x C: a sum over R runs along C, as vector units like it.

  R is a power of two, and depends on V alone: no mesh changes what is drawn.
  """
  B, V = x_BV.shape
  R = math.gcd(V, 1 << min((V.bit_length() - 1) // 2, 6))
  return x_BV.reshape(B, R, V // R)


def total(x_BV):
  return table(x_BV).sum(1).sum(1, keepdims=True)


def largest(x_BV):
  return table(x_BV).max(1).max(1, keepdims=True)


def first(z_BV, top_B1):
  """The smallest token whose logit is the largest, [B, 1]."""
  V = z_BV.shape[1]
  id_BV = jnp.where(z_BV == top_B1, jnp.arange(V, dtype=jnp.int32), V)
  return table(id_BV).min(1).min(1, keepdims=True)


def truncate(z_BV, top_p, top_k, min_p=0.0):
  """-inf outside the top_k largest, the top_p nucleus, and under min_p.

  The nucleus is the smallest set of most likely tokens whose mass reaches
  top_p, taken after top-k, as in Transformers and vLLM; min_p is a share of the
  largest probability. Ties at the edge of a set are kept. A knob is one number
  or [B, 1]. Nothing is sorted: the floor of a set is found bit by bit.
  """
  V = z_BV.shape[1]
  key_BV = ordered(z_BV)
  k = jnp.where((top_k > 0) & (top_k < V), top_k, V)
  above = lambda x_BV, key_B1: total(jnp.where(key_BV > key_B1, x_BV, 0))
  one_BV = jnp.ones_like(key_BV)
  kept_BV = key_BV >= lowest(lambda key_B1: above(one_BV, key_B1) < k, z_BV)
  p_BV = jnp.exp(z_BV - largest(z_BV))
  mass_BV = jnp.where(kept_BV, p_BV, 0)
  # At least the most likely token; and 1 keeps all, whatever rounding says.
  p_B1 = jnp.where(top_p < 1, jnp.maximum(top_p, 1e-30), 2) * total(mass_BV)
  floor_B1 = lowest(lambda key_B1: above(mass_BV, key_B1) < p_B1, z_BV)
  kept_BV &= key_BV >= floor_B1
  return jnp.where(kept_BV & (p_BV >= min_p), z_BV, -jnp.inf)


def ordered(x):
  """int32 that compare as the float32 numbers do."""
  bits = jax.lax.bitcast_convert_type(x + 0.0, jnp.int32)  # -0 is 0.
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def lowest(holds, z_BV):
  """The smallest int32, [B, 1], for which `holds`; larger ones all do."""
  low_B1 = jnp.full((z_BV.shape[0], 1), -(2**31), jnp.int32)

  def halve(_, ends):
    low_B1, high_B1 = ends
    middle_B1 = (low_B1 & high_B1) + ((low_B1 ^ high_B1) >> 1)
    true = holds(middle_B1)
    return jnp.where(true, low_B1, middle_B1 + 1), jnp.where(
      true, middle_B1, high_B1
    )

  return jax.lax.fori_loop(0, 32, halve, (low_B1, ~low_B1))[0]


def row_key(key, question, rollout):
  """The key of a completion; that of its token i is `fold_in(row_key, i)`."""
  return jax.random.fold_in(jax.random.fold_in(key, question), rollout)
