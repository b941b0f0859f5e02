"""Advantages beside NumPy float64, written from the papers, and TRL's parts."""

import numpy as np
import pytest
import torch

from crjax import advantages
from crjax.advantages import ADVANTAGES, solved

RNG = np.random.default_rng(0)
EPS = 1e-4


def np_advantage(name, groups, eps):
  """Of lists of judged rewards, group by group."""
  every = np.concatenate(groups)
  made = []
  for g in groups:
    std = g.std(ddof=1) if len(g) > 1 else 0.0
    others = lambda i, g=g: np.delete(g, i).mean() if len(g) > 1 else g[i]
    made.append(
      {
        'grpo': (g - g.mean()) / (std + eps),
        'lite-ppo': (g - g.mean()) / (every.std(ddof=1) + eps),
        'dr-grpo': g - g.mean(),
        'rloo': np.array([r - others(i) for i, r in enumerate(g)]),
        'maxrl': (g - g.mean()) / g.mean() if g.mean() > 0 else 0 * g,
      }[name]
    )
  return made


@pytest.mark.parametrize('name', ADVANTAGES)
@pytest.mark.parametrize('R', [2, 8])
@pytest.mark.parametrize('binary', [True, False])
def test_advantages_are_those_of_the_papers(name, R, binary):
  rewards_QR = RNG.random((6, R))
  rewards_QR = rewards_QR < 0.5 if binary else rewards_QR
  rewards_QR = rewards_QR.astype(np.float32)
  want_QR = np_advantage(name, list(rewards_QR.astype(np.float64)), EPS)
  got_QR = ADVANTAGES[name](rewards_QR, EPS)
  np.testing.assert_allclose(got_QR, want_QR, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ADVANTAGES)
