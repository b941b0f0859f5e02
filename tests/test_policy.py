"""The update: equal to separate rows, whatever the slices and the mesh."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.grpo_presets import PRESETS
from crjax import attention, branches, model, objectives, optim, policy
from crjax.sharding import gather, make_mesh, tree_shardings

CFG = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)
Q, R, P, C = 4, 4, 7, 10
LENGTH, ROWS = P + 2 * C, 4
LOSS = ('objective', 'clip', 'correction', 'band', 'kl', 'kl_coef')


def completions(seed=0, questions=Q, scale=1.0):
  """Random completions, with log-probs as of a uniform sampler."""
  rng = np.random.default_rng(seed)
  made = []
  for q in range(questions):
    prompt = rng.integers(2, CFG.V, rng.integers(2, P + 1))
    for _ in range(R):
      n = rng.integers(1, C + 1)
      tokens = rng.integers(2, CFG.V, n)
      logp = np.full(n, -np.log(CFG.V)) + 0.1 * rng.normal(size=n)
      adv = scale * rng.normal()
      made.append(branches.Completion(q, prompt, tokens, logp, adv, 0.0))
  weight = 1 / sum(len(c.tokens) for c in made)
  return [c._replace(weight=weight) for c in made]


def pack(updates, length=LENGTH, rows=ROWS, chunks=None):
  return branches.pack(updates, length=length, rows=rows, chunks=chunks)


@functools.cache
def first_params():
  return jax.device_get(model.init(CFG, jax.random.key(0)))


class Setup:
  """A policy on a mesh and its update, `choices` beside the default's."""

  def __init__(self, mesh=(2, 2, 2), *, lr=1e-2, rows=ROWS, **choices):
    devices = jax.devices()[: np.prod(mesh)]
    self.mesh = make_mesh(mesh, devices)
    rate = optim.schedule(lr, name='constant', warmup=0, steps=1)
    # Adam divides by the gradient's size, and so magnifies rounding near 0.
    optimizer = optax.sgd(rate)
    scalars = ('entropy_coef',) if choices.get('entropy_target') else ()
    init = lambda params: optim.init_state(
      optimizer, params, 0, scalars=scalars
    )
    shapes = jax.eval_shape(init, first_params())
    shardings = tree_shardings(shapes, self.mesh)
    loss = {k: choices.pop(k, PRESETS['crjax'][k]) for k in LOSS}
    with jax.set_mesh(self.mesh):
      self.state = jax.jit(init, out_shardings=shardings)(first_params())
      reference = None
      if loss['kl_coef']:
        reference = jax.tree.map(jnp.copy, self.state['params'])
      self._update = policy.make_update(
        optimizer,
        rate,
        self.mesh,
        score=policy.make_score(
          CFG, temperature=1.0, dtype=jnp.float32, remat='none'
        ),
        loss=functools.partial(objectives.policy_loss, **loss),
        rows=rows,
        **{
          'frozen': None,
          'reference': reference,
          'old': 'now',
          'minibatches': 1,
          'entropy_target': 0.0,
        }
        | choices,
      )

  def update(self, batch):
    with jax.set_mesh(self.mesh):
      self.state, metrics = self._update(self.state, batch)
    return {k: float(x) for k, x in gather(metrics).items()}

  @property
  def params(self):
    return gather(self.state['params'])


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b
  )


@jax.jit
def separate(params, tokens_BT, valid_BT):
  """Log-probs and entropies of what follows the first token of each row."""
  return model.score(CFG, params, tokens_BT, valid_BT, dtype=jnp.float32)


def separate_rows(made):
  """(tokens_BT, valid_BT, weight_BT of predictions): a completion a row."""
  tokens_BT = np.zeros((len(made), P + C), np.int32)
  valid_BT = np.zeros((len(made), P + C), bool)
  weight_BT = np.zeros((len(made), P + C), np.float32)
  for b, c in enumerate(made):
    first, end = len(c.prompt), len(c.prompt) + len(c.tokens)
    tokens_BT[b, :end] = np.concatenate([c.prompt, c.tokens])
    valid_BT[b, :end] = True
    weight_BT[b, first:end] = c.adv * c.weight
  return tokens_BT, valid_BT, weight_BT[:, 1:]


