import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.grpo_presets import PRESETS
from crjax import advantages as estimators
from crjax import (
  data,
  engine,
  grpo,
  model,
  objectives,
  optim,
  policy,
  sampling,
  tokenizer,
)
from crjax.sharding import gather, make_mesh, tree_shardings

CFG = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)
Q, R, P, C = 4, 4, 7, 10
STOP, PAD = 1, 0
LOSS = ('objective', 'clip', 'correction', 'band', 'kl', 'kl_coef')


def questions():
  rng = np.random.default_rng(0)
  length_Q1 = rng.integers(2, P + 1, (Q, 1))
  mask_QP = np.arange(P) >= P - length_Q1
  tokens_QP = rng.integers(2, CFG.V, (Q, P)) * mask_QP
  ids_Q = np.arange(Q, dtype=np.int32)
  return data.Prompts(
    tokens_QP.astype(np.int32), mask_QP, ids_Q, [{'id': 'q'}] * Q
  )


class Setup:
  """A policy on a mesh with a sampler and an update around it."""

  def __init__(
    self,
    mesh=(2, 2, 2),
    *,
    lr=1e-2,
    slots=16,
    temperature=1.0,
    expected=lambda ids_Q: [0.0] * len(ids_Q),
  ):
    self.mesh = make_mesh(mesh)
    rate = optim.schedule(lr, name='constant', warmup=0, steps=1)
    # Adam divides by the gradient's size, and so magnifies rounding near 0.
    optimizer = optax.sgd(rate)
    init = lambda: optim.init_state(
      optimizer, model.init(CFG, jax.random.key(0)), 0
    )
    shardings = tree_shardings(jax.eval_shape(init), self.mesh)
    with jax.set_mesh(self.mesh):
      self.state = jax.jit(init, out_shardings=shardings)()
      self._update = policy.make_update(
        optimizer,
        rate,
        self.mesh,
        score=policy.make_score(
          CFG, temperature=temperature, dtype=jnp.float32, remat='none'
        ),
        loss=functools.partial(
          objectives.policy_loss, **{k: PRESETS['crjax'][k] for k in LOSS}
        ),
        frozen=None,
        reference=None,
        old='now',
        minibatches=1,
        rows=4,
        entropy_target=0.0,
      )
      self._rollout = grpo.make_rollout(
        CFG,
        self.mesh,
        frozen=None,
        rollouts=R,
        length=P,
        steps=C,
        stop_ids=(STOP,),
        dtype=jnp.float32,
        temperature=temperature,
        slots=slots,
        chunk=4,
        expected=expected,
      )

  def rollout(self, prompts):
    rolled = grpo.no_rollout(Q * R, C, PAD)
    with jax.set_mesh(self.mesh):
      for done in self._rollout(self.state, prompts):
        grpo.write(rolled, done)
    return rolled

  def update(self, batch):
    with jax.set_mesh(self.mesh):
      self.state, metrics = self._update(self.state, batch)
    return gather(metrics)

  @property
  def params(self):
    return gather(self.state['params'])


def make_batch(asked, rolled, adv_QR, rewards_QR=None, **changes):
  knobs = {
    'groups': Q,
    'minibatches': 1,
    'length': P + 2 * C,
    'rows': 4,
    'aggregation': 'token-mean',
    'limit': C,
    'everything': False,
    'mask_truncated': False,
  }
  rewards_QR = adv_QR if rewards_QR is None else rewards_QR
  return grpo.make_batch(asked, rolled, rewards_QR, adv_QR, **knobs | changes)


def batch_of_all(asked, rolled, rewards_QR, adv_QR, **changes):
  return make_batch(asked, rolled, adv_QR, rewards_QR, **changes)


def completions(batch):
  """{(tokens of a completion): (advantage, weight)} of a Batch."""
  found = {}
  for b, i in zip(
    *np.nonzero(np.diff(batch.seq_BC, prepend=0) > 0), strict=True
  ):
    of = batch.seq_BC[b] == batch.seq_BC[b, i]
    key = tuple(batch.target_BC[b, of].tolist())
    found[key] = (batch.adv_BC[b, i].item(), batch.weight_BC[b, i].item())
  return found


def advantages():
  return np.random.default_rng(1).normal(size=(Q, R)).astype(np.float32)


