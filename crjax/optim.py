"""Optimizers, schedules, and the training state: a dict, updated functionally.

  {'step': int32, 'key': uint32 key data, 'params': ..., 'opt': ...}

Master weights, moments and accumulated gradients are float32, unless a config
says otherwise: moments may be bfloat16, and masters split into `params`
(bfloat16) and `low`, see masters.py. `ema` is a mean of the parameters.
"""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from crjax import masters

SCHEDULES = {
  'constant': lambda lr, steps: optax.constant_schedule(lr),
  'cosine': lambda lr, steps: optax.cosine_decay_schedule(lr, steps, 0.1),
  'linear': lambda lr, steps: optax.linear_schedule(lr, 0.1 * lr, steps),
}


def schedule(lr: float, *, name: str, warmup: int, steps: int):
  """Linear warm-up over `warmup` steps, then SCHEDULES[name] until `steps`."""
  if name not in SCHEDULES:
    raise ValueError(f'schedule {name!r} is not one of {sorted(SCHEDULES)}')
  main = SCHEDULES[name](lr, max(steps - warmup, 1))
  if not warmup:
    return main
  warm = optax.linear_schedule(lr / warmup, lr, warmup)
  return optax.join_schedules([warm, main], [warmup])


def decays(name: str) -> bool:
  """True for matrices: norm scales and biases are not decayed."""
  return name != 'scale' and not name.startswith(('qb_', 'kb_', 'vb_'))


def decayed(params):
  return jax.tree.map_with_path(lambda path, _: decays(path[-1].key), params)


def matrices(params):
  """Muon's view of the hidden weights: which axes are read, which written.

  Axes of stacked layers are left out, hence batched. None is for AdamW.
  """

  def one(path, x):
    name = path[-1].key
    axes = name.rpartition('_')[2]
    if 'V' in axes or not decays(name):
      return None
    first = x.ndim - len(axes)
    last = x.ndim - 1
    every = tuple(range(first, x.ndim))
    one_read = axes[0] in 'DA'  # Else several: o_NHD, o_lora_a_NHA.
    read = (first,) if one_read else every[:-1]
    written = every[1:] if one_read else (last,)
    return optax.contrib.MuonDimensionNumbers(read, written)

  return jax.tree.map_with_path(one, params)


def adamw(rate, b1, b2, weight_decay, moments=('float32', 'float32')):
  """AdamW (Loshchilov 2019); `moments`: the dtypes that the two are kept in."""
  if moments[1] != 'float32' and b2 > 0.99:
    raise ValueError(
      f'a second moment in {moments[1]} does not follow the gradient at '
      f'b2 = {b2}: its updates round to nothing; set config.moments to '
      f"('{moments[0]}', 'float32') or b2 to 0.99 or less"
    )
  return optax.chain(
    stored(
      optax.scale_by_adam(b1, b2), dict(zip(MOMENTS, moments, strict=True))
    ),
    optax.add_decayed_weights(weight_decay, decayed),
    optax.scale_by_learning_rate(rate),
  )


def stored(inner, dtypes):
  """`inner` with these fields of its state kept in these dtypes in between."""

  def cast(state, dtypes):
    trees = {
      name: jax.tree.map(lambda x: x.astype(dtype), getattr(state, name))
      for name, dtype in dtypes.items()
    }
    return state._replace(**trees)

  def update(grads, state, params=None):
    whole = cast(state, dict.fromkeys(dtypes, jnp.float32))
    updates, state = inner.update(grads, whole, params)
    return updates, cast(state, dtypes)

  init = lambda params: cast(inner.init(params), dtypes)
  return optax.GradientTransformation(init, update)


def adafactor(rate, b1, b2, weight_decay):
  """Adafactor (Shazeer 2018) without a first moment: rows and columns of v.

  Its steps are of the size of AdamW's, so that one learning rate serves both.
  """
  del b1, b2  # It decays v by its own schedule.
  return optax.chain(
    optax.scale_by_factored_rms(),
    optax.clip_by_block_rms(1.0),
    optax.add_decayed_weights(weight_decay, decayed),
    optax.scale_by_learning_rate(rate),
  )


