import json

import numpy as np
import pytest

from crjax import curriculum, data

ROWS, QUESTIONS = 12, 4


def make(seed=0):
  """A curriculum over ROWS questions whose tokens are their ids."""

  def collate(rows):
    ids = np.array(rows, np.int32)
    tokens_QP = ids[:, None]
    return data.Prompts(
      tokens_QP, tokens_QP >= 0, ids, [{'id': i} for i in ids]
    )

  one = data.Batches(
    [list(range(ROWS))], collate, batch=1, seed=0, names=['test']
  )
  return curriculum.Curriculum(one, questions=QUESTIONS, seed=seed)


def ask(asked, rate, batches):
  """Ids that are asked where question i is solved with `rate(i)`."""
  ids = []
  for _ in range(batches):
    prompts = next(asked)
    ids += prompts.ids_Q.tolist()
    np.testing.assert_array_equal(prompts.tokens_QP[:, 0], prompts.ids_Q)
    assert [task['id'] for task in prompts.tasks] == prompts.ids_Q.tolist()
    rewards = [[1.0] * round(8 * rate(i)) for i in prompts.ids_Q]
    rewards_QR = np.array([r + [0.0] * (8 - len(r)) for r in rewards])
    asked.observe(prompts.ids_Q, rewards_QR)
  return ids


def test_at_first_everything_is_asked_once():
  ids = ask(make(), lambda i: 0.5, ROWS // QUESTIONS)
  assert sorted(ids) == list(range(ROWS))


def test_half_solved_questions_are_asked_at_every_pass_and_others_rarely():
  rate = lambda i: (0.0, 0.5, 0.85)[i % 3]
  asked = make()
  ids = ask(asked, rate, 60)
  count = np.bincount(ids, minlength=ROWS)
  normal, rare = count[1::3], np.delete(count, np.s_[1::3])
  assert normal.min() > 2 * rare.max()
  assert rare.min() > 0  # Parked questions are probed again.
  assert asked.pools() == {
    'pool/hard': 4,
    'pool/normal': 4,
    'pool/easy': 4,
    'pool/retired': 0,
    'pool/new': 0,
  }


def test_solved_twice_is_retired_and_probed_much_later():
  asked = make()
  ids = ask(asked, lambda i: 1.0 if i == 3 else 0.5, 40)
  visits = [n // ROWS for n, i in enumerate(ids) if i == 3]
  assert asked.pools()['pool/retired'] == 1
  assert 2 <= len(visits) <= 5
  passes = asked.get_state()['seen']['3'][0]
  assert passes > len(visits)


def test_where_all_is_retired_the_run_goes_on():
  ids = ask(make(), lambda i: 1.0, 30)
  assert len(ids) == 30 * QUESTIONS


def test_what_was_not_judged_is_not_observed():
  asked = make()
  prompts = next(asked)
  asked.observe(prompts.ids_Q, np.full((QUESTIONS, 8), np.nan))
  assert asked.pools()['pool/new'] == ROWS


@pytest.mark.parametrize('cut', [1, 7])
def test_a_resumed_curriculum_asks_what_the_whole_one_asks(cut):
  rate = lambda i: (0.0, 0.5, 1.0)[i % 3]
  whole = make()
  ask(whole, rate, cut)
  saved = json.loads(json.dumps(whole.get_state()))
  want = ask(whole, rate, 20)
  other = make()
  other.set_state(saved)
  assert ask(other, rate, 20) == want


def test_lengths_are_known_from_the_last_visit_and_kept():
  before = curriculum.Lengths(make())
  assert before.expected(np.array([3])) == [0.0]
  before.observe(np.array([3, 5]), [[2, 4], [10, 10]])
  before.observe(np.array([5]), [[8, 6]])
  ids_Q = np.array([5, 3, 9])
  assert before.expected(ids_Q) == [7.0, 3.0, 5.0]
  next(before)
  state = json.loads(json.dumps(before.get_state()))
  after = curriculum.Lengths(make())
  after.set_state(state)
  assert after.expected(ids_Q) == before.expected(ids_Q)
  np.testing.assert_array_equal(next(after).ids_Q, next(before).ids_Q)