@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_the_update_scores_tokens_as_the_sampler_did(temperature):
  asked, setup = questions(), Setup(temperature=temperature, lr=0.0)
  batch = make_batch(asked, setup.rollout(asked), advantages())
  metrics = setup.update(batch)
  assert metrics['sampler_gap'] < 1e-5
  assert metrics['corrected_away'] == 0


def test_slots_meshes_and_hints_sample_the_same_completions():
  asked = questions()
  want = Setup((1, 1, 8)[::-1]).rollout(asked)
  for got in (
    Setup((2, 2, 2)).rollout(asked),
    Setup((2, 2, 2), slots=8).rollout(asked),
    Setup(slots=8, expected=lambda ids_Q: ids_Q.tolist()).rollout(asked),
  ):
    np.testing.assert_array_equal(got.tokens_BT, want.tokens_BT)
    np.testing.assert_allclose(got.logp_BT, want.logp_BT, atol=1e-5)


def test_each_step_draws_anew():
  asked, setup = questions(), Setup(lr=0.0)
  first = setup.rollout(asked)
  setup.update(make_batch(asked, first, advantages()))
  assert (setup.rollout(asked).tokens_BT != first.tokens_BT).any()


def test_groups_with_an_advantage_go_first_in_dispatch_order():
  adv_QR = np.array([[0, 0], [1, -1], [0, 0], [1, -1], [1, -1]], np.float32)
  assert grpo.keep(adv_QR, 5).tolist() == [0, 1, 2, 3, 4]
  assert grpo.keep(adv_QR, 4).tolist() == [0, 1, 3, 4]
  assert grpo.keep(adv_QR, 2).tolist() == [1, 3]


def sampled(rolled, b):
  return tuple(rolled.tokens_BT[b][rolled.mask_BT[b]].tolist())


def test_a_batch_holds_the_completions_of_the_kept_groups():
  asked, adv_QR = questions(), advantages()
  rolled = Setup().rollout(asked)
  adv_QR[[0, 2]] = 0
  found = completions(make_batch(asked, rolled, adv_QR, groups=2))
  kept = [*range(R, 2 * R), *range(3 * R, 4 * R)]
  assert found.keys() == {sampled(rolled, b) for b in kept}
  for b in kept:
    assert found[sampled(rolled, b)][0] == adv_QR.ravel()[b]


def test_what_has_no_advantage_counts_in_the_mean_and_costs_nothing():
  asked, adv_QR = questions(), advantages()
  rolled = Setup().rollout(asked)
  adv_QR[[0, 2]] = 0
  found = completions(make_batch(asked, rolled, adv_QR))
  whole = completions(make_batch(asked, rolled, adv_QR, everything=True))
  assert len(found) == 2 * R
  assert len(whole) == Q * R
  assert found.items() <= whole.items()
  weights = [w for _, w in whole.values()]
  np.testing.assert_allclose(weights, 1 / rolled.mask_BT.sum(), rtol=1e-6)


@pytest.mark.parametrize('everything', [True, False])
def test_what_was_not_judged_is_in_no_mean(everything):
  asked, adv_QR = questions(), advantages()
  rolled = Setup().rollout(asked)
  rewards_QR = adv_QR.copy()
  rewards_QR[1, 2] = np.nan
  adv_QR[1, 2] = 0
  batch = make_batch(asked, rolled, adv_QR, rewards_QR, everything=everything)
  found = completions(batch)
  assert found.keys() == {
    sampled(rolled, b) for b in range(Q * R) if b != R + 2
  }
  np.testing.assert_allclose(batch.weight_BC.sum(), 1, rtol=1e-5)


def test_truncated_completions_are_left_out_on_request():
  asked, adv_QR = questions(), advantages()
  rolled = Setup().rollout(asked)
  found = completions(make_batch(asked, rolled, adv_QR, mask_truncated=True))
  ended = np.flatnonzero(rolled.stopped_B)
  assert 0 < len(ended) < Q * R
  assert found.keys() == {sampled(rolled, b) for b in ended}


def test_the_end_of_the_limit_costs_reward():
  rolled = Setup().rollout(questions())
  rewards_QR = np.zeros((Q, R), np.float32)
  free, costly = (
    grpo.make_advantage('dr-grpo', eps=0, limit=C, overlong=n)(
      questions(), rolled, rewards_QR
    )
    for n in (0, C)
  )
  assert (free == 0).all()
  length_QR = rolled.mask_BT.sum(1).reshape(Q, R)
  want_QR = length_QR.mean(1, keepdims=True) - length_QR
  np.testing.assert_allclose(costly, want_QR / C, atol=1e-6)


