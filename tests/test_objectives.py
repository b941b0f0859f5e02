"""Objectives, corrections and KL estimates beside NumPy float64 and TRL."""

import collections
import types

import accelerate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from configs.grpo_presets import PRESETS
from crjax import branches, objectives

RNG = np.random.default_rng(0)
B, C = 6, 9
LENGTH_B = np.array([9, 1, 4, 7, 2, 9])
MASK_BC = np.arange(C) < LENGTH_B[:, None]
TOKEN_MEAN_BC = MASK_BC / LENGTH_B.sum()
SEQ_BC = jnp.asarray(MASK_BC, jnp.int32)  # One completion a row.
ADV_B = np.array([1.0, -2.0, 0.5, -0.3, 0.0, 1.5])
LOSS = ('objective', 'clip', 'correction', 'band', 'kl', 'kl_coef')


def logps(spread):
  """Log-probs that differ from OLD by about `spread`, float64."""
  return np.minimum(OLD_BC + spread * RNG.normal(size=(B, C)), -1e-3)


OLD_BC = -RNG.exponential(size=(B, C)) - 0.01
LOGP_BC, ROLL_BC, REF_BC = logps(0.4), logps(0.3), logps(0.5)
ADV_BC = np.broadcast_to(ADV_B[:, None], (B, C))


def f32(x):
  return jnp.asarray(x, jnp.float32)


def by_rows(x_BC, reduce):
  """`reduce` of each completion, back on its tokens."""
  return np.stack(
    [np.full(C, reduce(x[:n])) for x, n in zip(x_BC, LENGTH_B, strict=True)]
  )


# The same in NumPy, written from the papers, token by token.


def np_clip(low, high, ratio_BC):
  loss_BC = np.empty((B, C))
  for b in range(B):
    for c in range(C):
      r, a = ratio_BC[b, c], ADV_B[b]
      loss_BC[b, c] = -min(r * a, min(max(r, 1 - low), 1 + high) * a)
  return loss_BC


def np_dual(low, high, ratio_BC):
  loss_BC = np_clip(low, high, ratio_BC)
  return np.where(ADV_BC < 0, np.minimum(loss_BC, -3.0 * ADV_BC), loss_BC)


def np_dppo(low, high):
  p_BC, old_BC = np.exp(LOGP_BC), np.exp(OLD_BC)
  keep_BC = np.where(ADV_BC > 0, p_BC - old_BC <= high, p_BC - old_BC >= -low)
  return -ADV_BC * np.minimum(p_BC / old_BC, 20.0) * LOGP_BC * keep_BC


RATIO_BC = np.exp(LOGP_BC - OLD_BC)
NUMPY = {
  'clip': lambda low, high: np_clip(low, high, RATIO_BC),
  'dual-clip': lambda low, high: np_dual(low, high, RATIO_BC),
  'cispo': lambda low, high: (
    -np.minimum(np.maximum(RATIO_BC, 1 - low), 1 + high) * ADV_BC * LOGP_BC
  ),
  'gspo': lambda low, high: np_clip(
    low, high, by_rows(LOGP_BC - OLD_BC, lambda x: np.exp(x.mean()))
  ),
  'dppo-tv': np_dppo,
}
BOUNDS = [(0.2, 0.2), (0.2, 0.28), (1.0, 4.0), (3e-4, 4e-4)]


@pytest.mark.parametrize('name', objectives.OBJECTIVES)
@pytest.mark.parametrize('bounds', BOUNDS)
def test_objectives_are_those_of_the_papers(name, bounds):
  loss_BC, _, _ = objectives.OBJECTIVES[name](
    f32(LOGP_BC), f32(OLD_BC), f32(ADV_BC), SEQ_BC, *bounds
  )
  want_BC = NUMPY[name](*bounds)
  np.testing.assert_allclose(
    np.where(MASK_BC, loss_BC, 0), np.where(MASK_BC, want_BC, 0), atol=1e-5
  )


