import numpy as np
import pytest
import torch

from crjax.advantages import ADVANTAGES, solved

RNG = np.random.default_rng(0)


def test_group_std_is_torch_std():
  rewards_QR = RNG.random((5, 8)).astype(np.float32)
  r = torch.tensor(rewards_QR)
  want = (r - r.mean(1, keepdim=True)) / (r.std(1, keepdim=True) + 1e-4)
  got = ADVANTAGES['group'](rewards_QR)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_batch_std_divides_every_group_by_one_number():
  rewards_QR = (RNG.random((5, 8)) < 0.5).astype(np.float32)
  r = torch.tensor(rewards_QR)
  want = (r - r.mean(1, keepdim=True)) / (r.std() + 1e-4)
  got = ADVANTAGES['batch'](rewards_QR)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ADVANTAGES)
@pytest.mark.parametrize('reward', [0.0, 1.0])
def test_a_group_that_agrees_has_no_advantage(name, reward):
  rewards_QR = np.array([[reward] * 4, [0, 1, 0, 1]], np.float32)
  adv_QR = ADVANTAGES[name](rewards_QR)
  assert (adv_QR[0] == 0).all()
  assert (adv_QR[1] != 0).all()


@pytest.mark.parametrize('name', ADVANTAGES)
def test_what_could_not_be_judged_changes_nothing_for_the_others(name):
  rewards_QR = np.array([[1, 0, 0, 1], [0, 0, 1, np.nan]], np.float32)
  adv_QR = ADVANTAGES[name](rewards_QR)
  assert adv_QR[1, 3] == 0
  assert np.isfinite(adv_QR).all()
  np.testing.assert_allclose(adv_QR[1, :3].sum(), 0, atol=1e-6)


@pytest.mark.parametrize('name', ADVANTAGES)
@pytest.mark.parametrize('rewards', [[[np.nan]], [[np.nan, 1.0]], [[1.0]]])
def test_too_little_to_compare_is_zero(name, rewards):
  assert (ADVANTAGES[name](np.array(rewards)) == 0).all()


def test_solved_counts_groups():
  nan = np.nan
  rewards_QR = np.array([[0, 0], [1, 1], [0, 1], [nan, 1], [nan, nan]])
  got = solved(rewards_QR)
  assert got == {
    'groups/none': 2 / 5,
    'groups/mixed': pytest.approx(1 / 5),
    'groups/all': 2 / 5,
  }
