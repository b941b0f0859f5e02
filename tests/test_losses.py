import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crjax import losses

RNG = np.random.default_rng(0)
B, T = 4, 6
KNOBS = {'clip': (0.2, 0.28), 'band': (0.5, 5.0), 'kl_coef': 0.0}


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


def test_k3_is_never_negative_and_zero_at_equality():
  logp_BT, ref_BT = logps(), logps()
  assert (losses.k3(logp_BT, ref_BT) >= 0).all()
  assert (losses.k3(logp_BT, logp_BT) == 0).all()


def test_k3_is_unbiased():
  p = jax.nn.softmax(jnp.asarray(RNG.normal(size=50)))
  q = jax.nn.softmax(jnp.asarray(RNG.normal(size=50)))
  kl = (p * (jnp.log(p) - jnp.log(q))).sum()
  estimate = (p * losses.k3(jnp.log(p), jnp.log(q))).sum()
  np.testing.assert_allclose(estimate, kl, rtol=1e-4)


def test_at_ratio_one_the_gradient_is_reinforce():
  logp_BT, mask_BT = logps(), mask()
  adv_B = jnp.asarray([1.0, -2.0, 0.5, 0.0])
  fixed = jax.lax.stop_gradient(logp_BT)
  grad = jax.grad(
    lambda x: losses.policy_gradient(
      x, fixed, fixed, fixed, adv_B, mask_BT, **KNOBS
    )[0]
  )(logp_BT)
  np.testing.assert_allclose(grad, -adv_B[:, None] * mask_BT, atol=1e-6)
  assert (grad[3] == 0).all()  # A zero advantage has no gradient at all.


@pytest.mark.parametrize(
  ('log_ratio', 'adv', 'flows'),
  [
    (0.5, 1.0, False),  # Already raised beyond 1.28: no further.
    (0.5, -1.0, True),
    (-0.5, -1.0, False),  # Already lowered beyond 0.8: no further.
    (-0.5, 1.0, True),
    (0.22, 1.0, True),  # Between 1.2 and 1.28: clip-higher lets it pass.
  ],
)
def test_clipping_stops_the_gradient_on_one_side_only(log_ratio, adv, flows):
  old = jnp.full((1, 1), -1.0)
  on = jnp.ones((1, 1), bool)
  grad, sums = jax.grad(
    lambda x: losses.policy_gradient(
      x, old, old, old, jnp.asarray([adv]), on, **KNOBS
    ),
    has_aux=True,
  )(old + log_ratio)
  assert (grad[0, 0] != 0) == flows
  assert sums['clip_low'] + sums['clip_high'] == (not flows)


def test_icepop_drops_tokens_and_keeps_the_rest_weighted():
  roll = jnp.asarray([[-1.0, -1.0, -1.0]])
  old = roll + jnp.log(jnp.asarray([[0.4, 2.0, 6.0]]))
  weight = losses.icepop(old, roll, 0.5, 5.0)
  np.testing.assert_allclose(weight, [[0.0, 2.0, 0.0]], rtol=1e-6)
  grad = jax.grad(lambda x: losses.icepop(x, roll, 0.5, 5.0).sum())(old)
  assert (grad == 0).all()


def test_the_sums_do_not_depend_on_padding_or_on_how_rows_are_cut():
  old, roll, ref, logp, mask_BT = logps(), logps(), logps(), logps(), mask()
  adv_B = jnp.asarray(RNG.normal(size=B), jnp.float32)
  knobs = KNOBS | {'kl_coef': 0.1}
  total = lambda *a: losses.policy_gradient(*a, **knobs)[0]
  whole = total(logp, old, roll, ref, adv_B, mask_BT)
  rows = [
    total(*(x[i : i + 1] for x in (logp, old, roll, ref, adv_B, mask_BT)))
    for i in range(B)
  ]
  np.testing.assert_allclose(sum(rows), whole, rtol=1e-5)
  wide = [jnp.pad(x, ((0, 0), (0, 3))) for x in (logp, old, roll, ref)]
  padded = total(*wide, adv_B, jnp.pad(mask_BT, ((0, 0), (0, 3))))
  np.testing.assert_allclose(padded, whole, rtol=1e-5)