GAP_BC = OLD_BC - ROLL_BC
W_BC = np.exp(GAP_BC)
inside = lambda x, low, high: (x >= low) & (x <= high)
NUMPY_CORRECTIONS = {
  'none': lambda low, high: np.ones((B, C)),
  'icepop': lambda low, high: W_BC * inside(W_BC, low, high),
  'tis': lambda low, high: np.minimum(np.maximum(W_BC, low), high),
  'sequence-mask': lambda low, high: by_rows(
    GAP_BC, lambda x: np.exp(x.sum()) * inside(np.exp(x.sum()), low, high)
  ),
  'geometric-mask': lambda low, high: (
    W_BC * by_rows(GAP_BC, lambda x: inside(np.exp(x.mean()), low, high))
  ),
  'geometric-reject': lambda low, high: by_rows(
    GAP_BC, lambda x: inside(np.exp(x.mean()), low, high)
  ),
}


@pytest.mark.parametrize('name', objectives.CORRECTIONS)
@pytest.mark.parametrize('band', [(0.5, 5.0), (0.0, 3.0), (0.95, 1.1)])
def test_corrections_are_those_of_the_papers(name, band):
  got_BC = objectives.CORRECTIONS[name](f32(GAP_BC), SEQ_BC, *band)
  want_BC = NUMPY_CORRECTIONS[name](*band)
  np.testing.assert_allclose(
    np.where(MASK_BC, got_BC, 0), np.where(MASK_BC, want_BC, 0), atol=1e-5
  )


def np_kl(name):
  d_BC = LOGP_BC - REF_BC
  value = {'k1': d_BC, 'k2': d_BC**2 / 2, 'k3': np.exp(-d_BC) + d_BC - 1}
  slope = {'k1': np.ones((B, C)), 'k2': d_BC, 'k3': 1 - np.exp(-d_BC)}
  return value[name[:2]], slope['k2' if name.endswith('+') else name]


@pytest.mark.parametrize('name', objectives.KLS)
def test_kl_estimates_have_the_values_and_slopes_of_their_names(name):
  value_BC, slope_BC = np_kl(name)
  kl = lambda x: objectives.KLS[name](x, f32(REF_BC))
  np.testing.assert_allclose(kl(f32(LOGP_BC)), value_BC, atol=1e-5)
  got_BC = jax.grad(lambda x: kl(x).sum())(f32(LOGP_BC))
  np.testing.assert_allclose(got_BC, slope_BC, atol=1e-5)


def expectation(per_token):
  """Of a gradient estimate over all tokens of a random softmax."""
  z_V = f32(RNG.normal(size=20) * 2)

  def weighted(z_V):
    logp_V = jax.nn.log_softmax(z_V)
    p_V = jax.lax.stop_gradient(jnp.exp(logp_V))
    return (p_V * per_token(logp_V)).sum()

  return z_V, jax.grad(weighted)(z_V)


def test_k1_as_a_loss_pulls_nowhere_and_k2_along_the_kl():
  ref_V = jax.nn.log_softmax(f32(RNG.normal(size=20)))
  _, grad_V = expectation(lambda logp_V: objectives.k1(logp_V, ref_V))
  np.testing.assert_allclose(grad_V, 0, atol=1e-6)
  z_V, grad_V = expectation(lambda logp_V: objectives.k2(logp_V, ref_V))

  def kl(z_V):
    logp_V = jax.nn.log_softmax(z_V)
    return (jnp.exp(logp_V) * (logp_V - ref_V)).sum()

  np.testing.assert_allclose(grad_V, jax.grad(kl)(z_V), atol=1e-5)


def test_k3_is_unbiased_and_never_negative():
  p, q = (jax.nn.softmax(f32(RNG.normal(size=50))) for _ in range(2))
  kl = (p * (jnp.log(p) - jnp.log(q))).sum()
  estimate = objectives.k3(jnp.log(p), jnp.log(q))
  assert (estimate >= 0).all()
  np.testing.assert_allclose((p * estimate).sum(), kl, rtol=1e-4)


