"""The device half of engine.py: rows in slots, and the loop that moves them.

`rows` are what is known of each slot, a dict of arrays [B]; a cache is a list
of (k_BKSH, v_BKSH), one a layer, in which a row has its tokens from column 0
on. All functions are pure; the caller jits and donates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from crjax import model, sampling
from crjax.sharding import shard

INTEGERS = (
  'token',  # read next
  'slot',  # where: its position
  'least',
  'most',
  'top_k',
  'question',
  'rollout',
  'live',
)
REALS = ('temperature', 'top_p', 'min_p')


class Chunk(NamedTuple):
  """What C steps of B slots gave."""

  tokens_BC: jax.Array
  logp_BC: jax.Array
  count_B: jax.Array  # tokens of this chunk
  live_B: jax.Array  # false where the row has ended
  stopped_B: jax.Array  # by an end token
  steps: jax.Array  # that were run


def fresh(cfg, stops: int, B: int, S: int, dtype):
  """(caches, rows) of B slots and S columns, all free."""
  rows = {name: jnp.zeros(B, jnp.int32) for name in INTEGERS[:-3]}
  rows |= {name: jnp.zeros(B, jnp.float32) for name in REALS}
  keys_B = jax.vmap(jax.random.key)(jnp.zeros(B, jnp.uint32))
  rows |= {
    'live': jnp.zeros(B, bool),
    'count': jnp.zeros(B, jnp.int32),
    'key': jax.random.key_data(keys_B),
    'stop_BE': jnp.full((B, stops), -1, jnp.int32),
  }
  return model.new_cache(cfg, B, S, dtype), whole(rows)


def insert(cache, prefix, source_I, slot_I):
  """Copies rows `source_I` of the prompts' caches to `slot_I` of the rows'.

  A slot that does not exist is left out.
  """

  def one(old_BKSH, new_IKPH):
    P = min(new_IKPH.shape[2], old_BKSH.shape[2])
    new_IKPH = new_IKPH[source_I, :, :P]
    out_BKSH = old_BKSH.at[slot_I, :, :P].set(new_IKPH, mode='drop')
    return shard(out_BKSH, 'BKSH')

  return jax.tree.map(one, cache, prefix)


def enroll(rows, whole_FB, real_FB, stop_BE, key):
  """Rows with the new ones in place, where their field 'live' is set."""
  new = dict(zip(INTEGERS, whole_FB, strict=True))
  new |= dict(zip(REALS, real_FB, strict=True))
  row_key = jax.vmap(sampling.row_key, (None, 0, 0))
  keys_B = row_key(key, new.pop('question'), new.pop('rollout'))
  new['key'] = jax.random.key_data(keys_B)
  new['count'] = jnp.zeros_like(new['slot'])
  new['stop_BE'] = stop_BE
  taken_B = new['live'] == 1
  new['live'] = taken_B

  def one(new, old):
    mask = taken_B.reshape(-1, *[1] * (old.ndim - 1))
    return jnp.where(mask, new, old)

  return whole(jax.tree.map(one, new, rows))


def fit_layer(kv, take_B, S: int):
  """Rows `take_B` of a layer's cache, cut or padded to S columns."""

  def one(x_BKSH):
    n = min(S, x_BKSH.shape[2])
    x_BKSH = x_BKSH[jnp.maximum(take_B, 0), :, :n]
    pad = ((0, 0), (0, 0), (0, S - n), (0, 0))
    return shard(jnp.pad(x_BKSH, pad), 'BKSH')

  return jax.tree.map(one, kv)


def fit_rows(rows, take_B):
  rows = jax.tree.map(lambda x: x[jnp.maximum(take_B, 0)], rows)
  return whole(rows | {'live': rows['live'] & (take_B >= 0)})


def advance(cfg, chunk: int, params, cache, rows, keep_B):
  """Up to `chunk` steps: (caches, rows, Chunk); ends when no row is alive.

  Rows outside `keep_B` end at once.
  """
  B, first_B, slot_B = len(keep_B), rows['count'], rows['slot']
  seen_BS = jnp.arange(cache[0][0].shape[2]) < slot_B[:, None]

  def one(state):
    i, rows = state['i'], state['rows']
    x_BD, side = model.step(
      cfg, params, rows['token'], slot_B + i, cache, seen_BS, state['side'], i
    )
    token_B, logp_B = draw(params, x_BD, rows)
    return {
      'i': i + 1,
      'side': side,
      'rows': move(rows, token_B),
      'tokens_BC': state['tokens_BC'].at[:, i].set(token_B),
      'logp_BC': state['logp_BC'].at[:, i].set(logp_B),
    }

  state = {
    'i': jnp.zeros((), jnp.int32),
    'side': model.new_cache(cfg, B, chunk, cache[0][0].dtype),
    'rows': rows
    | {'live': rows['live'] & keep_B, 'stopped': jnp.zeros(B, bool)},
    'tokens_BC': jnp.zeros((B, chunk), jnp.int32),
    'logp_BC': jnp.zeros((B, chunk), jnp.float32),
  }
  going = lambda s: (s['i'] < chunk) & s['rows']['live'].any()
  state = jax.lax.while_loop(going, one, state)
  cache = model.settle(cache, state['side'], slot_B)
  rows = state['rows']
  out = Chunk(
    state['tokens_BC'],
    state['logp_BC'],
    rows['count'] - first_B,
    rows['live'],
    rows.pop('stopped'),
    state['i'],
  )
  return cache, whole(rows), whole(out)


def move(rows, token_B):
  """The rows after each of those alive got its token."""
  live_B, n_B = rows['live'], rows['live'].astype(jnp.int32)
  stop_B = (token_B[:, None] == rows['stop_BE']).any(1)
  return rows | {
    'token': jnp.where(live_B, token_B, rows['token']),
    'slot': rows['slot'] + n_B,
    'count': rows['count'] + n_B,
    'live': live_B & ~stop_B & (rows['count'] + 1 < rows['most']),
    'stopped': jnp.where(live_B, stop_B, rows['stopped']),
  }


def draw(params, x_BD, rows):
  """(token_B, logp_B); no end token before `least` are there."""
  logits_BV = model.logits(params, x_BD[:, None])[:, 0]
  early_B = rows['count'] < rows['least']
  stop_BE, B = rows['stop_BE'], x_BD.shape[0]
  forbid = lambda z_BV: z_BV.at[
    jnp.arange(B)[:, None],
    jnp.where(early_B[:, None] & (stop_BE >= 0), stop_BE, z_BV.shape[1]),
  ].set(-jnp.inf, mode='drop')
  logits_BV = jax.lax.cond(early_B.any(), forbid, lambda z: z, logits_BV)
  keys_B = jax.vmap(jax.random.fold_in)(
    jax.random.wrap_key_data(rows['key']), rows['count']
  )
  return sampling.draw(
    logits_BV,
    keys_B,
    *(rows[name] for name in ('temperature', 'top_p', 'top_k', 'min_p')),
  )


def whole(tree):
  """On every device: hosts read it alike, without waiting for each other."""
  return jax.tree.map(lambda x: shard(x, '-' * x.ndim), tree)
