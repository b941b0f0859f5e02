import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crjax import lora, model, optim
from crjax.sharding import gather, make_mesh, put, tree_shardings

RNG = np.random.default_rng(0)
QWEN2 = model.Config(V=40, L=3, D=16, F=24, N=4, K=2, H=8, tied=True)
QWEN3 = model.Config(
  V=40, L=3, D=16, F=24, N=4, K=2, H=8, qkv_bias=False, qk_norm=True
)
INIT = jax.jit(model.init, static_argnums=0)
BOTH = pytest.mark.parametrize('cfg', [QWEN2, QWEN3], ids=['qwen2', 'qwen3'])


def weights(cfg, seed=0):
  """Random everywhere: biases and scales that start at 0 and 1 included."""
  params = INIT(cfg, jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  noisy = [
    x + 0.1 * RNG.normal(size=x.shape).astype(np.float32) for x in leaves
  ]
  return jax.tree.unflatten(tree, noisy)


def tokens(B=3, T=9):
  return RNG.integers(0, QWEN2.V, (B, T)).astype(np.int32)


def logits(cfg, params, tokens_BT, valid_BT=None, **kwargs):
  if valid_BT is None:
    valid_BT = np.ones_like(tokens_BT, bool)
  return np.asarray(run(cfg, params, tokens_BT, valid_BT, **kwargs))


@functools.partial(jax.jit, static_argnames=('cfg', 'dtype'))
def run(cfg, params, tokens_BT, valid_BT, dtype=jnp.float32):
  x_BTD = model.forward(cfg, params, tokens_BT, valid_BT, dtype=dtype)
  return model.logits(params, x_BTD)


def close(a, b, tolerance=2e-5):
  np.testing.assert_allclose(a, b, atol=tolerance, rtol=tolerance)


@BOTH
@pytest.mark.parametrize('side', ['left', 'right'])
def test_padding_on_either_side_changes_nothing(cfg, side):
  params, tokens_BT = weights(cfg), tokens()
  pad = ((0, 0), (4, 0) if side == 'left' else (0, 4))
  at = slice(4, None) if side == 'left' else slice(0, -4)
  padded = np.pad(tokens_BT, pad, constant_values=7)
  valid_BT = np.pad(np.ones_like(tokens_BT, bool), pad)
  close(
    logits(cfg, params, padded, valid_BT)[:, at],
    logits(cfg, params, tokens_BT),
  )


@BOTH
def test_no_token_sees_its_future(cfg):
  params, tokens_BT = weights(cfg), tokens()
  changed = tokens_BT.copy()
  changed[:, 5:] = 0
  a, b = logits(cfg, params, tokens_BT), logits(cfg, params, changed)
  np.testing.assert_array_equal(a[:, :5], b[:, :5])
  assert (a[:, 6:] != b[:, 6:]).any()


@BOTH
def test_prefill_and_steps_equal_teacher_forcing(cfg):
  params, tokens_BT = weights(cfg), tokens()
  B, T = tokens_BT.shape
  want_BTV = logits(cfg, params, tokens_BT)
  decoding = model.unstack(params, jnp.float32)
  step = jax.jit(model.step, static_argnums=0)
  prompt_B = np.array([3, 1, 2])  # Ragged, padded behind.
  x_BPD, cache = model.prefill(cfg, decoding, tokens_BT[:, :5])
  last_BV = model.logits(decoding, x_BPD)[np.arange(B), prompt_B - 1]
  close(last_BV, want_BTV[np.arange(B), prompt_B - 1])
  pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, T - 5), (0, 0)))
  cache, slot_B = jax.tree.map(pad, cache), prompt_B
  for steps in (2, 1, 3):
    side = model.new_cache(cfg, B, steps, jnp.float32)
    seen_BS = np.arange(T) < slot_B[:, None]
    for i in range(steps):
      pos_B = slot_B + i
      x_BD, side = step(
        cfg,
        decoding,
        tokens_BT[np.arange(B), pos_B],
        pos_B,
        cache,
        seen_BS,
        side,
        i,
      )
      got_BV = model.logits(decoding, x_BD[:, None])[:, 0]
      close(got_BV, want_BTV[np.arange(B), pos_B])
    cache, slot_B = model.settle(cache, side, slot_B), slot_B + steps


