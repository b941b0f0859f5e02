import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crjax import data, grpo, model, optim
from crjax.sharding import gather, make_mesh, tree_shardings

CFG = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)
Q, R, P, C = 4, 4, 7, 10
STOP, PAD = 1, 0


def questions():
  rng = np.random.default_rng(0)
  length_Q1 = rng.integers(2, P + 1, (Q, 1))
  mask_QP = np.arange(P) >= P - length_Q1
  tokens_QP = rng.integers(2, CFG.V, (Q, P)) * mask_QP
  ids_Q = np.arange(Q, dtype=np.int32)
  return data.Prompts(tokens_QP.astype(np.int32), mask_QP, ids_Q, [{}] * Q)


class Setup:
  """A policy on a mesh with a sampler and an update around it."""

  def __init__(self, mesh=(2, 2, 2), *, lr=1e-2, waves=1, temperature=1.0, **k):
    self.mesh = make_mesh(mesh)
    rate = optim.schedule(lr, name='constant', warmup=0, steps=1)
    # Adam divides by the gradient's size, and so magnifies rounding near 0.
    optimizer = optax.sgd(rate)
    init = lambda: optim.init_state(
      optimizer, model.init(CFG, jax.random.key(0)), 0
    )
    abstract = jax.eval_shape(init)
    shardings = tree_shardings(abstract, self.mesh)
    knobs = {
      'frozen': None,
      'reference': None,
      'minibatches': 1,
      'micro': 1,
      'temperature': temperature,
      'clip': (0.2, 0.28),
      'band': (0.5, 5.0),
      'kl_coef': 0.0,
      'dtype': jnp.float32,
      'remat': 'none',
    }
    with jax.set_mesh(self.mesh):
      self.state = jax.jit(init, out_shardings=shardings)()
      if k.get('kl_coef'):
        k['reference'] = jax.tree.map(jnp.copy, self.state['params'])
      self._update = grpo.make_update(
        CFG, optimizer, rate, self.mesh, **knobs | k
      )
      self._rollout = grpo.make_rollout(
        CFG,
        self.mesh,
        frozen=None,
        rollouts=R,
        steps=C,
        stop_ids=(STOP,),
        pad_id=PAD,
        dtype=jnp.float32,
        temperature=temperature,
        waves=waves,
      )

  def rollout(self, prompts):
    with jax.set_mesh(self.mesh):
      waves = gather(self._rollout(self.state, prompts))
    return type(waves[0])(*map(np.concatenate, zip(*waves, strict=True)))

  def update(self, batch):
    with jax.set_mesh(self.mesh):
      self.state, metrics = self._update(self.state, batch)
    return gather(metrics)

  @property
  def params(self):
    return gather(self.state['params'])


def make_batch(*args, groups=Q, **kwargs):
  return grpo.make_batch(*args, groups=groups, **kwargs)


def advantages():
  return np.random.default_rng(1).normal(size=(Q, R)).astype(np.float32)


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b
  )


@pytest.mark.parametrize('temperature', [1.0, 0.6])
def test_the_update_scores_tokens_as_the_sampler_did(temperature):
  asked, setup = questions(), Setup(temperature=temperature, lr=0.0)
  batch = make_batch(asked, setup.rollout(asked), advantages())
  metrics = setup.update(batch)
  assert metrics['sampler_gap'] < 1e-5
  assert metrics['icepop_dropped'] == 0


