import itertools
import math

import numpy as np
import pytest
import scipy.stats

from crjax.evals import stats


@pytest.mark.parametrize(('n', 'c', 'k'), [(5, 2, 1), (6, 2, 3), (4, 4, 2)])
def test_pass_at_k_is_the_mean_over_all_subsets(n, c, k):
  right = [True] * c + [False] * (n - c)
  subsets = list(itertools.combinations(right, k))
  exact = sum(map(any, subsets)) / len(subsets)
  assert stats.pass_at_k(n, c, k) == pytest.approx(exact)


def test_pass_at_k_is_unbiased():
  """Its mean over all outcomes is the chance that one of k is right."""
  n, k, p = 6, 3, 0.3
  mean = sum(
    math.comb(n, c) * p**c * (1 - p) ** (n - c) * stats.pass_at_k(n, c, k)
    for c in range(n + 1)
  )
  assert mean == pytest.approx(1 - (1 - p) ** k)


@pytest.mark.parametrize(('n', 'c', 'k'), [(1, 0, 5), (3, 4, 1), (3, -1, 1)])
def test_pass_at_k_needs_its_samples(n, c, k):
  with pytest.raises(ValueError, match='samples'):
    stats.pass_at_k(n, c, k)


@pytest.mark.parametrize(('only_a', 'only_b'), [(9, 2), (0, 6), (4, 4), (0, 0)])
def test_mcnemar_is_the_binomial_test_of_those_that_differ(only_a, only_b):
  a = [1] * only_a + [0] * only_b + [1, 1, 0]
  b = [0] * only_a + [1] * only_b + [1, 1, 0]
  found = stats.mcnemar(a, b)
  assert (found['only_a'], found['only_b']) == (only_a, only_b)
  n = only_a + only_b
  exact = scipy.stats.binomtest(only_a, n, 0.5).pvalue if n else 1.0
  assert found['p'] == pytest.approx(exact)


def test_the_bootstrap_is_scipys_and_repeats():
  rng = np.random.default_rng(3)
  right = rng.integers(0, 2, 200).astype(float)
  ours = stats.bootstrap(right, seed=1)
  assert ours == stats.bootstrap(right, seed=1)
  theirs = scipy.stats.bootstrap(
    (right,), np.mean, n_resamples=4000, method='percentile', rng=rng
  ).confidence_interval
  assert ours == pytest.approx([theirs.low, theirs.high], abs=0.012)


def test_the_bootstrap_of_few_items_is_that_of_all_resamples():
  """Four items have 256 resamples: their quantiles are exact."""
  right = np.array([0.0, 0.25, 0.5, 1.0])
  every = [np.mean(x) for x in itertools.product(right, repeat=4)]
  exact = np.quantile(every, [0.025, 0.975])
  assert stats.bootstrap(right, seed=0) == pytest.approx(exact, abs=0.07)


def test_pairing_tells_apart_what_intervals_cannot():
  rng = np.random.default_rng(0)
  hard = rng.random(400) < 0.5
  a, b = hard.copy(), hard.copy()
  b[np.flatnonzero(hard)[:12]] = False  # b fails on twelve more.
  found = stats.paired(a, b, seed=0)
  assert found['difference'] == pytest.approx(12 / 400)
  assert found['ci95'][0] > 0 and found['p'] < 0.01
  alone = [stats.bootstrap(x, seed=0) for x in (a, b)]
  assert alone[0][0] < alone[1][1]  # The intervals of the two overlap.
  assert stats.mcnemar(a, b)['p'] == pytest.approx(2 * 0.5**12)


def test_equal_models_do_not_differ():
  right = np.arange(50) % 2
  found = stats.paired(right, right, seed=0)
  assert found == {'difference': 0.0, 'ci95': [0.0, 0.0], 'p': 1.0}
  with pytest.raises(ValueError, match='not the same items'):
    stats.paired(right, right[:3], seed=0)
  with pytest.raises(ValueError, match='not the same items'):
    stats.mcnemar(right, right[:3])


def test_wilson_is_scipys():
  for right in ([1] * 8 + [0] * 2, [0] * 7, [1] * 5):
    theirs = scipy.stats.binomtest(sum(right), len(right)).proportion_ci(
      method='wilson'
    )
    found = stats.wilson(np.array(right))
    assert found == pytest.approx([theirs.low, theirs.high], abs=2e-5)
  assert stats.wilson(np.array([])) is None
  assert stats.bootstrap(np.array([]), seed=0) is None
