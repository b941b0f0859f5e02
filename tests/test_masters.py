import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crjax import masters, model, optim

CFG = model.Config(V=64, L=2, D=32, F=48, N=4, K=2, H=8)


def places(a, b):
  """How many units in the last place two float32 arrays differ by."""
  bits = lambda x: np.asarray(x).view(np.int32).astype(np.int64)
  return np.abs(bits(a) - bits(b))


def weights(dtype=np.float32):
  """Of all sizes and signs, with every kind of low half."""
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 1 << 32, 1 << 16, np.uint32)
  bits[::4] &= 0xFFFF0000  # a bfloat16 already
  bits[1::4] = bits[1::4] & 0xFFFF0000 | 0x8000  # halfway
  x = bits.view(np.float32)
  return x[np.isfinite(x) & (np.abs(x) < 1e38)]


def test_the_halves_are_the_weight_to_one_place():
  w = weights()
  high, low = jax.jit(masters.halves)(w)
  assert (high.dtype, low.dtype) == (jnp.bfloat16, jnp.int16)
  np.testing.assert_array_equal(high, w.astype(jnp.bfloat16))
  back = jax.jit(masters.joined)(high, low)
  off = places(back, w)
  halfway = (w.view(np.uint32) & 0xFFFF) == 0x8000
  assert off[~halfway].max() == 0
  assert off.max() == 1


@pytest.fixture(scope='module')
def params():
  return jax.jit(model.init, static_argnums=0)(CFG, jax.random.key(0))


def test_the_high_half_is_the_weight_of_a_rollout(params):
  high, _ = masters.split(params)
  a = model.unstack(high, jnp.bfloat16)
  b = model.unstack(params, jnp.bfloat16)
  jax.tree.map(np.testing.assert_array_equal, a, b)
  assert high['final_norm']['scale'].dtype == jnp.float32


@pytest.mark.parametrize('rate', [1e-6, 1e-3])
def test_training_moves_them_as_it_moves_float32(params, rate):
  """From the same gradients; a bfloat16 master stands still at 1e-6."""
  optimizer = optim.make(
    'adamw',
    rate,
    betas=(0.9, 0.95),
    weight_decay=0.1,
    max_norm=1.0,
  )
  whole = optim.init_state(optimizer, params, 0)
  split = optim.init_state(optimizer, params, 0, split=True)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
  step = jax.jit(lambda state, grads: optim.apply(optimizer, state, grads)[0])
  naive = jax.jit(
    lambda half, old, new: optax.apply_updates(
      half, jax.tree.map(jnp.subtract, new, old)
    )
  )
  for i in range(20):
    grads = jax.jit(model.init, static_argnums=0)(CFG, jax.random.key(i))
    before = whole['params']
    whole, split = step(whole, grads), step(split, grads)
    half = naive(half, before, whole['params'])
  joined = masters.join(split['params'], split['low'])
  off = np.concatenate(
    [
      places(a, b).ravel()
      for a, b in zip(
        jax.tree.leaves(joined), jax.tree.leaves(whole['params']), strict=True
      )
    ]
  )
  assert off.max() <= 1
  assert (off == 0).mean() > 0.999
  moved = np.mean(
    np.asarray(half['lm_head_VD'])
    != np.asarray(params['lm_head_VD'].astype(jnp.bfloat16))
  )
  assert (moved < 0.2) == (rate == 1e-6)