def test_log_probs_and_gradients_are_those_of_separate_rows():
  made = completions()
  batch = jax.tree.map(jnp.asarray, pack([made]))
  score = policy.make_score(
    CFG, temperature=1.0, dtype=jnp.float32, remat='none'
  )

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def packed(params):
    logp_BC, entropy_BC = score(params, batch, None)
    weight_BC = batch.adv_BC * batch.weight_BC
    return (weight_BC * logp_BC).sum(), (logp_BC, entropy_BC)

  tokens_BT, valid_BT, weight_BT = separate_rows(made)

  @functools.partial(jax.value_and_grad, has_aux=True)
  def alone(params):
    logp_BT, entropy_BT = separate(params, tokens_BT, valid_BT)
    return (weight_BT * logp_BT).sum(), (logp_BT, entropy_BT)

  (_, got), grads = packed(first_params())
  (_, want), want_grads = alone(first_params())
  assert_close(grads, want_grads)
  of = lambda x_BT, b: x_BT[b][weight_BT[b] != 0]
  targets_BT = tokens_BT[:, 1:]
  for b in range(len(made)):
    row, seq = next(
      (row, seq)
      for row in range(len(batch.seq_BC))
      for seq in range(1, int(batch.seq_BC[row].max()) + 1)
      if np.array_equal(
        batch.target_BC[row, batch.seq_BC[row] == seq], of(targets_BT, b)
      )
    )
    at = batch.seq_BC[row] == seq
    for x_BC, x_BT in zip(got, want, strict=True):
      np.testing.assert_allclose(x_BC[row, at], of(x_BT, b), atol=1e-5)


@pytest.mark.parametrize('block', [8, 13])
def test_attention_by_blocks_is_attention(block):
  batch = pack([completions()])
  B, T = batch.tokens_BT.shape
  mask_BTS = attention.visible(
    jnp.arange(T), batch.group_BT, batch.group_BT, batch.branch_BT
  )
  keys = jax.random.split(jax.random.key(0), 4)
  q_BTNH, w_BTNH = (jax.random.normal(k, (B, T, 4, 8)) for k in keys[:2])
  k_BKSH, v_BKSH = (jax.random.normal(k, (B, 2, T, 8)) for k in keys[2:])
  w_BTNH *= (batch.group_BT > 0)[..., None, None]  # Padding sees anything.
  blocks = functools.partial(attention.attend_blocks, block=block)

  @functools.partial(jax.jit, static_argnums=0)
  def value_and_grad(attend, *qkv):
    total = lambda q, k, v: (w_BTNH * attend(q, k, v, mask_BTS)).sum()
    return jax.value_and_grad(total, (0, 1, 2))(*qkv)

  got, want = (
    value_and_grad(f, q_BTNH, k_BKSH, v_BKSH)
    for f in (blocks, attention.attend)
  )
  assert_close(got[1], want[1])
  assert float(got[0]) == pytest.approx(float(want[0]), abs=1e-3)


@functools.cache
def wanted():
  """(parameters, metrics) after one update of `completions` on 8 devices."""
  setup = Setup(kl_coef=0.1)
  metrics = setup.update(pack([completions()]))
  return setup.params, metrics


@pytest.mark.parametrize(
  'mesh',
  [
    (1, 1, 1),
    (8, 1, 1),
    (1, 4, 2),
    pytest.param((2, 1, 1), marks=pytest.mark.slow),
    pytest.param((1, 8, 1), marks=pytest.mark.slow),
  ],
)
def test_an_update_does_not_depend_on_the_devices(mesh):
  other = Setup(mesh, kl_coef=0.1)
  got = other.update(pack([completions()]))
  assert_close(other.params, wanted()[0])
  assert got == pytest.approx(wanted()[1], abs=1e-5)


@pytest.mark.parametrize(
  ('length', 'rows', 'chunks'),
  [
    (P + C, 4, None),  # Narrow rows: a group is split over several.
    (4 * LENGTH, 1, None),  # Several groups a row, slice by slice.
    (P + C, 8, branches.alone),  # Nothing is shared.
  ],
)
def test_an_update_does_not_depend_on_rows_and_slices(length, rows, chunks):
  other = Setup((1, 1, 1), rows=rows, kl_coef=0.1)
  got = other.update(pack([completions()], length, rows, chunks))
  assert_close(other.params, wanted()[0])
  assert got == pytest.approx(wanted()[1], abs=1e-5)


def test_an_update_does_not_depend_on_the_order_of_samples():
  made = completions()
  order = np.random.default_rng(0).permutation(Q)
  groups = [made[q * R : (q + 1) * R][::-1] for q in order]
  other = Setup((1, 1, 1), kl_coef=0.1)
  other.update(pack([[c for group in groups for c in group]]))
  assert_close(other.params, wanted()[0])


