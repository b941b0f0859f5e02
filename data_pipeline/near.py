"""Near duplicates: MinHash finds candidates, exact Jaccard decides.

A signature holds, for each of HASHES random orders of all shingles, the least
of a program's. Two programs agree at one place with the probability of their
Jaccard similarity J. Cut into bands of ROWS places they share a whole band
with probability 1 - (1 - J**ROWS)**(HASHES/ROWS): 0.9998 at J = 0.8, 0.03 at
J = 0.3 (Broder 1997; Leskovec et al., Mining of Massive Datasets, chapter 3).
"""

import collections

import numpy as np

HASHES, ROWS = 128, 5


def _orders():
  rng = np.random.Generator(np.random.PCG64(5))
  return rng.integers(1, 1 << 32, (2, HASHES, 1), np.uint64)


ORDERS = _orders()


class Near:
  """The programs so far; asks whether a new one resembles any of them."""

  def __init__(self, similarity: float):
    self.similarity = similarity
    self.programs = []  # sets of shingles
    self.bands = collections.defaultdict(list)

  def nearest(self, shingles):
    """(Jaccard similarity, place) of the most similar candidate; (0, -1)."""
    found = {i for key in bands(shingles) for i in self.bands.get(key, ())}
    best = ((jaccard(shingles, self.programs[i]), -i) for i in found)
    similarity, place = max(best, default=(0.0, 1))
    return similarity, -place

  def add(self, shingles):
    for key in bands(shingles):
      self.bands[key].append(len(self.programs))
    self.programs.append(shingles)


def bands(shingles) -> list[tuple]:
  """Keys, one a band; programs that share one are candidates."""
  values = np.fromiter(shingles, np.uint64, len(shingles))
  a, b = ORDERS
  # Products wrap at 64 bits; the high half of them is what mixes well.
  mixed = (values * (a | np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)) + b
  signature = (mixed >> np.uint64(32)).min(axis=1).tolist()
  return [
    (start, *signature[start : start + ROWS])
    for start in range(0, HASHES - ROWS + 1, ROWS)
  ]


def jaccard(a, b) -> float:
  return len(a & b) / len(a | b)