def test_what_was_not_judged_is_as_if_it_were_not_there(name):
  rewards_QR = RNG.random((6, 8))
  rewards_QR[RNG.random((6, 8)) < 0.3] = np.nan
  judged_QR = ~np.isnan(rewards_QR)
  groups = [r[j] for r, j in zip(rewards_QR, judged_QR, strict=True)]
  got_QR = ADVANTAGES[name](rewards_QR, EPS)
  assert (got_QR[~judged_QR] == 0).all()
  want = np.concatenate(np_advantage(name, groups, EPS))
  np.testing.assert_allclose(got_QR[judged_QR], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', ADVANTAGES)
@pytest.mark.parametrize('reward', [0.0, 1.0, 0.1, 1 / 3])
def test_a_group_that_agrees_has_no_advantage(name, reward):
  rewards_QR = np.array([[reward] * 7, [0, 1, 0, 1, 0, 1, np.nan]], np.float32)
  adv_QR = ADVANTAGES[name](rewards_QR, EPS)
  assert (adv_QR[0] == 0).all()
  assert (adv_QR[1, :6] != 0).all()


@pytest.mark.parametrize('name', ADVANTAGES)
@pytest.mark.parametrize('rewards', [[[np.nan]], [[np.nan, 1.0]], [[1.0]]])
def test_too_little_to_compare_is_zero(name, rewards):
  assert (ADVANTAGES[name](np.array(rewards), EPS) == 0).all()


def test_std_is_that_of_trl():
  utils = pytest.importorskip('trl.trainer.utils')
  rewards_QR = RNG.random((5, 8))
  rewards_QR[RNG.random((5, 8)) < 0.2] = np.nan
  r = torch.tensor(rewards_QR)
  centred = r - torch.nanmean(r, dim=1, keepdim=True)
  group = centred / (utils.nanstd(r, dim=1, keepdim=True) + EPS)
  batch = centred / (utils.nanstd(r) + EPS)
  for name, want in (('grpo', group), ('lite-ppo', batch)):
    got = ADVANTAGES[name](rewards_QR, EPS)
    np.testing.assert_allclose(got, want.nan_to_num(0), atol=1e-5)


@pytest.mark.parametrize('unjudged', [0.0, 0.2])
def test_gdpo_is_that_of_trl(unjudged):
  """TRL's `normalize_then_sum`, from its own line-by-line recipe."""
  utils = pytest.importorskip('trl.trainer.utils')
  rewards_KQR = RNG.random((3, 5, 8))
  rewards_KQR[RNG.random((3, 5, 8)) < unjudged] = np.nan
  weights_K = np.array([1.0, 0.5, 0.1])
  grouped = torch.tensor(rewards_KQR).permute(1, 2, 0)
  mean = torch.nanmean(grouped, dim=1, keepdim=True)
  std = utils.nanstd(grouped, dim=1, keepdim=True)
  parts = (grouped - mean) / (std + EPS)
  total = (parts.reshape(-1, 3) * torch.tensor(weights_K)).nansum(dim=1)
  total[torch.isnan(grouped.reshape(-1, 3)).all(dim=1)] = torch.nan
  want = (total - torch.nanmean(total)) / (utils.nanstd(total) + EPS)
  got_QR = advantages.gdpo(rewards_KQR, weights_K, EPS)
  np.testing.assert_allclose(
    got_QR.ravel(), want.nan_to_num(0), rtol=1e-5, atol=1e-5
  )


def test_soft_overlong_is_that_of_trl():
  rewards = pytest.importorskip('trl.rewards')
  length_QR = np.arange(1, 41).reshape(5, 8)
  punish = rewards.get_soft_overlong_punishment(40, 16)
  want = punish(completion_ids=[[0] * n for n in length_QR.ravel()])
  got_QR = advantages.soft_overlong(
    np.zeros((5, 8), np.float32), length_QR, limit=40, buffer=16
  )
  np.testing.assert_allclose(got_QR.ravel(), want, atol=1e-6)
  same_QR = advantages.soft_overlong(got_QR, length_QR, limit=40, buffer=0)
  np.testing.assert_array_equal(same_QR, got_QR)


def test_varied_finds_the_groups_that_teach():
  nan = np.nan
  rewards_QR = np.array(
    [[0, 0, 0], [1, 1, nan], [0, 1, nan], [nan, nan, nan], [0.1, 0.1, 0.1]]
  )
  assert (
    advantages.varied(rewards_QR).tolist() == [False] * 2 + [True] + [False] * 2
  )


def test_solved_counts_groups():
  nan = np.nan
  rewards_QR = np.array([[0, 0], [1, 1], [0, 1], [nan, 1], [nan, nan]])
  got = solved(rewards_QR)
  assert got == {
    'groups/none': 2 / 5,
    'groups/mixed': pytest.approx(1 / 5),
    'groups/all': 2 / 5,
  }


def np_intra(right_RS):
  """StepCodeReasoner's, line by line, less the mean of the group."""
  R, S = len(right_RS), len(right_RS[0])
  made = np.zeros((R, S))
  for r, right in enumerate(right_RS):
    for i in range(S):
      later = [right[j] for j in range(i + 1, S)]
      made[r, i] = right[i] * (1 + (sum(later) / len(later) if later else 0))
  return made - made.mean(0)


@pytest.mark.parametrize(('R', 'S'), [(2, 1), (8, 2), (8, 6)])
def test_a_line_has_what_the_paper_gives_it_against_its_group(R, S):
  right_RS = RNG.random((R, S)) < 0.5
  adv_RS = advantages.intra(right_RS)
  np.testing.assert_allclose(adv_RS, np_intra(right_RS), atol=1e-6)
  np.testing.assert_allclose(adv_RS.sum(0), 0, atol=1e-5)


def test_a_step_counts_more_where_it_led_to_right_ones():
  adv_RS = advantages.intra([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0]])
  first = adv_RS[:, 0]
  assert first[0] > first[1] > first[2] == first[3]


@pytest.mark.parametrize('right', [[1, 1], [0, 0], [1, 0]])
def test_a_step_that_all_answer_alike_teaches_nothing(right):
  assert (advantages.intra([right] * 7) == 0).all()


def test_no_steps_are_no_advantages():
  assert advantages.intra(np.zeros((4, 0))).shape == (4, 0)