def test_waves_and_meshes_sample_the_same_completions():
  asked = questions()
  want = Setup((1, 1, 8)[::-1]).rollout(asked)
  for got in (
    Setup((2, 2, 2)).rollout(asked),
    Setup((2, 2, 2), waves=4).rollout(asked),
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


def test_a_batch_holds_the_rows_of_the_kept_groups():
  asked, rolled, adv_QR = (
    questions(),
    Setup().rollout(questions()),
    advantages(),
  )
  adv_QR[[0, 2]] = 0
  whole = make_batch(asked, rolled, adv_QR)
  half = make_batch(asked, rolled, adv_QR, groups=2)
  rows = np.r_[R : 2 * R, 3 * R : 4 * R]
  np.testing.assert_array_equal(half.adv_B, whole.adv_B[rows])
  valid = lambda b, i: b.tokens_BT[i][b.valid_BT[i]].tolist()
  assert [valid(half, i) for i in range(2 * R)] == [
    valid(whole, i) for i in rows
  ]


def test_unused_columns_are_cut_and_change_nothing(multiple=4):
  asked, one, other = questions(), Setup(), Setup()
  wide = data.Prompts(
    *(np.pad(x, ((0, 0), (9, 0))) for x in asked[:2]), *asked[2:]
  )
  rolled, adv_QR = one.rollout(asked), advantages()
  small = make_batch(wide, rolled, adv_QR, multiple=multiple)
  used = asked.mask_QP.any(0).sum()
  assert small.tokens_BT.shape[1] - small.mask_BC.shape[1] == min(
    -(-used // multiple) * multiple, P + 9
  )
  one.update(small)
  other.update(make_batch(asked, rolled, adv_QR, multiple=64))
  assert_close(one.params, other.params)


def test_without_advantage_nothing_moves():
  asked, setup = questions(), Setup()
  before = setup.params
  zero_QR = np.zeros((Q, R), np.float32)
  metrics = setup.update(make_batch(asked, setup.rollout(asked), zero_QR))
  assert metrics['grad_norm'] == 0
  assert_close(setup.params, before, 0)


def test_an_update_raises_what_was_rewarded():
  asked, setup = questions(), Setup()
  rolled, adv_QR = setup.rollout(asked), advantages()
  batch = make_batch(asked, rolled, adv_QR)

  def logp_B():
    logp_BC, _ = model.score(
      CFG,
      setup.params,
      batch.tokens_BT,
      batch.valid_BT,
      start=batch.tokens_BT.shape[1] - batch.mask_BC.shape[1],
      dtype=jnp.float32,
    )
    return (np.asarray(logp_BC) * batch.mask_BC).sum(1)

  before = logp_B()
  setup.update(batch)
  assert ((logp_B() - before) * adv_QR.ravel()).sum() > 0


@pytest.mark.parametrize(
  ('mesh', 'micro'), [((8, 1, 1), 1), ((1, 8, 1), 2), ((1, 4, 2), 1)]
)
def test_update_does_not_depend_on_mesh_or_slices(mesh, micro):
  asked, reference = questions(), Setup()
  batch = make_batch(asked, reference.rollout(asked), advantages())
  other = Setup(mesh, micro=micro)
  want, got = reference.update(batch), other.update(batch)
  assert_close(other.params, reference.params)
  assert got['loss'] == pytest.approx(want['loss'], abs=1e-5)


def test_second_minibatch_sees_a_moved_policy_and_its_own_old_logp():
  asked, setup = questions(), Setup(minibatches=2, lr=0.1)
  batch = make_batch(asked, setup.rollout(asked), advantages())
  metrics = setup.update(batch)
  assert int(gather(setup.state['step'])) == 1
  # The old log-probs are those from before the first update, hence no drift.
  assert metrics['sampler_gap'] < 1e-5
  assert metrics['clip_low'] + metrics['clip_high'] > 0


def test_kl_to_the_reference_starts_at_zero_and_pulls_back():
  asked, setup = questions(), Setup(kl_coef=1.0)
  rolled, adv_QR = setup.rollout(asked), advantages()
  batch = make_batch(asked, rolled, adv_QR)
  first = setup.update(batch)
  assert first['kl_ref'] == pytest.approx(0, abs=1e-6)
  free = make_batch(asked, rolled, np.zeros_like(adv_QR))
  moved = setup.update(free)
  assert moved['kl_ref'] > 0
  for _ in range(20):
    last = setup.update(free)
  assert last['kl_ref'] < moved['kl_ref']