def muon(rate, b1, b2, weight_decay):
  """Muon (Jordan 2024) for hidden matrices, AdamW for the rest.

  Its updates are scaled to the size of AdamW's (arXiv 2502.16982), so that one
  learning rate serves both.
  """
  return optax.contrib.muon(
    rate,
    adam_b1=b1,
    adam_b2=b2,
    weight_decay=weight_decay,
    weight_decay_mask=decayed,
    muon_weight_dimension_numbers=matrices,
    consistent_rms=0.2,
  )


OPTIMIZERS = {'adamw': adamw, 'adafactor': adafactor, 'muon': muon}
MOMENTS = ('mu', 'nu')  # as optax names them
WHOLE = ('float32', 'float32')


def make(
  name, rate, *, betas, weight_decay: float, max_norm: float, moments=WHOLE
):
  """OPTIMIZERS[name] at `rate` (a schedule), gradients clipped by norm."""
  if name not in OPTIMIZERS:
    raise ValueError(f'optimizer {name!r} is not one of {sorted(OPTIMIZERS)}')
  more = {}
  if tuple(moments) != WHOLE:
    if name != 'adamw':
      raise ValueError(
        f'config.moments = {moments} is for adamw; {name} keeps float32'
      )
    more = {'moments': tuple(moments)}
  update = OPTIMIZERS[name](rate, *betas, weight_decay, **more)
  return optax.chain(optax.clip_by_global_norm(max_norm), update)


def init_state(
  optimizer, params, seed: int, *, split=False, ema=False, scalars=()
):
  """The training state at step 0 around existing parameters.

  `split` halves the masters, `ema` adds a mean of them; see `apply`. `scalars`
  names more numbers that updates change; they start from 0.
  """
  state = {
    'step': jnp.zeros((), jnp.int32),
    'key': jax.random.key_data(jax.random.key(seed)),
    'params': params,
    'opt': optimizer.init(params),
    **{name: jnp.zeros((), jnp.float32) for name in scalars},
  }
  if split:
    high, low = masters.split(params)
    state |= {'params': high, 'low': low}
  return state | ({'ema': params} if ema else {})


def slices(batch, n: int):
  """Every leaf [B, ...] -> [n, B / n, ...], for a scan over parts of a batch.

  Rows interleave, so that each device keeps its own.
  """

  def cut(x):
    if x.shape[0] % n:
      raise ValueError(f'{x.shape[0]} rows do not split into {n} equal parts')
    return x.reshape(x.shape[0] // n, n, *x.shape[1:]).swapaxes(0, 1)

  return jax.tree.map(cut, batch)


def accumulate(loss, params, batch, micro: int, used=None):
  """Gradients and metrics of `loss`, summed over `micro` slices of the batch.

  `loss(params, part)` returns (sum, dict of sums), which add up to the same
  totals however the batch is cut. `used(part)` is false for a slice that adds
  nothing; it is not computed. Returns (gradient sums, metric sums), float32
  whatever the parameters are.
  """

  def grad(params, part):
    grads, sums = jax.grad(loss, has_aux=True)(params, part)
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads), sums

  if micro == 1:
    return grad(params, batch)
  parts = slices(batch, micro)
  shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

  def add(total, part):
    # Without the barrier XLA:TPU, libtpu 0.0.42, tries to move the sum over
    # devices out of the loop, which keeps whole gradients, and fails in it.
    new = jax.lax.optimization_barrier(grad(params, part))
    return jax.tree.map(jnp.add, total, new)

  def one(total, part):
    if used is None:
      return add(total, part), None
    same = lambda total, part: total
    return jax.lax.cond(used(part), add, same, total, part), None

  return jax.lax.scan(one, zeros, parts)[0]


def apply(optimizer, state, grads, *, ema: float = 0.0):
  """One optimizer update; returns (state, gradient norm before clipping).

  Split masters are whole in between. `ema` is the decay of the mean of the
  parameters, where the state has one.
  """
  params = state['params']
  if 'low' in state:
    params = masters.join(params, state['low'])
  updates, opt = optimizer.update(grads, state['opt'], params)
  params = optax.apply_updates(params, updates)
  state = state | {'params': params, 'opt': opt}
  if 'ema' in state:
    mean = lambda old, new: ema * old + (1 - ema) * new
    state |= {'ema': jax.tree.map(mean, state['ema'], params)}
  if 'low' in state:
    high, low = masters.split(params)
    state |= {'params': high, 'low': low}
  return state, optax.global_norm(grads)


def tick(state):
  """The state, one step of the run later."""
  return state | {'step': state['step'] + 1}
