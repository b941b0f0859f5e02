"""Statistics of right and wrong answers; pure functions of arrays.

`right` is one number an item: whether its answer is right, or the share of its
samples that are. Intervals and tests treat items as independent and samples of
one item as belonging together.
"""

import math

import numpy as np

RESAMPLES = 2000  # of the bootstrap


def pass_at_k(n: int, c: int, k: int) -> float:
  """Unbiased estimate that one of k samples is right, c of n being right.

  1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, eq. 1). Raises
  ValueError with fewer samples than k: then there is no unbiased estimate.
  """
  if not 0 <= c <= n:
    raise ValueError(f'{c} of {n} samples cannot be right')
  if not 1 <= k <= n:
    raise ValueError(f'pass@{k} needs {k} samples or more; here: {n} sample(s)')
  return 1 - math.comb(n - c, k) / math.comb(n, k)


def wilson(right, z: float = 1.96):
  """95 % interval of a share of right answers (Wilson 1927), None of none."""
  n = len(right)
  if not n:
    return None
  p = float(np.mean(right))
  centre, scale = p + z * z / (2 * n), 1 + z * z / n
  half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
  return [max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)]


def bootstrap(right, seed: int):
  """95 % interval of the mean, by resampling items; None of none."""
  if not len(right):
    return None
  right = np.asarray(right, np.float64)
  means = resampled(len(right), seed, lambda draw: right[draw].mean())
  low, high = np.quantile(means, [0.025, 0.975])
  return [float(low), float(high)]


def interval(right, seed: int):
  """The 95 % interval of a mean over items; None of none.

  The bootstrap's, which has no width where all items are right or all wrong;
  there Wilson's.
  """
  alike = len(right) and set(map(float, right)) in ({0.0}, {1.0})
  return wilson(right) if alike else bootstrap(right, seed)


def resampled(n: int, seed: int, statistic):
  """`statistic` of RESAMPLES draws of n items with replacement."""
  rng = np.random.default_rng(seed)
  return np.array([statistic(rng.integers(0, n, n)) for _ in range(RESAMPLES)])


def mcnemar(a, b) -> dict:
  """Exact two-sided test of two models on the same items, right or wrong.

  Returns {only_a, only_b, p}: items that one alone has right, and how likely a
  difference so large is if neither is better (binomial test of the discordant
  items, McNemar 1947).
  """
  a, b = np.asarray(a, bool), np.asarray(b, bool)
  if a.shape != b.shape:
    raise ValueError(f'{a.shape} and {b.shape}: not the same items')
  only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
  n, fewer = only_a + only_b, min(only_a, only_b)
  tail = sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n
  return {'only_a': only_a, 'only_b': only_b, 'p': min(1.0, 2 * tail)}


def paired(a, b, seed: int) -> dict:
  """{difference, ci95, p} of two models' means over the same items.

  The interval is a bootstrap of the items' differences. p is the two-sided
  share of resamples whose difference lies on the other side of zero; no smaller
  p can be told from so many resamples than one in RESAMPLES + 1.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape or not len(a):
    raise ValueError(f'{a.shape} and {b.shape}: not the same items')
  d = a - b
  means = resampled(len(d), seed, lambda draw: d[draw].mean())
  low, high = np.quantile(means, [0.025, 0.975])
  beyond = min((means <= 0).sum(), (means >= 0).sum())
  return {
    'difference': float(d.mean()),
    'ci95': [float(low), float(high)],
    'p': float(min(1.0, 2 * (beyond + 1) / (RESAMPLES + 1))),
  }
