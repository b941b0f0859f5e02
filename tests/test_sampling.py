import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crjax import model, sampling
from crjax.sharding import gather, make_mesh, put

RNG = np.random.default_rng(0)
CFG = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)
PARAMS = jax.jit(model.init, static_argnums=0)(CFG, jax.random.key(0))
DECODING = jax.jit(model.unstack, static_argnums=1)(PARAMS, jnp.float32)
Q, R, P, C = 4, 3, 6, 11
STOP, PAD = (1, 2), 0


def prompts(width=P):
  length_Q1 = np.array([[2], [6], [4], [3]])
  mask_QP = np.arange(width) >= width - length_Q1
  tokens_QP = np.full((Q, width), PAD, np.int32)
  for row, n in zip(tokens_QP, length_Q1[:, 0], strict=True):
    row[width - n :] = np.arange(3, 3 + n)
  return tokens_QP, mask_QP, np.arange(10, 10 + Q, dtype=np.int32)


@functools.cache
def make(segment, **knobs):
  """The sampler compiled while SEGMENT is `segment`."""
  fixed = {'rollouts': R, 'steps': C, 'stop_ids': STOP, 'pad_id': PAD}
  return sampling.make(CFG, **fixed | knobs)


def sample(rows=None, *, temperature=1.0, top_p=1.0, top_k=0, key=0, **knobs):
  rolled = make(sampling.SEGMENT, **knobs)(
    DECODING,
    *(rows or prompts()),
    jax.random.key(key),
    temperature,
    top_p,
    top_k,
  )
  return jax.device_get(rolled)


score = jax.jit(
  model.score, static_argnums=0, static_argnames=('start', 'dtype')
)


def scores(rolled, rows, temperature=1.0):
  """The trainer's log-probs of what was sampled."""
  tokens_QP, mask_QP, _ = rows
  repeat = lambda x: np.repeat(x, R, axis=0)
  logp_BC, _ = score(
    CFG,
    PARAMS,
    np.hstack([repeat(tokens_QP), rolled.tokens_BT]),
    np.hstack([repeat(mask_QP), rolled.mask_BT]),
    start=tokens_QP.shape[1],
    temperature=temperature,
    dtype=jnp.float32,
  )
  return np.where(rolled.mask_BT, logp_BC, 0)


@pytest.mark.parametrize('temperature', [1.0, 0.5, 2.0])
def test_log_probs_are_the_trainers(temperature):
  rolled = sample(temperature=temperature)
  want = scores(rolled, prompts(), temperature)
  np.testing.assert_allclose(rolled.logp_BT, want, atol=2e-5)


def test_a_completion_ends_with_its_end_token():
  rolled = sample(stop_ids=tuple(range(1, 9)))  # Likely to stop early.
  length_B = rolled.mask_BT.sum(1)
  assert rolled.stopped_B.any()
  for row, mask, n, stopped in zip(
    rolled.tokens_BT,
    rolled.mask_BT,
    length_B,
    rolled.stopped_B,
    strict=True,
  ):
    assert mask[:n].all() and not mask[n:].any()
    assert (row[n:] == PAD).all()
    assert not np.isin(row[: n - 1], np.arange(1, 9)).any()
    assert stopped == (1 <= row[n - 1] < 9)


def test_greedy_is_repeated_argmax():
  tokens_QP, mask_QP, _ = rows = prompts()
  rolled = sample(rows, temperature=0.0, rollouts=1, stop_ids=())
  row, valid = (np.pad(x, ((0, 0), (0, C))) for x in (tokens_QP, mask_QP))

  @jax.jit
  def best(row, valid):
    x = model.forward(CFG, PARAMS, row, valid, dtype=jnp.float32)
    return model.logits(PARAMS, x).argmax(-1)

  for i in range(P, P + C):
    row[:, i], valid[:, i] = best(row, valid)[:, i - 1], True
  np.testing.assert_array_equal(rolled.tokens_BT, row[:, P:])


def test_new_knobs_compile_nothing():
  sampler = sampling.make(CFG, rollouts=R, steps=C, stop_ids=STOP, pad_id=PAD)
  for knobs in ((1.0, 1.0, 0), (0.0, 1.0, 0), (0.7, 0.9, 5), (1.0, 0.5, 0)):
    sampler(DECODING, *prompts(), jax.random.key(0), *knobs)
  assert sampler._cache_size() == 1


def test_noise_belongs_to_question_rollout_and_position_alone():
  want = sample()
  order = np.array([2, 0, 3, 1])
  shuffled = sample(tuple(x[order] for x in prompts()))
  wider = sample(prompts(width=P + 5))
  more = sample(rollouts=R + 1)
  rows_QR = lambda rolled, r: rolled.tokens_BT.reshape(Q, r, C)
  np.testing.assert_array_equal(rows_QR(shuffled, R), rows_QR(want, R)[order])
  np.testing.assert_array_equal(wider.tokens_BT, want.tokens_BT)
  np.testing.assert_array_equal(rows_QR(more, R + 1)[:, :R], rows_QR(want, R))
  assert (sample(key=1).tokens_BT != want.tokens_BT).any()


@pytest.mark.parametrize('mesh', [(4, 1, 2), (1, 2, 4)[::-1], (2, 2, 2)])
def test_every_mesh_samples_the_same(mesh):
  want = sample()
  mesh = make_mesh(mesh)
  with jax.set_mesh(mesh):
    params = sampling.make_decode_copy(CFG, mesh, jnp.float32)(PARAMS)
    sampler = make(sampling.SEGMENT)
    got = gather(
      sampler(params, *put(mesh, prompts()), jax.random.key(0), 1.0, 1.0, 0)
    )
  np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=2e-5)


def test_a_growing_cache_changes_nothing(monkeypatch):
  want = sample()
  monkeypatch.setattr(sampling, 'SEGMENT', 2)
  assert list(sampling.ends(C)) == [2, 4, 8, C]
  got = sample()
  np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
  np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=2e-5)


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
  kept_BV = np.isfinite(sampling.truncate(z_BV, top_p, top_k))
  for z_V, kept_V in zip(z_BV, kept_BV, strict=True):
    want = nucleus(z_V, top_p, top_k)
    assert set(np.nonzero(kept_V)[0].tolist()) == want


def test_truncated_log_probs_are_renormalized():
  rolled = sample(top_k=3, temperature=0.8)
  full = scores(rolled, prompts(), 0.8)
  assert (rolled.logp_BT >= full - 2e-5).all()
  assert (rolled.logp_BT > full + 1e-3).any()
  assert (sample(top_k=1).logp_BT == 0).all()


def test_draws_follow_the_distribution():
  z_V = jnp.asarray(RNG.normal(size=12), jnp.float32)
  B = 20_000
  keys_B = jax.random.split(jax.random.key(0), B)
  token_B, _ = sampling.draw(jnp.tile(z_V, (B, 1)), keys_B, 1.0, 1.0, 0)
  want_V = np.asarray(jax.nn.softmax(z_V)) * B
  seen_V = np.bincount(token_B, minlength=12)
  chi2 = ((seen_V - want_V) ** 2 / want_V).sum()
  assert chi2 < 31.3  # 0.1 % quantile of chi-square with 11 degrees.
