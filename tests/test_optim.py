import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crjax import model, optim
from crjax.sharding import make_mesh, tree_shardings

CFG = model.Config(V=16, L=2, D=8, F=12, N=2, K=1, H=4)
INIT = jax.jit(model.init, static_argnums=0)


def test_schedule_warms_up_and_decays_to_a_tenth():
  rate = optim.schedule(1e-3, name='cosine', warmup=10, steps=100)
  lrs = np.array([rate(i) for i in range(101)])
  assert lrs[0] == pytest.approx(1e-4)
  assert lrs.argmax() in (9, 10)
  assert lrs[100] == pytest.approx(1e-4, rel=1e-3)
  assert (np.diff(lrs[10:]) <= 0).all()


def test_an_unknown_schedule_is_named():
  with pytest.raises(ValueError, match=r'sine.*cosine'):
    optim.schedule(1e-3, name='sine', warmup=1, steps=2)


def test_norms_and_biases_are_not_decayed():
  params = jax.eval_shape(lambda: model.init(CFG, jax.random.key(0)))
  flat, _ = jax.tree.flatten_with_path(optim.decayed(params))
  plain = {path[-1].key for path, decay in flat if not decay}
  assert plain == {'scale', 'qb_NH', 'kb_KH', 'vb_KH'}


@pytest.mark.parametrize('micro', [1, 2, 3, 6])
def test_accumulated_sums_do_not_depend_on_the_slices(micro):
  w = {'w_D': jnp.asarray([1.0, -2.0])}
  x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))

  def loss(params, x_BD):
    y_B = jnp.tanh(x_BD @ params['w_D'])
    return (y_B**2).sum(), {'y': y_B.sum()}

  grads, sums = jax.jit(lambda w, x: optim.accumulate(loss, w, x, micro))(w, x)
  want, want_sums = jax.grad(loss, has_aux=True)(w, x)
  np.testing.assert_allclose(grads['w_D'], want['w_D'], rtol=1e-5)
  np.testing.assert_allclose(sums['y'], want_sums['y'], rtol=1e-5)


def test_rows_that_do_not_split_are_an_error():
  with pytest.raises(ValueError, match='7 rows'):
    optim.slices(np.zeros((7, 2)), 2)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name):
  params = model.init(CFG, jax.random.key(0))
  tokens_BT = np.random.default_rng(0).integers(0, CFG.V, (4, 8))
  valid_BT = np.ones_like(tokens_BT, bool)
  rate = optim.schedule(1e-2, name='constant', warmup=0, steps=1)
  optimizer = optim.make(
    name, rate, betas=(0.9, 0.95), weight_decay=0.1, max_norm=1.0
  )

  def loss(params):
    return -model.score(CFG, params, tokens_BT, valid_BT, dtype=jnp.float32)[
      0
    ].mean()

  state = optim.init_state(optimizer, params, 0)
  step = jax.jit(
    lambda s: optim.apply(optimizer, s, jax.grad(loss)(s['params']))[0]
  )
  for _ in range(20):
    state = step(state)
  assert loss(state['params']) < 0.5 * loss(params)


def test_muon_reads_axes_off_the_names():
  params = jax.eval_shape(lambda: model.init(CFG, jax.random.key(0)))
  found = optim.matrices(params)
  attn, mlp = found['layers']['attn'], found['layers']['mlp']
  assert attn['q_DNH'] == ((1,), (2, 3))  # Axis 0 is the layers.
  assert attn['o_NHD'] == ((1, 2), (3,))
  assert mlp['down_FD'] == ((1,), (2,))
  assert found['embed_VD'] is None
  assert found['layers']['pre_attn']['scale'] is None
  assert attn['qb_NH'] is None


def test_an_unknown_optimizer_is_named():
  with pytest.raises(ValueError, match=r'sgd.*adamw'):
    optim.make('sgd', 1e-3, betas=(0, 0), weight_decay=0, max_norm=1)


def test_adamw_is_that_of_optax():
  params = INIT(CFG, jax.random.key(0))
  grads = INIT(CFG, jax.random.key(1))
  theirs = optax.adamw(1e-2, 0.9, 0.95, weight_decay=0.1, mask=optim.decayed)
  got, want = (
    jax.jit(lambda state, o=o: o.update(grads, state, params)[0])(
      o.init(params)
    )
    for o in (optim.adamw(1e-2, 0.9, 0.95, 0.1), theirs)
  )
  jax.tree.map(np.testing.assert_array_equal, got, want)


def test_moments_may_be_kept_in_bfloat16():
  """For the second one only where its decay lets it move (b2 = 0.95)."""
  params = INIT(CFG, jax.random.key(0))
  knobs = {'weight_decay': 0.1, 'max_norm': 1.0}
  half = ('bfloat16', 'bfloat16')
  found = []
  for moments in (half, optim.WHOLE):
    optimizer = optim.make(
      'adamw', 1e-2, betas=(0.9, 0.95), moments=moments, **knobs
    )
    state = optim.init_state(optimizer, params, 0)
    step = jax.jit(lambda s, g, o=optimizer: optim.apply(o, s, g)[0])
    for i in range(20):
      state = step(state, INIT(CFG, jax.random.key(i % 3)))
    found.append(state)
  kinds = {x.dtype for x in jax.tree.leaves(found[0]['opt'])}
  assert kinds == {np.dtype('int32'), jnp.dtype('bfloat16')}
  for a, b, start in zip(
    *(jax.tree.leaves(s['params']) for s in found),
    jax.tree.leaves(params),
    strict=True,
  ):
    assert jnp.abs(a - b).max() <= 0.05 * jnp.abs(b - start).max()
  with pytest.raises(ValueError, match=r'b2 = 0.999.*config.moments'):
    optim.make('adamw', 1e-2, betas=(0.9, 0.999), moments=half, **knobs)
  with pytest.raises(ValueError, match='is for adamw'):
    optim.make('muon', 1e-2, betas=(0.9, 0.95), moments=half, **knobs)


@pytest.mark.parametrize('name', optim.OPTIMIZERS)
def test_every_optimizer_shards_over_a_mesh(name):
  """At a size at which Adafactor keeps rows and columns alone."""
  cfg = model.Config(V=256, L=2, D=128, F=256, N=2, K=2, H=128)
  optimizer = optim.make(
    name, 1e-2, betas=(0.9, 0.95), weight_decay=0.1, max_norm=1.0
  )
  init = lambda: optim.init_state(
    optimizer, model.init(cfg, jax.random.key(0)), 0
  )
  shapes = jax.eval_shape(init)
  size = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in shapes.items()}
  assert (size['opt'] < 0.1 * size['params']) == (name == 'adafactor')
  shardings = tree_shardings(shapes, make_mesh((2, 2, 2)))
  state = jax.jit(init, out_shardings=shardings)()
  assert jax.tree.all(
    jax.tree.map(lambda x: bool(jnp.isfinite(x).all()), state)
  )
