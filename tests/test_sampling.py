import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import torch
import transformers

from crjax import model, sampling

RNG = np.random.default_rng(0)
# Temperature, top-p, top-k, min-p.
KNOBS = [
  (1.0, 1.0, 0, 0.0),
  (0.6, 1.0, 0, 0.0),
  (1.3, 0.8, 0, 0.0),
  (0.8, 0.9, 7, 0.02),
  (1.0, 1.0, 1, 0.0),
  (1.0, 1.0, 0, 0.2),
]
draw, floor = jax.jit(sampling.draw), jax.jit(sampling.floor)


def nucleus(z_V, top_p, top_k):
  """The kept set, the slow way."""
  order = np.argsort(-z_V)
  if top_k:
    order = order[:top_k]
  p = np.exp(z_V[order] - z_V[order].max())
  p /= p.sum()
  n = 1 + np.searchsorted(np.cumsum(p)[:-1], top_p, side='left')
  return set(order[: n if top_p < 1 else None].tolist())


@pytest.mark.parametrize('top_p', [1.0, 0.9, 0.5, 1e-6])
@pytest.mark.parametrize('top_k', [0, 1, 5, 100])
def test_truncation_keeps_the_nucleus(top_p, top_k):
  z_BV = RNG.normal(size=(6, 20)).astype(np.float32) * 2
  kept_BV = z_BV >= floor(z_BV, top_p, top_k)
  for z_V, kept_V in zip(z_BV, kept_BV, strict=True):
    want = nucleus(z_V, top_p, top_k)
    assert set(np.nonzero(kept_V)[0].tolist()) == want


@pytest.mark.parametrize('knobs', KNOBS, ids=str)
def test_log_probs_are_those_of_what_was_sampled_from(knobs):
  """Temperature, then top-k, top-p and min-p, as Transformers has them."""
  z_BV = RNG.normal(size=(200, 24)).astype(np.float32) * 3
  temperature, top_p, top_k, min_p = knobs
  scores = torch.tensor(z_BV)
  for warp in (
    transformers.TemperatureLogitsWarper(temperature),
    *([transformers.TopKLogitsWarper(top_k)] if top_k else []),
    *([transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []),
    *([transformers.MinPLogitsWarper(min_p)] if min_p else []),
  ):
    scores = warp(None, scores)
  want_BV = torch.log_softmax(scores, -1).numpy()
  keys_B = jax.random.split(jax.random.key(0), len(z_BV))
  token_B, logp_B = draw(z_BV, keys_B, *knobs)
  np.testing.assert_allclose(
    logp_B, want_BV[np.arange(len(z_BV)), token_B], atol=1e-5
  )


def test_every_row_has_its_own_knobs():
  z_BV = RNG.normal(size=(len(KNOBS), 24)).astype(np.float32)
  keys_B = jax.random.split(jax.random.key(3), len(KNOBS))
  together = draw(z_BV, keys_B, *map(np.array, zip(*KNOBS, strict=True)))
  for i, knobs in enumerate(KNOBS):
    one = draw(z_BV[i : i + 1], keys_B[i : i + 1], *knobs)
    assert one[0][0] == together[0][i]
    np.testing.assert_allclose(one[1][0], together[1][i], atol=1e-6)


def test_greedy_is_the_first_of_the_largest():
  z_BV = RNG.integers(0, 3, (64, 24)).astype(np.float32)  # Many are equal.
  keys_B = jax.random.split(jax.random.key(0), 64)
  token_B, logp_B = draw(z_BV, keys_B, 0.0)
  np.testing.assert_array_equal(token_B, z_BV.argmax(1))
  want_BV = jax.nn.log_softmax(z_BV)
  np.testing.assert_allclose(logp_B, np.max(want_BV, 1), atol=1e-6)


@pytest.mark.parametrize('V', [12, 13, 64])
@pytest.mark.parametrize('knobs', [KNOBS[0], KNOBS[3]], ids=str)
def test_draws_follow_the_distribution(V, knobs):
  z_V = RNG.normal(size=V).astype(np.float32)
  B = 20_000
  keys_B = jax.random.split(jax.random.key(0), B)
  token_B, logp_B = draw(np.tile(z_V, (B, 1)), keys_B, *knobs)
  seen_V = np.bincount(token_B, minlength=V)
  some = np.flatnonzero(seen_V)
  want_V = B * np.exp([logp_B[np.flatnonzero(token_B == v)[0]] for v in some])
  assert want_V.sum() > 0.999 * B  # All that can be drawn was.
  chi2 = ((seen_V[some] - want_V) ** 2 / want_V).sum()
  assert chi2 < scipy.stats.chi2.ppf(0.999, len(some) - 1)


def test_noise_grows_with_the_root_of_the_vocabulary():
  """Two stages of Gumbel noise: R + C numbers a token, not R x C."""
  _, R, C = jax.eval_shape(sampling.table, jnp.zeros((1, 151_936))).shape
  assert (R, C) == (64, 2374)
  shapes = jax.make_jaxpr(sampling.draw)(
    jnp.zeros((2, 151_936)), jax.random.split(jax.random.key(0), 2), 1.0
  )
  drawn = re.findall(r'u32\[([\d,]+)\] = random_bits', str(shapes))
  assert drawn == ['2,2438']


def test_plain_greedy_is_repeated_argmax():
  cfg = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)
  params = jax.jit(model.init, static_argnums=0)(cfg, jax.random.key(0))
  row_BT = RNG.integers(0, 32, (3, 11)).astype(np.int32)
  copy = jax.jit(model.unstack, static_argnums=1)(params, jnp.float32)
  greedy = jax.jit(sampling.greedy, static_argnums=(0, 3))
  got_BT = greedy(cfg, copy, row_BT[:, :5], 6)

  @jax.jit
  def best(row_BT):
    valid_BT = jnp.ones_like(row_BT, bool)
    x_BTD = model.forward(cfg, params, row_BT, valid_BT, dtype=jnp.float32)
    return jnp.argmax(model.logits(params, x_BTD), -1)

  for i in range(5, 11):
    row_BT[:, i] = best(row_BT)[:, i - 1]
  np.testing.assert_array_equal(got_BT, row_BT[:, 5:])