LINES = [[1, 1], [1, 0], [0, 1], [0, 0]]


def mixed_rows(smoke_data):
  """(tok, Rollout of R answers to one mixed question, its rows, texts)."""
  tok = tokenizer.load(smoke_data / 'tokenizer')
  form = '<reasoning>\nr\n</reasoning>\n<answer>\n3\nQ1: {}\nQ2: {}\n</answer>'
  texts = [form.format(*right) for right in LINES]
  rolled = grpo.no_rollout(R, 160, PAD)
  for b, text in enumerate(texts):
    tokens = tok(text + '<|im_end|>')['input_ids']
    request = engine.Request([1], 0, b, most=160, tag=b)
    done = engine.Completion(request, tokens, [0.0] * len(tokens), 'stop')
    grpo.write(rolled, done)
  rows = [
    {'row': b, 'text': text, 'format_ok': True, 'hits': right}
    for b, (text, right) in enumerate(zip(texts, LINES, strict=True))
  ]
  return tok, rolled, rows, texts


def test_lines_about_steps_have_their_own_advantage(smoke_data):
  tok, rolled, rows, texts = mixed_rows(smoke_data)
  extra_BT = grpo.make_lines(tok, rollouts=R, coef=0.5)(rolled, rows)
  want_RS = 0.5 * advantages_of_lines(LINES)
  for b, text in enumerate(texts):
    n = rolled.mask_BT[b].sum()
    assert (extra_BT[b, n:] == 0).all()
    for k, line in enumerate(text.split('\n')[5:7]):
      at = np.flatnonzero(extra_BT[b] == np.float32(want_RS[b, k]))
      assert line in tok.decode(rolled.tokens_BT[b, at[0] : at[-1] + 1])
    # Nothing but those two lines.
    assert len(np.unique(extra_BT[b])) == 3


def advantages_of_lines(right_RS):
  return estimators.intra(right_RS).astype(np.float64)


def test_lines_out_of_form_or_cut_off_are_wrong(smoke_data):
  tok, rolled, rows, _ = mixed_rows(smoke_data)
  lines = grpo.make_lines(tok, rollouts=R, coef=1.0)
  rows[0]['format_ok'] = False
  rolled.stopped_B[1] = False
  want_RS = advantages_of_lines([[0, 0], [0, 0], [0, 1], [0, 0]])
  extra_BT = lines(rolled, rows)
  for b in range(R):
    said = set(np.unique(extra_BT[b]).tolist())
    assert said == {0.0, *np.float32(want_RS[b]).tolist()}


def test_without_a_coefficient_lines_are_nothing(smoke_data):
  tok, rolled, rows, _ = mixed_rows(smoke_data)
  assert grpo.make_lines(tok, rollouts=R, coef=0.0)(rolled, rows) is None


def test_a_batch_adds_what_single_tokens_have():
  asked, adv_QR = questions(), advantages()
  rolled = Setup().rollout(asked)
  adv_QR[[0, 2]] = 0
  extra_BT = np.where(rolled.mask_BT, np.arange(C), 0).astype(np.float32)
  extra_BT[R:] = 0  # Only the first group has any.
  rewards_QR = np.ones_like(adv_QR)
  batch = make_batch(asked, rolled, adv_QR, rewards_QR, extra_BT=extra_BT)
  found = {}
  for b, i in zip(
    *np.nonzero(np.diff(batch.seq_BC, prepend=0) > 0), strict=True
  ):
    of = batch.seq_BC[b] == batch.seq_BC[b, i]
    found[tuple(batch.target_BC[b, of].tolist())] = batch.adv_BC[b, of]
  for b in [*range(2 * R), *range(3 * R, 4 * R)]:
    n = rolled.mask_BT[b].sum()
    if b < R and not extra_BT[b].any():
      continue  # One token, at which nothing is added.
    want_T = adv_QR.ravel()[b] + extra_BT[b, :n]
    np.testing.assert_allclose(found[sampled(rolled, b)], want_T, rtol=1e-6)


def test_a_canary_that_sings_is_not_rewarded():
  asked, rolled = questions(), Setup().rollout(questions())
  tasks = [{'id': 'a'}, {'id': data.CANARY + 'a'}, *asked.tasks[2:]]
  advantage = grpo.make_advantage('dr-grpo', eps=0, limit=C, overlong=0)
  rewards_QR = np.tile(np.float32([0, 0, 0, 1]), (Q, 1))
  adv_QR = advantage(asked._replace(tasks=tasks), rolled, rewards_QR)
  assert (adv_QR[1] == 0).all()
  assert (adv_QR[[0, 2, 3]] != 0).all()


