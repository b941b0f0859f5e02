import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crjax import losses, xent
from crjax.sharding import make_mesh

B, T, D, V = 8, 6, 16, 48
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, T, D)).astype(np.float32)
W = RNG.normal(size=(V, D)).astype(np.float32)
TARGETS = RNG.integers(0, V, (B, T)).astype(np.int32)
MASK = RNG.random((B, T)) < 0.4
WEIGHT = RNG.normal(size=(B, T)).astype(np.float32)
MESHES = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2), (1, 2, 4)]


def loss(logp, entropy, mask, weight):
  """Not linear in the log-probs, as a clipped ratio is not."""
  total = losses.masked_sum(weight * jnp.exp(0.1 * logp), mask)
  return total, {'entropy': losses.masked_sum(entropy, mask)}


def dense(x_BTD, w_VD, targets_BT, temperature):
  z_BTV = jnp.einsum('BTD,VD->BTV', x_BTD, w_VD) / temperature
  return losses.token_logp(z_BTV, targets_BT)


def by_rows(x, w, *, chunk, temperature):
  logp, entropy = xent.token_logp(
    x, w, TARGETS, temperature=temperature, chunk=chunk
  )
  return loss(logp, entropy, MASK, WEIGHT)


def fused(x, w, *, chunk, temperature, mask=MASK):
  return xent.fused_loss(
    loss, x, w, TARGETS, mask, (WEIGHT,), temperature=temperature, chunk=chunk
  )


WAYS = {'rows': by_rows, 'fused': fused}


def gradients(f):
  run = jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))
  return jax.device_get(run(X, W))


@functools.cache
def want(temperature=0.7):
  def f(x, w):
    return loss(*dense(x, w, TARGETS, temperature), MASK, WEIGHT)

  return gradients(f)


def close(got, expected, rtol=1e-5):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())


@pytest.mark.parametrize('mesh', MESHES, ids=str)
@pytest.mark.parametrize('way', WAYS)
def test_values_and_gradients_are_those_of_the_logits(way, mesh):
  devices = jax.devices()[: np.prod(mesh)]
  with jax.set_mesh(make_mesh(mesh, devices)):
    got = gradients(functools.partial(WAYS[way], chunk=8, temperature=0.7))
  close(got, want())


@pytest.mark.parametrize('chunk', [1, 5, 7, 16, 48, 1000])
@pytest.mark.parametrize('way', WAYS)
def test_no_chunk_size_changes_them(way, chunk):
  close(
    gradients(functools.partial(WAYS[way], chunk=chunk, temperature=0.7)),
    want(),
  )


@pytest.mark.parametrize('way', WAYS)
def test_an_odd_batch_and_an_odd_vocabulary_stay_whole(way):
  x, w = X[:3], W[:47]
  targets, mask, weight = TARGETS[:3] % 47, MASK[:3], WEIGHT[:3]

  def f(x, w):
    if way == 'fused':
      return xent.fused_loss(loss, x, w, targets, mask, (weight,), chunk=4)
    logp, entropy = xent.token_logp(x, w, targets, chunk=9)
    return loss(logp, entropy, mask, weight)

  def g(x, w):
    return loss(*dense(x, w, targets, 1.0), mask, weight)

  run = lambda f: jax.jit(jax.value_and_grad(f, (0, 1), has_aux=True))(x, w)
  expected = run(g)
  for mesh in ((1, 2, 4), (2, 2, 2)):
    with jax.set_mesh(make_mesh(mesh)):
      close(run(f), expected)


def test_without_a_gradient_the_fused_loss_is_the_same():
  run = jax.jit(functools.partial(fused, chunk=8, temperature=0.7))
  close(run(X, W), want()[0])


def test_what_the_mask_leaves_out_is_not_read():
  dirty = np.where(MASK[..., None], X, np.nan)
  run = jax.jit(jax.grad(lambda x: fused(x, W, chunk=8, temperature=0.7)[0]))
  dx = run(dirty)
  np.testing.assert_array_equal(dx, run(X))
  assert (dx[~MASK] == 0).all()


def test_an_empty_mask_gives_zero():
  none = np.zeros_like(MASK)
  (total, sums), grads = gradients(
    lambda x, w: fused(x, w, chunk=8, temperature=1.0, mask=none)
  )
  assert total == sums['entropy'] == 0
  assert all((g == 0).all() for g in grads)


def test_bf16_is_accumulated_in_float32():
  """Nearer to the float32 answer than bf16 logits could be."""
  x, w = jnp.bfloat16(X), jnp.bfloat16(W)
  exact = lambda x, w: dense(
    x.astype(jnp.float32), w.astype(jnp.float32), TARGETS, 1.0
  )
  logp, entropy = exact(x, w)
  for a, b in zip(
    xent.token_logp(x, w, TARGETS, chunk=7), (logp, entropy), strict=True
  ):
    assert a.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=1e-4)
  total = jax.grad(lambda w: exact(x, w)[0].sum())(w.astype(jnp.float32))
  dw = jax.grad(lambda w: xent.token_logp(x, w, TARGETS)[0].sum())(w)
  assert dw.dtype == jnp.bfloat16
  np.testing.assert_allclose(dw, total, atol=0.02 * np.abs(total).max())


def test_memory_is_at_most_half_of_the_logits():
  """Compiled, not run: the shape of a 7B model and 16,384 tokens."""
  shapes = [(1, 16384, 3584), (152064, 3584)]
  x, w = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
  tokens = jax.ShapeDtypeStruct((1, 16384), jnp.int32)
  logits = 16384 * 152064 * 4

  def rows(x, w, tokens):
    return xent.token_logp(x, w, tokens)[0].sum()

  def one(x, w, tokens):
    nll = lambda logp, entropy, mask: (-losses.masked_sum(logp, mask), {})
    return xent.fused_loss(nll, x, w, tokens, tokens > 0)[0]

  for f in (rows, one):
    step = jax.jit(jax.grad(f, argnums=(0, 1))).lower(x, w, tokens).compile()
    temporary = step.memory_analysis().temp_size_in_bytes
    print(f'{f.__name__}: {temporary / logits:.2f} of the float32 logits')
    assert temporary <= 0.5 * logits