@BOTH
@pytest.mark.parametrize('mesh', [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 4, 2)])
def test_eight_devices_equal_one(cfg, mesh):
  params, tokens_BT = weights(cfg), tokens(B=8)
  want = logits(cfg, params, tokens_BT)
  mesh = make_mesh(mesh)
  with jax.set_mesh(mesh):
    sharded = jax.tree.map(jax.device_put, params, tree_shardings(params, mesh))
    rows = put(mesh, (tokens_BT, np.ones_like(tokens_BT, bool)))
    close(gather(run(cfg, sharded, *rows)), want)


@BOTH
@pytest.mark.parametrize('chunk', [1, 3, 8, 100])
def test_score_does_not_depend_on_chunks_and_is_log_softmax(cfg, chunk):
  params, tokens_BT = weights(cfg), tokens()
  score = jax.jit(
    model.score, static_argnums=0, static_argnames=('start', 'dtype', 'chunk')
  )
  logp_BT, entropy_BT = score(
    cfg,
    params,
    tokens_BT,
    np.ones_like(tokens_BT, bool),
    start=3,
    temperature=0.7,
    dtype=jnp.float32,
    chunk=chunk,
  )
  z_BTV = logits(cfg, params, tokens_BT)[:, 2:-1] / 0.7
  all_BTV = np.asarray(jax.nn.log_softmax(z_BTV))
  want_BT = np.take_along_axis(all_BTV, tokens_BT[:, 3:, None], -1)[..., 0]
  close(logp_BT, want_BT)
  close(entropy_BT, -(np.exp(all_BTV) * all_BTV).sum(-1))


def test_compute_in_bf16_keeps_norms_and_logits_float32():
  params, tokens_BT = weights(QWEN3), tokens()
  copy = model.unstack(params, jnp.bfloat16)
  assert copy['embed_VD'].dtype == jnp.bfloat16
  assert copy['final_norm']['scale'].dtype == jnp.float32
  half = logits(QWEN3, params, tokens_BT, dtype=jnp.bfloat16)
  assert half.dtype == np.float32
  close(half, logits(QWEN3, params, tokens_BT), tolerance=0.3)


def test_impossible_shapes_are_named():
  with pytest.raises(ValueError, match=r'N=4 .* K=3'):
    model.Config(V=8, L=1, D=8, F=8, N=4, K=3, H=4)
  with pytest.raises(ValueError, match='H=5'):
    model.Config(V=8, L=1, D=8, F=8, N=4, K=2, H=5)


def test_operations_of_a_step_are_those_of_the_matrix_products():
  """Qwen2.5-7B: 7.07e9 weights that multiply, and half of the keys seen."""
  cfg = model.Config(V=152064, L=28, D=3584, F=18944, N=28, K=4, H=128)
  T = 4096
  flops = model.train_flops(cfg, tokens=T, pairs=T * (T + 1) // 2, targets=T)
  params = jax.eval_shape(lambda: model.init(cfg, jax.random.key(0)))
  multiplied = sum(
    x.size
    for path, x in jax.tree.leaves_with_path(params)
    if optim.decays(path[-1].key) and 'embed' not in path[-1].key
  )
  attention = 12 * cfg.L * cfg.N * cfg.H * (T + 1) / 2
  assert flops / T == pytest.approx(6 * multiplied + attention, rel=1e-6)
  assert flops / T == pytest.approx(44.9e9, rel=2e-3)
  adapted = dataclasses.replace(cfg, lora=lora.Lora(8, 16.0))
  fewer = model.train_flops(adapted, tokens=T, pairs=0, targets=T)
  whole = model.train_flops(cfg, tokens=T, pairs=0, targets=T)
  assert fewer / whole == pytest.approx(2 / 3)
