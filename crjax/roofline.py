"""What a model costs by arithmetic alone: operations, bytes, and the time that
a device of a given sheet needs for them at least.

`cfg` is a model.Config; letters as in sharding.py.
"""

# Products that a call makes: forward two, backward five.
CUDNN = {
  'dot_product_attention_fwd_wrapper': 2,
  'dot_product_attention_bwd_wrapper': 5,
}


def matmul_params(cfg) -> int:
  """Weights that every token is multiplied by, the head included."""
  attention = 2 * cfg.D * cfg.H * (cfg.N + cfg.K)
  return cfg.L * (attention + 3 * cfg.D * cfg.F) + cfg.V * cfg.D


def attention_flops(cfg, context: float) -> float:
  """Operations of one query token that sees `context` keys."""
  return 4 * context * cfg.N * cfg.H * cfg.L


def forward_flops(cfg, context: float) -> float:
  return 2 * matmul_params(cfg) + attention_flops(cfg, context)


def train_flops(cfg, length: float) -> float:
  """Operations a trained token of a causal row: forward and twice backward.

  What is computed again to save memory is not counted, as in MFU (Chowdhery
  2022).
  """
  return 3 * forward_flops(cfg, length / 2)


def cache_bytes(cfg, itemsize: int) -> int:
  """Keys and values of one token."""
  return 2 * cfg.L * cfg.K * cfg.H * itemsize


def decode_bytes(cfg, cached: float, itemsize: int) -> float:
  """What one step has to read: every weight, every live key and value."""
  return matmul_params(cfg) * itemsize + cached * cache_bytes(cfg, itemsize)


def decode_seconds(cfg, chip, *, rows, cached, itemsize: int, ways: int = 1):
  """One step of `rows` tokens that see `cached` tokens in all, at the sheet's
  rates, its weights and heads split over `ways` devices."""
  read = decode_bytes(cfg, cached, itemsize) / chip.bandwidth
  flops = rows * 2 * matmul_params(cfg) + attention_flops(cfg, cached)
  return max(read, flops / chip.flops) / ways


def count_flops(jaxpr) -> float:
  """Operations of the matrix products in a traced function.

  Loops count in full, recomputation too: a `while` loop as often as its bound
  says, `i < min(n, bound)`, or once; of a conditional the dearest branch; of
  cuDNN's causal attention half the pairs. Over all devices.
  """
  total = 0.0
  for eqn in jaxpr.eqns:
    name, inner = eqn.primitive.name, list(_inner(eqn.params))
    if name == 'dot_general':
      total += _dot(eqn)
    elif name in CUDNN:
      total += CUDNN[name] * _pairs(eqn)
    elif name == 'cond':
      total += max(map(count_flops, inner))
    elif inner:
      total += _turns(name, eqn.params) * sum(map(count_flops, inner))
  return total


def _turns(name, params) -> int:
  """How often the body of a primitive runs."""
  if name == 'scan':
    return params['length']
  if name == 'while':
    return _bound(params['cond_jaxpr'].jaxpr)
  if name == 'shard_map':
    sizes = dict(params['mesh'].shape)
    ways = 1
    for axis in params.get('manual_axes', sizes):
      ways *= sizes[axis]
    return ways
  if name == 'pallas_call':
    turns = 1
    for n in params['grid_mapping'].grid:
      turns *= n
    return turns
  return 1


def _bound(condition) -> int:
  """The literal of a minimum in the condition of a loop; 1 without one."""
  for eqn in condition.eqns:
    for x in eqn.invars if eqn.primitive.name == 'min' else ():
      if hasattr(x, 'val'):
        return int(x.val)
  return 1


def _pairs(eqn) -> float:
  """Operations of one product of causal queries [B, T, N, H] with keys."""
  B, T, N, H = eqn.invars[0].aval.shape
  return B * N * T * eqn.invars[1].aval.shape[1] * H


def _inner(params):
  """The jaxprs among the parameters of a primitive."""
  for value in params.values():
    for x in value if isinstance(value, tuple | list) else [value]:
      x = getattr(x, 'jaxpr', x)  # A closed jaxpr holds its constants too.
      if hasattr(x, 'eqns'):
        yield x


def _dot(eqn) -> float:
  (contracted, _), _ = eqn.params['dimension_numbers']
  left = eqn.invars[0].aval.shape
  total = 2.0
  for n in eqn.outvars[0].aval.shape:
    total *= n
  for axis in contracted:
    total *= left[axis]
  return total
