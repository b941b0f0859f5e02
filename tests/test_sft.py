import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crjax import data, model, optim, sft
from crjax.sharding import gather, make_mesh, put, tree_shardings

CFG = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)


def examples(B=8, T=12):
  rng = np.random.default_rng(0)
  tokens_BT = rng.integers(0, CFG.V, (B, T)).astype(np.int32)
  start_B1 = rng.integers(1, T // 2, (B, 1))
  stop_B1 = rng.integers(T // 2, T + 1, (B, 1))
  at_T = np.arange(T)
  mask_BT = (at_T >= start_B1) & (at_T < stop_B1)
  return data.Examples(tokens_BT, mask_BT, np.ones((B, T), np.int32))


def step(batch, *, mesh=(8, 1, 1), micro=1, dtype=jnp.float32, remat='none'):
  """One update from seed 0 on a mesh; returns (params, metrics) on the host."""
  mesh = make_mesh(mesh)
  rate = optim.schedule(1e-2, name='constant', warmup=0, steps=1)
  # Adam divides by the gradient's size, and so magnifies rounding near 0.
  optimizer = optax.sgd(rate, momentum=0.9)
  init = lambda: optim.init_state(
    optimizer, model.init(CFG, jax.random.key(0)), 0
  )
  shardings = tree_shardings(jax.eval_shape(init), mesh)
  update = sft.make_update(
    CFG,
    optimizer,
    rate,
    frozen=None,
    micro=micro,
    dtype=dtype,
    remat=remat,
  )
  with jax.set_mesh(mesh):
    state = jax.jit(init, out_shardings=shardings)()
    state, metrics = update(state, put(mesh, batch))
  return gather(state), gather(metrics)


def assert_close(a, b, tolerance=1e-5):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance), a, b
  )


@pytest.mark.parametrize('mesh', [(1, 8, 1), (2, 2, 2), (4, 1, 2), (1, 4, 2)])
def test_every_mesh_makes_the_same_update(mesh):
  batch = examples()
  want, want_metrics = step(batch)
  got, metrics = step(batch, mesh=mesh)
  assert_close(got['params'], want['params'])
  assert metrics['loss'] == pytest.approx(want_metrics['loss'], rel=1e-5)


@pytest.mark.parametrize('micro', [2, 4, 8])
def test_accumulation_makes_the_same_update(micro):
  batch = examples(B=16)
  want, want_metrics = step(batch, mesh=(2, 4, 1))
  got, metrics = step(batch, mesh=(2, 4, 1), micro=micro)
  assert_close(got['params'], want['params'])
  assert metrics['loss'] == pytest.approx(want_metrics['loss'], rel=1e-5)


def test_only_completion_tokens_are_learnt():
  batch = examples()
  _, metrics = step(batch)
  mask_BT = batch.mask_BT[:, 1:]
  params = model.init(CFG, jax.random.key(0))
  logp_BT, _ = model.score(
    CFG,
    params,
    batch.tokens_BT,
    np.ones_like(batch.mask_BT),
    dtype=jnp.float32,
  )
  want = -np.asarray(logp_BT)[mask_BT].mean()
  assert metrics['loss'] == pytest.approx(want, rel=1e-5)
  assert metrics['completion_tokens'] == mask_BT.sum()


def test_padding_on_the_right_changes_nothing():
  batch = examples()
  wide = data.Examples(*(np.pad(x, ((0, 0), (0, 5))) for x in batch))
  assert_close(step(wide)[0]['params'], step(batch)[0]['params'])


@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_rematerialization_changes_memory_only(remat):
  batch = examples()
  assert_close(step(batch, remat=remat)[0]['params'], step(batch)[0]['params'])


def test_bf16_compute_keeps_float32_state():
  state, metrics = step(examples(), dtype=jnp.bfloat16)
  kinds = {x.dtype for x in jax.tree.leaves((state['params'], state['opt']))}
  assert kinds == {np.dtype('float32'), np.dtype('int32')}  # int32: counts.
  want = step(examples(), dtype=jnp.float32)[1]['loss']
  assert metrics['loss'] == pytest.approx(want, rel=0.05)