def test_without_advantage_nothing_moves():
  setup = Setup()
  metrics = setup.update(pack([completions(scale=0.0)]))
  assert metrics['grad_norm'] == 0
  assert_close(setup.params, first_params(), 0)


def test_without_a_completion_nothing_moves():
  setup = Setup()
  metrics = setup.update(pack([[]]))
  assert_close(setup.params, first_params(), 0)
  assert all(np.isfinite(x) for x in metrics.values())


def test_an_update_raises_what_was_rewarded():
  made, setup = completions(), Setup()
  setup.update(pack([made]))
  tokens_BT, valid_BT, weight_BT = separate_rows(made)
  now, before = (
    (separate(params, tokens_BT, valid_BT)[0] * weight_BT).sum()
    for params in (setup.params, first_params())
  )
  assert now > before


def test_second_minibatch_sees_a_moved_policy_and_its_own_old_logp():
  made, setup = completions(), Setup(minibatches=2, lr=3.0, old='scored')
  halves = [made[: Q * R // 2], made[Q * R // 2 :]]
  metrics = setup.update(pack(halves))
  assert int(gather(setup.state['step'])) == 1
  # The second update begins where the policy is no longer its old one.
  assert metrics['clip_low'] + metrics['clip_high'] > 0
  still = Setup(minibatches=2, lr=0.0, old='scored').update(pack(halves))
  assert still['clip_low'] + still['clip_high'] == 0
  # Old log-probs are those from before the first update, hence no drift.
  assert metrics['sampler_gap'] == pytest.approx(still['sampler_gap'], abs=1e-5)


def test_ratios_to_the_sampler_see_its_numerics():
  far = [c._replace(logp=c.logp - 1.0) for c in completions()]
  bypass = Setup(old='sampler', correction='none').update(pack([far]))
  assert bypass['clip_high'] > 0.2
  assert bypass['sampler_gap'] == 0
  now = Setup(correction='none').update(pack([far]))
  assert now['clip_high'] == 0
  assert now['sampler_gap'] > 0.5


def test_kl_to_the_reference_starts_at_zero_and_pulls_back():
  setup = Setup(kl_coef=1.0)
  first = setup.update(pack([completions()]))
  assert first['kl_ref'] == pytest.approx(0, abs=1e-6)
  free = pack([completions(scale=0.0)])
  moved = setup.update(free)
  assert moved['kl_ref'] > 0
  for _ in range(20):
    last = setup.update(free)
  assert last['kl_ref'] < moved['kl_ref']


def test_entropy_is_steered_towards_its_target():
  batch = pack([completions(scale=0.0)])
  high, low = (Setup(entropy_target=t, lr=1.0) for t in (9.0, 0.1))
  entropy = [high.update(batch)['entropy'] for _ in range(5)]
  assert entropy[-1] > entropy[0]
  assert float(gather(high.state['entropy_coef'])) == pytest.approx(0.025)
  low.update(batch)
  assert float(gather(low.state['entropy_coef'])) == 0


def temporary_bytes(V, T=4096):
  """What the gradient of one row a device needs beside its arguments."""
  cfg = dataclasses.replace(CFG, V=V, L=1)
  mesh = make_mesh((1, 8, 1))
  score = policy.make_score(
    cfg, temperature=1.0, dtype=jnp.float32, remat='full'
  )
  choices = {k: PRESETS['crjax'][k] for k in LOSS}

  def loss(params, batch):
    logp_BC, entropy_BC = score(params, batch, None)
    old_BC, ref_BC = jax.lax.stop_gradient(logp_BC), batch.ref_logp_BC
    rest = (batch.logp_BC, batch.adv_BC, batch.weight_BC, batch.seq_BC)
    return objectives.policy_loss(
      logp_BC, entropy_BC, old_BC, ref_BC, *rest, **choices
    )[0]

  shapes = jax.eval_shape(functools.partial(model.init, cfg), jax.random.key(0))
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    tree_shardings(shapes, mesh),
  )
  rows = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  batch = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct((8, T), x.dtype, sharding=rows),
    pack([[]]),
  )
  with jax.set_mesh(mesh):
    compiled = jax.jit(jax.grad(loss)).lower(abstract, batch).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_the_vocabulary():
  small, large = temporary_bytes(16_384), temporary_bytes(152_064)
  logits = 4 * 4096 * 152_064
  print(f'temporary MB a device: {small / 1e6:.0f} of V=16,384, ', end='')
  print(f'{large / 1e6:.0f} of V=152,064; its logits are {logits / 1e6:.0f}')
  assert large < 1.1 * small
  assert large < logits / 2
