import numpy as np
import pytest

from crjax import branches

RNG = np.random.default_rng(0)


def completions(questions=5, rollouts=4, prompt=9, most=12):
  """Random completions of questions with prompts of 1 to `prompt` tokens."""
  made = []
  for q in range(questions):
    tokens = RNG.integers(2, 99, RNG.integers(1, prompt + 1))
    for _ in range(rollouts):
      n = RNG.integers(1, most + 1)
      adv, weight = RNG.normal(size=2)
      made.append(
        branches.Completion(
          q, tokens, RNG.integers(2, 99, n), -RNG.random(n), adv, weight
        )
      )
  return made


def read_back(batch, b):
  """The completions of row b, from the arrays that a model reads."""
  found = []
  for seq in range(1, batch.seq_BC[b].max(initial=0) + 1):
    out = np.flatnonzero(batch.seq_BC[b] == seq)
    first = batch.index_BC[b, out[0]]
    group = batch.group_BT[b, first]
    trunk = (batch.group_BT[b] == group) & (batch.branch_BT[b] == 0)
    inputs = batch.branch_BT[b] == seq
    assert (batch.group_BT[b, inputs] == group).all()
    assert (batch.index_BC[b, out] == np.flatnonzero(inputs)).all()
    seen = trunk | inputs
    np.testing.assert_array_equal(batch.pos_BT[b, seen], np.arange(seen.sum()))
    target = batch.target_BC[b, out]
    np.testing.assert_array_equal(batch.tokens_BT[b, inputs][1:], target[:-1])
    prompt = [*batch.tokens_BT[b, trunk], batch.tokens_BT[b, first]]
    found.append(
      (
        tuple(prompt),
        tuple(target),
        tuple(batch.logp_BC[b, out]),
        *{*batch.adv_BC[b, out]},
        *{*batch.weight_BC[b, out]},
      )
    )
  return found


def as_written(c):
  f32 = np.float32
  return (
    tuple(c.prompt),
    tuple(c.tokens),
    tuple(c.logp.astype(f32)),
    f32(c.adv),
    f32(c.weight),
  )


@pytest.mark.parametrize('chunks', [branches.shared, branches.alone])
@pytest.mark.parametrize('length', [21, 40, 200])
@pytest.mark.parametrize('rows', [1, 3])
def test_every_completion_stands_once_behind_its_prompt(chunks, length, rows):
  made = completions()
  batch = branches.pack([made], length=length, rows=rows, chunks=chunks)
  found = [c for b in range(len(batch.seq_BC)) for c in read_back(batch, b)]
  assert sorted(found) == sorted(map(as_written, made))
  assert len(batch.seq_BC) % rows == 0


def test_a_prompt_is_shared_by_as_many_as_fit():
  made = completions(rollouts=6)
  wide = branches.pack([made], length=200, rows=1)
  trunks = (wide.branch_BT == 0) & (wide.group_BT > 0)
  prompts = {c.question: len(c.prompt) - 1 for c in made}
  assert trunks.sum() == sum(prompts.values())
  alone = branches.pack([made], length=200, rows=1, chunks=branches.alone)
  trunks = (alone.branch_BT == 0) & (alone.group_BT > 0)
  assert trunks.sum() == 6 * sum(prompts.values())


def test_updates_and_slices_stay_apart():
  made = completions(questions=8)
  halves = [made[: len(made) // 2], made[len(made) // 2 :]]
  rows = 2
  batch = branches.pack(halves, length=30, rows=rows)
  B = len(batch.seq_BC)
  for m, half in enumerate(halves):
    found = [c for b in range(m, B, 2) for c in read_back(batch, b)]
    assert sorted(found) == sorted(map(as_written, half))
  slices = B // rows // 2
  assert slices & (slices - 1) == 0
  # Empty slices come last: a slice in use has no empty slice before it.
  used = [(batch.seq_BC[j * 2 :: slices * 2] > 0).any() for j in range(slices)]
  assert used == sorted(used, reverse=True)


def test_no_completion_at_all_is_one_empty_slice():
  batch = branches.pack([[], []], length=30, rows=4)
  assert batch.tokens_BT.shape == (8, 30)
  assert not batch.seq_BC.any()


def test_a_row_that_is_too_short_is_named():
  with pytest.raises(
    ValueError, match=r'do not fit a row of 9; set config\.row'
  ):
    branches.pack([completions()], length=9, rows=1)


LENGTHS = np.array([[3, 0, 5], [2, 2, 2], [0, 0, 0]])


@pytest.mark.parametrize('name', branches.AGGREGATIONS)
def test_an_aggregation_is_the_mean_it_is_named_after(name):
  loss = {
    (q, r): RNG.normal(size=LENGTHS[q, r]) for q in range(3) for r in range(3)
  }
  counted = [x for x in loss.values() if len(x)]
  limit = 7
  want = {
    'token-mean': np.concatenate(counted).mean(),
    'sequence-mean': np.mean([x.mean() for x in counted]),
    'prompt-mean': np.mean(
      [np.concatenate([loss[q, r] for r in range(3)]).mean() for q in range(2)]
    ),
    'length-normalised': np.mean([x.sum() / limit for x in counted]),
  }[name]
  weight_QR = branches.AGGREGATIONS[name](LENGTHS, limit)
  got = sum(weight_QR[k] * x.sum() for k, x in loss.items())
  assert got == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize('name', branches.AGGREGATIONS)
def test_nothing_to_count_is_finite(name):
  weight_QR = branches.AGGREGATIONS[name](np.zeros((2, 2), int), 5)
  assert np.isfinite(weight_QR).all()
