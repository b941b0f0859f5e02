"""Advantages from rewards, on the host, in NumPy. NaN marks "not judged"."""

import numpy as np


def group_mean_batch_std(rewards_QR, eps: float = 1e-4):
  """(r - mean of its group) / (std of the batch + eps), the crjax default.

  A NaN reward leaves the statistics of its group and gets advantage 0, so an
  infrastructure failure neither rewards nor punishes (TRL does the same).
  The standard deviation is Bessel-corrected, as in every torch stack.
  """
  centred_QR = _centre(rewards_QR)
  std = _std(np.asarray(rewards_QR, np.float32).reshape(1, -1))
  return _finish(centred_QR / (std + eps))


def group_mean_group_std(rewards_QR, eps: float = 1e-4):
  """(r - mean) / (std + eps), both of the group (GRPO, arXiv 2402.03300)."""
  std_Q1 = _std(np.asarray(rewards_QR, np.float32))
  return _finish(_centre(rewards_QR) / (std_Q1 + eps))


ADVANTAGES = {'batch': group_mean_batch_std, 'group': group_mean_group_std}


def solved(rewards_QR):
  """Shares of groups that are all wrong, mixed, all right: where signal is."""
  judged_QR = ~np.isnan(rewards_QR)
  right_Q = np.where(judged_QR, rewards_QR, 0.0).sum(1)
  count_Q = judged_QR.sum(1)
  none = float(np.mean(right_Q == 0))
  every = float(np.mean((right_Q == count_Q) & (count_Q > 0)))
  return {
    'groups/none': none,
    'groups/mixed': 1 - none - every,
    'groups/all': every,
  }


def _centre(rewards_QR):
  rewards_QR = np.asarray(rewards_QR, np.float32)
  judged_QR = ~np.isnan(rewards_QR)
  total_Q1 = np.where(judged_QR, rewards_QR, 0.0).sum(1, keepdims=True)
  count_Q1 = np.maximum(judged_QR.sum(1, keepdims=True), 1)
  return rewards_QR - total_Q1 / count_Q1


def _std(rewards_QR):
  """Row-wise over judged entries, ddof=1; 0 where fewer than two are judged."""
  judged_QR = ~np.isnan(rewards_QR)
  square_Q1 = np.where(judged_QR, _centre(rewards_QR), 0.0) ** 2
  dof_Q1 = np.maximum(judged_QR.sum(1, keepdims=True) - 1, 1)
  return np.sqrt(square_Q1.sum(1, keepdims=True) / dof_Q1)


def _finish(adv_QR):
  return np.where(np.isnan(adv_QR), 0.0, adv_QR).astype(np.float32)
