"""Batched sampling on the device: one prefill a question, then one loop.

Temperature, top-p and top-k are arguments of the compiled function, so that
changing them compiles nothing. The noise of a token is a function of (key,
question id, rollout id, position) only: what is sampled does not depend on the
order, the slot or the padding of a batch, nor on the number of devices.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from crjax import lora, model
from crjax.sharding import DECODE_WEIGHTS, shard, tree_shardings

SEGMENT = 256  # The cache starts this much longer than the prompt.


class Rollout(NamedTuple):
  """B = Q x R completions of T tokens; row q * R + r is rollout r of q."""

  tokens_BT: jax.Array  # int32, pad after the end token
  logp_BT: jax.Array  # float32, of the distribution that was sampled from
  mask_BT: jax.Array  # true up to and including the end token
  stopped_B: jax.Array  # true where an end token was sampled, else truncated


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


def make(cfg, *, rollouts: int, steps: int, stop_ids, pad_id: int):
  """A jitted sampler of up to `steps` tokens, `rollouts` a question.

  Call it with (decode_params, tokens_QP, mask_QP, ids_Q, key, temperature,
  top_p, top_k): left-padded prompts, ids that name the questions, a PRNG key,
  and three scalars; temperature 0 is greedy, top_p 1 and top_k 0 are off.
  """
  return jax.jit(
    functools.partial(
      sample,
      cfg,
      rollouts=rollouts,
      steps=steps,
      stop_ids=tuple(stop_ids),
      pad_id=pad_id,
    )
  )


def sample(
  cfg,
  params,
  tokens_QP,
  mask_QP,
  ids_Q,
  key,
  temperature=1.0,
  top_p=1.0,
  top_k=0,
  *,
  rollouts,
  steps,
  stop_ids,
  pad_id,
):
  """See `make`; `params` is the decode copy of `model.unstack`."""
  Q, P = tokens_QP.shape
  B = Q * rollouts
  length = lambda i: P + min(steps, i)
  x_QD, cache = prefill(cfg, params, tokens_QP, mask_QP, length(SEGMENT))
  repeat = lambda x: shard_rows(jnp.repeat(x, rollouts, axis=0))
  keys_B = row_keys(key, ids_Q, rollouts)
  valid_BS = repeat(
    jnp.pad(mask_QP, ((0, 0), (0, steps)), constant_values=True)
  )
  last_B = repeat(mask_QP.sum(1) - 1)

  def step(state, S):
    i = state['i']
    logits_BV = model.logits(params, state['x_BD'][:, None])[:, 0]
    noise_keys_B = jax.vmap(jax.random.fold_in, (0, None))(keys_B, i)
    token_B, logp_B = draw(logits_BV, noise_keys_B, temperature, top_p, top_k)
    live_B = ~state['stopped_B']
    token_B = jnp.where(live_B, token_B, pad_id)
    stop_B = jnp.isin(token_B, jnp.asarray(stop_ids, jnp.int32)) & live_B
    x_BTD, cache = model.decode(
      cfg,
      params,
      token_B[:, None],
      (last_B + 1 + i)[:, None],
      valid_BS[:, :S],
      state['cache'],
      P + i,
    )
    return {
      'i': i + 1,
      'x_BD': x_BTD[:, 0],
      'cache': cache,
      'tokens_BT': state['tokens_BT'].at[:, i].set(token_B),
      'logp_BT': state['logp_BT'].at[:, i].set(live_B * logp_B),
      'mask_BT': state['mask_BT'].at[:, i].set(live_B),
      'stopped_B': state['stopped_B'] | stop_B,
    }

  state = {
    'i': jnp.zeros((), jnp.int32),
    'x_BD': repeat(x_QD),
    'cache': jax.tree.map(repeat, cache),
    'tokens_BT': jnp.full((B, steps), pad_id, jnp.int32),
    'logp_BT': jnp.zeros((B, steps), jnp.float32),
    'mask_BT': jnp.zeros((B, steps), bool),
    'stopped_B': jnp.zeros((B,), bool),
  }
  for end in ends(steps):  # The cache doubles: no step reads all of its end.
    S = length(end)
    state['cache'] = jax.tree.map(lambda x: grow(x, S), state['cache'])
    going = lambda s, end=end: (s['i'] < end) & ~s['stopped_B'].all()
    state = jax.lax.while_loop(going, functools.partial(step, S=S), state)
  # Whole on every device: the host reads a wave without waiting for the next.
  whole = lambda x: shard(x, '-' * x.ndim)
  return Rollout(*(whole(state[name]) for name in Rollout._fields))


def prefill(cfg, params, tokens_QP, mask_QP, S: int):
  """(hidden_QD of the last prompt token, cache of length S)."""
  Q, P = tokens_QP.shape
  valid_QS = jnp.pad(mask_QP, ((0, 0), (0, S - P)))
  cache = model.new_cache(cfg, Q, S, params['embed_VD'].dtype)
  x_QPD, cache = model.decode(
    cfg, params, tokens_QP, model.positions(mask_QP), valid_QS, cache, 0
  )
  return x_QPD[:, -1], cache


def draw(logits_BV, keys_B, temperature, top_p, top_k):
  """(token_B, logp_B) from softmax(logits / temperature) cut to top-k, top-p.

  Gumbel-max: the token does not depend on how the batch was laid out. The
  log-prob is that of the cut, renormalised distribution.
  """
  greedy = temperature == 0
  z_BV = logits_BV / jnp.where(greedy, 1.0, temperature)
  cut = (top_p < 1) | ((top_k > 0) & (top_k < z_BV.shape[-1]))
  z_BV = jax.lax.cond(
    cut & ~greedy, lambda z: truncate(z, top_p, top_k), lambda z: z, z_BV
  )
  V = z_BV.shape[-1]
  noise_BV = jax.vmap(lambda k: jax.random.gumbel(k, (V,), jnp.float32))(keys_B)
  token_B = jnp.argmax(jnp.where(greedy, z_BV, z_BV + noise_BV), axis=-1)
  logp_BV = jax.nn.log_softmax(z_BV)
  logp_B = jnp.take_along_axis(logp_BV, token_B[:, None], axis=1)[:, 0]
  return token_B.astype(jnp.int32), logp_B


def truncate(z_BV, top_p, top_k):
  """-inf outside the top_k largest and outside the top_p nucleus.

  The nucleus is the smallest set of most likely tokens whose mass reaches
  top_p, taken after top-k, as in Transformers and vLLM. Ties at the edge of
  either set are kept.
  """
  V = z_BV.shape[-1]
  sorted_BV = -jnp.sort(-z_BV, axis=-1)
  k = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)
  in_k_BV = jnp.arange(V) < k
  p_BV = jax.nn.softmax(jnp.where(in_k_BV, sorted_BV, -jnp.inf), axis=-1)
  before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
  # top_p 1 keeps all: rounding can lift the mass before the last above 1.
  in_p_BV = (before_BV < top_p) | (top_p >= 1)
  kept_BV = in_k_BV & in_p_BV.at[:, 0].set(True)
  floor_B1 = jnp.where(kept_BV, sorted_BV, jnp.inf).min(-1, keepdims=True)
  return jnp.where(z_BV >= floor_B1, z_BV, -jnp.inf)


def row_keys(key, ids_Q, rollouts: int):
  """A key for each of B rows, from its question id and rollout id alone."""
  fold = jax.vmap(jax.random.fold_in, (None, 0))
  keys_Q = fold(key, ids_Q)
  keys_QR = jax.vmap(fold, (0, None))(keys_Q, jnp.arange(rollouts))
  return keys_QR.reshape(-1)


def ends(steps: int):
  """Segment, twice that, ... steps: where the cache grows."""
  end = SEGMENT
  while end < steps:
    yield end
    end *= 2
  yield steps


def grow(x_BKSH, S: int):
  more = S - x_BKSH.shape[2]
  return jnp.pad(x_BKSH, ((0, 0), (0, 0), (0, more), (0, 0)))


def shard_rows(x):
  """Splits rows over the data axes; the heads of a cache over `tensor`."""
  return shard(x, 'BKSH' if x.ndim == 4 else 'B' + '-' * (x.ndim - 1))
