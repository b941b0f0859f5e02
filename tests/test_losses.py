import jax
import jax.numpy as jnp
import numpy as np

from crjax import losses

RNG = np.random.default_rng(0)
B, T = 4, 6


def logps(*shape):
  return jnp.asarray(-RNG.exponential(size=shape or (B, T)), jnp.float32)


def mask():
  return jnp.asarray(np.arange(T) < RNG.integers(2, T + 1, (B, 1)))


def test_token_logp_is_log_softmax_and_entropy_is_its_own():
  z_BTV = jnp.asarray(RNG.normal(size=(B, T, 11)) * 5, jnp.float32)
  targets_BT = jnp.asarray(RNG.integers(0, 11, (B, T)))
  logp_BT, entropy_BT = losses.token_logp(z_BTV, targets_BT)
  all_BTV = jax.nn.log_softmax(z_BTV)
  want_BT = np.take_along_axis(all_BTV, targets_BT[..., None], -1)[..., 0]
  np.testing.assert_allclose(logp_BT, want_BT, atol=1e-5)
  want_BT = -(jnp.exp(all_BTV) * all_BTV).sum(-1)
  np.testing.assert_allclose(entropy_BT, want_BT, atol=1e-5)


def test_what_is_behind_the_mask_cannot_leak():
  mask_BT = mask()
  clean_BT = jnp.where(mask_BT, logps(), 0.0)
  dirty_BT = jnp.where(mask_BT, clean_BT, jnp.nan)
  assert losses.cross_entropy(dirty_BT, mask_BT) == losses.cross_entropy(
    clean_BT, mask_BT
  )
  grad = jax.grad(lambda x: losses.cross_entropy(x, mask_BT))(dirty_BT)
  np.testing.assert_array_equal(grad, -mask_BT.astype(jnp.float32))
