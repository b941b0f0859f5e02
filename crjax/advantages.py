"""Advantages from rewards, on the host, in NumPy. NaN marks "not judged".

A reward that could not be judged leaves the statistics of its group and gets
advantage 0: an infrastructure failure neither rewards nor punishes (TRL does
the same). Standard deviations are Bessel-corrected, as in every torch stack.
A group whose judged rewards are all equal has advantage 0, without rounding.
"""

import numpy as np


def grpo(rewards_QR, eps: float = 1e-4):
  """(r - mean) / (std + eps), both of the group (GRPO, arXiv 2402.03300)."""
  return _finish(_centre(rewards_QR) / (_std(rewards_QR) + eps))


def lite_ppo(rewards_QR, eps: float = 1e-4):
  """(r - mean of its group) / (std of the batch + eps), the crjax default.

  Lite-PPO, arXiv 2508.08221: the std of a group over-weights questions that
  are almost always or almost never solved.
  """
  std = _std(np.asarray(rewards_QR).reshape(1, -1))
  return _finish(_centre(rewards_QR) / (std + eps))


def dr_grpo(rewards_QR, eps: float = 0.0):
  """r - mean of its group (Dr.GRPO, arXiv 2503.20783); eps divides nothing."""
  return _finish(_centre(rewards_QR))


def rloo(rewards_QR, eps: float = 0.0):
  """r - mean of the others of its group (RLOO, arXiv 2402.14740)."""
  count_Q1 = (~np.isnan(rewards_QR)).sum(1, keepdims=True)
  return _finish(_centre(rewards_QR) * count_Q1 / np.maximum(count_Q1 - 1, 1))


def max_rl(rewards_QR, eps: float = 0.0):
  """(r - mean) / mean of the group, 0 where none is right (arXiv 2602.02710).

  For rewards that are not negative; weighs a question by one over its rate.
  """
  mean_Q1 = _mean(rewards_QR)
  return _finish(_centre(rewards_QR) / np.where(mean_Q1 > 0, mean_Q1, np.inf))


ADVANTAGES = {
  'grpo': grpo,
  'lite-ppo': lite_ppo,
  'dr-grpo': dr_grpo,
  'rloo': rloo,
  'maxrl': max_rl,
}


def gdpo(rewards_KQR, weights_K, eps: float = 1e-4):
  """Several rewards, each normalised by itself (GDPO, arXiv 2601.05242).

  The K rewards of a group become K advantages as in `grpo`; their weighted sum
  is whitened over the batch. A reward that is NaN leaves its own sum; a
  completion without any gets 0.
  """
  rewards_KQR = np.asarray(rewards_KQR, np.float64)
  parts = [_centre(r) / (_std(r) + eps) for r in rewards_KQR]
  weighted = [w * _finish(a) for w, a in zip(weights_K, parts, strict=True)]
  sum_QR = np.where(np.isnan(rewards_KQR).all(0), np.nan, np.sum(weighted, 0))
  flat = sum_QR.reshape(1, -1)
  return _finish((sum_QR - _mean(flat)) / (_std(flat) + eps))


def soft_overlong(rewards_QR, length_QR, *, limit: int, buffer: int):
  """Takes up to 1 from completions that end in the last `buffer` tokens.

  Linear from 0 at `limit` - `buffer` to 1 at `limit` (DAPO, arXiv 2503.14476,
  equation 13); buffer 0 takes nothing.
  """
  if not buffer:
    return rewards_QR
  beyond_QR = np.clip(length_QR - (limit - buffer), 0, buffer)
  return (rewards_QR - beyond_QR / buffer).astype(np.float32)


def intra(right_RS):
  """adv_RS: what a line about a step has beside its completion's advantage.

  A right step counts 1 and the share of right ones among the steps after it,
  which it prepared (StepCodeReasoner, arXiv 2605.11922). Other than there the
  mean over the group is taken from it: over a group the sum of the advantages
  stays that of the outcome, and a step that all know teaches nothing.

  Args:
    right_RS: 1 for a right step, 0 for a wrong or missing one; the S steps of
      one question in their order.
  """
  right_RS = np.asarray(right_RS, np.float64)
  S = right_RS.shape[1]
  since_RS = np.cumsum(right_RS[:, ::-1], axis=1)[:, ::-1]
  after_RS = (since_RS - right_RS) / np.maximum(np.arange(S)[::-1], 1)
  return _finish(_centre((right_RS * (1 + after_RS)).T).T)


def varied(rewards_QR):
  """varied_Q: true where the judged rewards of a group differ."""
  return (_std(rewards_QR) > 0)[:, 0]


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


def _mean(rewards_QR):
  """Row-wise over judged entries; 0 where there are none."""
  rewards_QR = np.asarray(rewards_QR, np.float64)
  judged_QR = ~np.isnan(rewards_QR)
  total_Q1 = np.where(judged_QR, rewards_QR, 0.0).sum(1, keepdims=True)
  return total_Q1 / np.maximum(judged_QR.sum(1, keepdims=True), 1)


def _centre(rewards_QR):
  """r - mean, and exactly 0 in a group that agrees."""
  rewards_QR = np.asarray(rewards_QR, np.float64)
  judged_QR = ~np.isnan(rewards_QR)
  high_Q1 = np.where(judged_QR, rewards_QR, -np.inf).max(1, keepdims=True)
  low_Q1 = np.where(judged_QR, rewards_QR, np.inf).min(1, keepdims=True)
  centred_QR = rewards_QR - _mean(rewards_QR)
  return np.where((low_Q1 == high_Q1) & judged_QR, 0.0, centred_QR)


def _std(rewards_QR):
  """Row-wise over judged entries, ddof=1; 0 where fewer than two are judged."""
  judged_QR = ~np.isnan(rewards_QR)
  square_Q1 = np.where(judged_QR, _centre(rewards_QR), 0.0) ** 2
  dof_Q1 = np.maximum(judged_QR.sum(1, keepdims=True) - 1, 1)
  return np.sqrt(square_Q1.sum(1, keepdims=True) / dof_Q1)


def _finish(adv_QR):
  return np.where(np.isnan(adv_QR), 0.0, adv_QR).astype(np.float32)
