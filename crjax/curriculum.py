"""Which questions to ask, those that are sometimes solved, and what is known.

A question that every rollout solves, or none, teaches nothing. The share of
right rollouts at the last visit puts a question into a pool (prime-rl's
`DifficultyPoolSampler`); one that was solved twice in a row is retired
(ScaleRL, arXiv 2510.13786), and probed again much later.
"""

import numpy as np

from crjax.data import Prompts

HARD, EASY = 0.25, 0.75  # Rates up to the one and above the other are rare.
RARE = 0.2  # The share of passes at which a hard or easy question is asked.
SOLVED, VISITS = 0.9, 2  # So well and so often in a row: retired.
RETIRED_PASSES = 8  # Then it is probed again.


class Curriculum:
  """An endless iterator of `data.Prompts` that learns from `observe`.

  Wraps `data.prompts(questions=1)`, whose order it keeps; a question that is
  passed over waits for the next pass. Its state is JSON and holds what was
  observed: a resumed run asks what the uninterrupted one would have.
  """

  def __init__(self, prompts, *, questions: int, seed: int):
    self.rows = prompts.rows
    self._prompts = prompts
    self._questions = questions
    self._seed = seed
    self._seen = {}  # id: [passes, last rate, solved in a row, retired at]

  def __iter__(self):
    return self

  def __next__(self) -> Prompts:
    asked, passed_over = [], 0
    while len(asked) < self._questions:
      one = next(self._prompts)
      # Where all is retired the next question is as good as any.
      if self._wanted(int(one.ids_Q[0])) or passed_over >= self.rows:
        asked.append(one)
        passed_over = 0
      else:
        passed_over += 1
    tokens, masks, ids, tasks = zip(*asked, strict=True)
    whole = map(np.concatenate, (tokens, masks, ids))
    return Prompts(*whole, [task for some in tasks for task in some])

  def observe(self, ids_Q, rewards_QR):
    """Takes note of the rewards of groups; NaN was not judged."""
    for i, rewards_R in zip(ids_Q.tolist(), rewards_QR, strict=True):
      judged = rewards_R[~np.isnan(rewards_R)]
      if not len(judged):
        continue
      passes, _, streak, _ = self._seen.get(i, [0, 0.0, 0, 0])
      rate = float(judged.mean())
      streak = streak + 1 if rate >= SOLVED else 0
      self._seen[i] = [passes, rate, streak, passes]

  def pools(self) -> dict[str, float]:
    """Metrics: how many questions are where."""
    names = [_pool(*entry[1:3]) for entry in self._seen.values()]
    return {
      f'pool/{name}': float(names.count(name))
      for name in ('hard', 'normal', 'easy', 'retired')
    } | {'pool/new': float(self.rows - len(names))}

  def get_state(self) -> dict:
    seen = {str(i): list(entry) for i, entry in sorted(self._seen.items())}
    return {'prompts': self._prompts.get_state(), 'seen': seen}

  def set_state(self, state: dict):
    self._prompts.set_state(state['prompts'])
    self._seen = {int(i): list(entry) for i, entry in state['seen'].items()}

  def _wanted(self, i: int) -> bool:
    if i not in self._seen:
      return True
    entry = self._seen[i]
    entry[0] += 1
    passes, rate, streak, retired = entry
    pool = _pool(rate, streak)
    if pool == 'retired':
      return passes - retired >= RETIRED_PASSES
    # Counted, not drawn from a stream: the same after a resume.
    draw = np.random.default_rng((self._seed, i, passes)).random()
    return pool == 'normal' or draw < RARE


class Lengths:
  """Prompts as `prompts` gives them, and how long their completions were.

  Its state holds the lengths of the last visits beside that of `prompts`, so
  that a resumed run starts its rollouts in the same order.
  """

  def __init__(self, prompts):
    self.rows = prompts.rows
    self._prompts = prompts
    self._seen = {}  # id: mean tokens

  def __iter__(self):
    return self

  def __next__(self) -> Prompts:
    return next(self._prompts)

  def observe(self, ids_Q, length_QR):
    """Takes note of the tokens of each completion of a question."""
    means = np.asarray(length_QR).mean(1).tolist()
    self._seen.update(zip(ids_Q.tolist(), means, strict=True))

  def expected(self, ids_Q) -> list[float]:
    """Tokens a completion; what was never asked counts as the mean does."""
    known = list(self._seen.values())
    usual = float(np.mean(known)) if known else 0.0
    return [self._seen.get(i, usual) for i in ids_Q.tolist()]

  def get_state(self) -> dict:
    seen = {str(i): n for i, n in sorted(self._seen.items())}
    return {'prompts': self._prompts.get_state(), 'lengths': seen}

  def set_state(self, state: dict):
    self._prompts.set_state(state['prompts'])
    self._seen = {int(i): n for i, n in state['lengths'].items()}


def _pool(rate: float, streak: int) -> str:
  if streak >= VISITS:
    return 'retired'
  if rate <= HARD:
    return 'hard'
  return 'easy' if rate > EASY else 'normal'