def test_the_entropy_bonus_has_the_value_and_gradient_of_the_entropy():
  def entropy(z_V):
    logp_V = jax.nn.log_softmax(z_V)
    return -(jnp.exp(logp_V) * logp_V).sum()

  z_V, grad_V = expectation(
    lambda logp_V: objectives.entropy_bonus(
      logp_V, -(jnp.exp(logp_V) * logp_V).sum()
    )
  )
  np.testing.assert_allclose(grad_V, jax.grad(entropy)(z_V), atol=1e-5)
  logp_V = jax.nn.log_softmax(z_V)
  value_V = objectives.entropy_bonus(logp_V, entropy(z_V))
  np.testing.assert_allclose(value_V, entropy(z_V), rtol=1e-6)


def loss(
  logp_BC=LOGP_BC,
  old_BC=OLD_BC,
  ref_BC=REF_BC,
  roll_BC=ROLL_BC,
  adv_BC=ADV_BC,
  weight_BC=TOKEN_MEAN_BC,
  seq_BC=SEQ_BC,
  **changes,
):
  """(loss, sums) of the default with changes."""
  choices = {k: PRESETS['crjax'][k] for k in LOSS} | changes
  arrays = (logp_BC, -logp_BC, old_BC, ref_BC, roll_BC, adv_BC, weight_BC)
  return objectives.policy_loss(*map(f32, arrays), seq_BC, **choices)


def test_icepop_keeps_the_denominator_of_what_it_drops():
  total, sums = loss(correction='icepop', band=(0.9, 1.1))
  kept_BC = inside(W_BC, 0.9, 1.1) & MASK_BC
  assert 0 < kept_BC.sum() < MASK_BC.sum()
  assert sums['corrected_away'] == MASK_BC.sum() - kept_BC.sum()
  token_BC = np_clip(0.2, 0.28, RATIO_BC) * W_BC
  want = token_BC[kept_BC].sum() / MASK_BC.sum()
  assert float(total) == pytest.approx(want, abs=1e-5)


def test_at_ratio_one_the_gradient_is_reinforce():
  grad = jax.grad(
    lambda x: loss(x, LOGP_BC, roll_BC=LOGP_BC, weight_BC=MASK_BC)[0]
  )(f32(LOGP_BC))
  np.testing.assert_allclose(grad, -ADV_BC * MASK_BC, atol=1e-6)
  assert (grad[4] == 0).all()  # A zero advantage has no gradient at all.


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
  one = jnp.ones((1, 1))
  grad, sums = jax.grad(
    lambda x: loss(x, old, old, old, adv * one, one, one.astype(int)),
    has_aux=True,
  )(old + log_ratio)
  assert (grad[0, 0] != 0) == flows
  assert sums['clip_low'] + sums['clip_high'] == (not flows)


@pytest.mark.parametrize(('adv', 'bound'), [(-1.0, True), (1.0, False)])
def test_dual_clip_bounds_bad_tokens_only(adv, bound):
  old, one = jnp.full((1, 1), -5.0), jnp.ones((1, 1))
  dual, single = (
    objectives.OBJECTIVES[name](old + 3, old, adv * one, one, 0.2, 0.2)[0]
    for name in ('dual-clip', 'clip')
  )
  assert (dual != single).item() == bound


@pytest.mark.parametrize('objective', objectives.OBJECTIVES)
@pytest.mark.parametrize('correction', objectives.CORRECTIONS)
def test_padding_and_neighbours_in_a_row_change_nothing(objective, correction):
  """All completions in one row, with rubbish between, give the same sums."""
  choices = {'objective': objective, 'correction': correction, 'kl_coef': 0.1}
  want, sums = loss(**choices)
  arrays = (LOGP_BC, OLD_BC, REF_BC, ROLL_BC, ADV_BC, TOKEN_MEAN_BC)
  rubbish = lambda x: np.where(MASK_BC, x, np.nan).reshape(1, -1)
  seq_BC = np.arange(1, B + 1)[:, None] * MASK_BC
  got, joined = loss(
    *map(rubbish, arrays), jnp.asarray(seq_BC.reshape(1, -1)), **choices
  )
  assert float(got) == pytest.approx(float(want), rel=1e-5)
  for key in sums.keys() - {'entropy'}:
    assert float(joined[key]) == pytest.approx(float(sums[key]), rel=1e-5), key