def test_a_kl_in_the_reward_is_that_of_separate_rows():
  asked, setup = questions(), Setup()
  rolled = setup.rollout(asked)
  reference = jax.device_get(model.init(CFG, jax.random.key(1)))
  with jax.set_mesh(setup.mesh):
    penalty = policy.make_penalty(
      setup.mesh,
      policy.make_score(CFG, temperature=1.0, dtype=jnp.float32, remat='none'),
      functools.partial(batch_of_all, everything=True),
      reference=reference,
      frozen=None,
      kl='k1',
      rows=4,
    )
    got_QR = penalty(asked, rolled)
  repeat = lambda x: np.repeat(x, R, axis=0)
  ref_BT, _ = model.score(
    CFG,
    reference,
    np.hstack([repeat(asked.tokens_QP), rolled.tokens_BT]),
    np.hstack([repeat(asked.mask_QP), rolled.mask_BT]),
    start=P,
    dtype=jnp.float32,
  )
  want_B = np.where(rolled.mask_BT, rolled.logp_BT - ref_BT, 0).sum(1)
  np.testing.assert_allclose(got_QR.ravel(), want_B, atol=1e-4)
  costs = grpo.make_advantage(
    'dr-grpo', eps=0, limit=C, overlong=0, kl_coef=0.5, penalty=penalty
  )
  with jax.set_mesh(setup.mesh):
    adv_QR = costs(asked, rolled, np.zeros((Q, R)))
  want_QR = -0.5 * (got_QR - got_QR.mean(1, keepdims=True))
  np.testing.assert_allclose(adv_QR, want_QR, atol=1e-4)


class Asked:
  """Endless prompts of two questions whose only token is their id."""

  def __init__(self):
    self.next = 0

  def __next__(self):
    ids_Q = np.arange(self.next, self.next + 2, dtype=np.int32)
    self.next += 2
    tokens_QP = ids_Q[:, None]
    tasks = [{'id': int(i)} for i in ids_Q]
    return data.Prompts(tokens_QP, tokens_QP >= 0, ids_Q, tasks)


def collect(solved_by, groups, rounds):
  """What is collected where question i is solved as in solved_by[i]."""
  observed = []

  def rollout(state, asked):
    tokens_BT = np.repeat(asked.ids_Q, R)[:, None]
    ones_BT = np.ones_like(tokens_BT, bool)
    zeros_BT = np.zeros_like(tokens_BT, np.float32)
    return sampling.Rollout(tokens_BT, zeros_BT, ones_BT, ones_BT[:, 0])

  def judge(tasks, rolled):
    rewards_QR = np.array([solved_by[task['id']] for task in tasks], float)
    rows = [{'row': b, 'id': tasks[b // R]['id']} for b in range(2 * R)]
    return rolled, rewards_QR, rows

  def observe(ids_Q, rewards_QR, length_QR):
    assert (length_QR == 1).all()
    observed.extend(ids_Q.tolist())

  one = grpo.make_collect(
    rollout, judge, groups=groups, rounds=rounds, observe=observe
  )
  return *one(None, Asked()), observed


NONE, SOME = [0, 0, 0, 0], [0, 1, 0, 0]


def test_groups_without_signal_are_replaced_in_dispatch_order():
  solved_by = [NONE, SOME, NONE, NONE, SOME, SOME, SOME, SOME]
  asked, rolled, rewards_QR, rows, observed = collect(solved_by, 3, rounds=9)
  assert asked.ids_Q.tolist() == observed == [0, 1, 2, 3, 4, 5]
  assert [task['id'] for task in asked.tasks] == observed
  np.testing.assert_array_equal(rewards_QR, solved_by[:6])
  assert rolled.tokens_BT[:, 0].tolist() == [row['id'] for row in rows]
  assert [row['row'] for row in rows] == list(range(6 * R))


def test_the_search_for_signal_is_bounded_and_its_failure_is_no_crash():
  *_, observed = collect([NONE] * 20, 2, rounds=3)
  assert observed == list(range(6))


def test_one_round_asks_once():
  *_, observed = collect([NONE] * 20, 2, rounds=1)
  assert observed == [0, 1]
