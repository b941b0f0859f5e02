import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crjax import checkpoint, model, optim
from crjax.sharding import make_mesh, tree_shardings

CFG = model.Config(V=16, L=2, D=16, F=24, N=4, K=2, H=8)


def state_and_abstract(cfg=CFG, mesh=(2, 2, 2)):
  rate = optim.schedule(1e-3, name='constant', warmup=0, steps=1)
  optimizer = optim.make(
    'adamw', rate, betas=(0.9, 0.95), weight_decay=0.1, max_norm=1.0
  )
  init = lambda: optim.init_state(
    optimizer, model.init(cfg, jax.random.key(0)), 7
  )
  shape = jax.eval_shape(init)
  shardings = tree_shardings(shape, make_mesh(mesh))
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shape,
    shardings,
  )
  return jax.jit(init, out_shardings=shardings)(), abstract


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_everything_comes_back_on_another_mesh(tmp_path):
  state, _ = state_and_abstract()
  position = {'next': 3, 'nested': {'epoch': 1}}
  with checkpoint.open_manager(tmp_path, keep=2) as manager:
    assert checkpoint.restore(manager, state) is None
    checkpoint.save(manager, 5, state, position)
  _, abstract = state_and_abstract(mesh=(1, 8, 1))
  with checkpoint.open_manager(tmp_path, keep=2) as manager:
    found, where = checkpoint.restore(manager, abstract)
  equal(found, state)
  assert where == position
  key = found['params']['embed_VD']
  assert key.sharding == abstract['params']['embed_VD'].sharding


@pytest.mark.parametrize('kept', ['low', 'ema'])
def test_split_masters_and_means_are_read_whole(tmp_path, kept):
  params = model.init(CFG, jax.random.key(0))
  state = optim.init_state(
    optax.sgd(1.0), params, 0, split=kept == 'low', ema=kept == 'ema'
  )
  if kept == 'ema':
    params = jax.tree.map(lambda x: 2 * x, params)
    state |= {'ema': params}
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 3, state, {})
  shardings = tree_shardings(params, make_mesh((2, 2, 2)))
  for where in (None, shardings):
    step, found = checkpoint.restore_params(tmp_path, shardings=where)
    assert step == 3
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-7)
    jax.tree.map(close, found, params)
  assert found['embed_VD'].sharding == shardings['embed_VD']


def test_only_the_newest_are_kept(tmp_path):
  state, _ = state_and_abstract()
  with checkpoint.open_manager(tmp_path, keep=2) as manager:
    for step in (1, 2, 3):
      checkpoint.save(manager, step, state, {})
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [2, 3]


def test_params_alone_are_read_as_numpy(tmp_path):
  state, _ = state_and_abstract()
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 1, state, {})
    checkpoint.save(manager, 2, jax.tree.map(jnp.copy, state), {})
  step, params = checkpoint.restore_params(tmp_path)
  assert step == 2
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  equal(params, state['params'])
  assert checkpoint.restore_params(tmp_path, 1)[0] == 1


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='--workdir'):
    checkpoint.restore_params(tmp_path / 'nothing')
  state, _ = state_and_abstract()
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 4, state, {})
  with pytest.raises(FileNotFoundError, match=r'no checkpoint 9 .*\[4\]'):
    checkpoint.restore_params(tmp_path, 9)


def test_a_state_of_another_shape_is_refused_with_the_way_out(tmp_path):
  state, _ = state_and_abstract()
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 1, state, {})
  wider = model.Config(V=16, L=2, D=32, F=24, N=4, K=2, H=8)
  _, abstract = state_and_abstract(wider)
  with (
    checkpoint.open_manager(tmp_path, keep=None) as manager,
    pytest.raises(ValueError, match=r'config\.workdir'),
  ):
    checkpoint.restore(manager, abstract)