# TRL's own `_compute_loss`, on the same log-probs: (its settings, ours).
TRL = {
  'grpo': (
    {'loss_type': 'grpo', 'epsilon_high': 0.2},
    {'clip': (0.2, 0.2), 'aggregation': 'sequence-mean'},
  ),
  'dapo': ({'loss_type': 'dapo'}, {'aggregation': 'token-mean'}),
  'dr_grpo': (
    {'loss_type': 'dr_grpo'},
    {'aggregation': 'length-normalised'},
  ),
  'cispo': (
    {'loss_type': 'cispo', 'epsilon_high': 5.0},
    {'objective': 'cispo', 'clip': (1.0, 4.0), 'aggregation': 'token-mean'},
  ),
  'gspo': (
    {'importance_sampling_level': 'sequence', 'loss_type': 'grpo'},
    {'objective': 'gspo', 'aggregation': 'sequence-mean'},
  ),
  'kl': (
    {'loss_type': 'dapo', 'beta': 0.1},
    {'aggregation': 'token-mean', 'kl': 'k3', 'kl_coef': 0.1},
  ),
  'tis': (
    {'loss_type': 'dapo', 'use_vllm': True},
    {
      'aggregation': 'token-mean',
      'correction': 'tis',
      'band': (0.0, 2.0),
    },
  ),
}


def trl_loss(ratio_BC, **settings):
  """(loss, its gradient by log-prob) of TRL's GRPOTrainer."""
  trl = pytest.importorskip('trl')
  logp_BC = torch.tensor(LOGP_BC, requires_grad=True)
  tensor = lambda x: torch.tensor(np.array(x))
  args = types.SimpleNamespace(delta=None, use_bias_correction_kl=False)
  trainer = types.SimpleNamespace(
    **{
      'aux_loss_enabled': False,
      'top_entropy_quantile': 1.0,
      'off_policy_mask_threshold': None,
      'importance_sampling_level': 'token',
      'beta': 0.0,
      'epsilon_low': 0.2,
      'epsilon_high': 0.28,
      'use_vllm': False,
      'vllm_importance_sampling_correction': True,
      'max_completion_length': C,
      'current_gradient_accumulation_steps': 1,
      '_entropy_bonus_enabled': False,
      '_get_per_token_logps_and_entropies': lambda *_, **__: (
        logp_BC,
        torch.zeros(B, C),
        None,
      ),
      'model': types.SimpleNamespace(training=True),
      'accelerator': accelerate.Accelerator(cpu=True),
      'args': args,
      '_metrics': {'train': collections.defaultdict(list)},
    }
    | settings
  )
  args.steps_per_generation = 1
  inputs = {
    'prompt_ids': torch.zeros(B, 1, dtype=int),
    'prompt_mask': torch.ones(B, 1, dtype=int),
    'completion_ids': torch.zeros(B, C, dtype=int),
    'completion_mask': tensor(MASK_BC.astype(int)),
    'advantages': tensor(ADV_B),
    'old_per_token_logps': tensor(OLD_BC),
    'ref_per_token_logps': tensor(REF_BC),
    'importance_sampling_ratio': tensor(ratio_BC),
    'num_items_in_batch': tensor(MASK_BC.sum()),
  }
  loss = trl.GRPOTrainer._compute_loss(trainer, None, inputs)
  loss.backward()
  return loss.item(), logp_BC.grad.numpy()


@pytest.mark.parametrize('name', TRL)
def test_losses_and_gradients_are_those_of_trl(name):
  settings, choices = TRL[name]
  choices = {'correction': 'none'} | choices
  aggregate = branches.AGGREGATIONS[choices.pop('aggregation')]
  weight_B = aggregate(LENGTH_B[None], C)[0]
  ours = lambda x: loss(x, weight_BC=weight_B[:, None] * MASK_BC, **choices)[0]
  got, grad_BC = jax.value_and_grad(ours)(f32(LOGP_BC))
  want, want_BC = trl_loss(np.minimum(W_BC, 2.0), **settings)
  assert float(got) == pytest.approx(want, abs=1e-5)
  np.testing.assert_allclose(grad_BC, want_BC, atol=1e-5)
