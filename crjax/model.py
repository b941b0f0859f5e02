"""Qwen2, Qwen2.5 and Qwen3 dense decoders. Axis letters: see sharding.py.

Linen names the parameters and scans the layers; nothing of it leaves this
file. Outside, a model is a `Config`, a nested dict of float32 arrays whose
layers are stacked on a leading axis, and these pure functions:

  init        parameters from a key
  forward     hidden states of whole rows (training), layers scanned
  score       log-probs of given tokens, from `forward`
  fused_loss  a loss of them, whose gradient is made on the way
  unstack     the decode copy: a list of layers, matrices in the compute dtype
  prefill     the same block over that copy, unrolled, which keeps a cache
  step        one token a row, over a cache that is read, one that is written
"""

from collections.abc import Callable
import dataclasses
import math

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from crjax import flash, int8, xent
from crjax.attention import (
  Yarn,
  attend,
  attend_blocks,
  attend_parts,
  rope,
  visible,
)
from crjax.lora import MARK, Lora, merge
from crjax.sharding import shard, suffix


@dataclasses.dataclass(frozen=True)
class Config:
  """The shape of a model; letters as in sharding.py."""

  V: int  # vocabulary, padded rows included
  L: int  # layers
  D: int  # width
  F: int  # mlp width
  N: int  # query heads
  K: int  # key-value heads
  H: int  # head dim; not always D / N
  rope_theta: float = 1e6
  norm_eps: float = 1e-6
  qkv_bias: bool = True  # Qwen2, Qwen2.5
  qk_norm: bool = False  # Qwen3
  tied: bool = False  # the head is the embedding
  yarn: Yarn | None = None  # longer inputs than the model was trained on
  lora: Lora | None = None  # adapters beside the matrices

  def __post_init__(self):
    if self.N % self.K:
      raise ValueError(f'N={self.N} query heads do not group over K={self.K}')
    if self.H % 2:
      raise ValueError(f'head dim H={self.H} must be even for rotary positions')

  @property
  def base(self):
    """The same model without adapters."""
    return dataclasses.replace(self, lora=None)


POLICIES = jax.checkpoint_policies
# What the backward pass finds in memory; it computes the rest again. From the
# least memory to the most, but for 'offload', which fills the host's.
REMAT = {
  'full': POLICIES.nothing_saveable,
  'attention': POLICIES.save_only_these_names('attn', 'mid'),
  'mlp': POLICIES.save_only_these_names('gate', 'up'),
  'dots': POLICIES.dots_with_no_batch_dims_saveable,
  'offload': POLICIES.offload_dot_with_no_batch_dims('device', 'pinned_host'),
  'none': None,
}


def normal(fan_in: int):
  """Only a model that starts from nothing meets this; LeCun 1998."""
  return nn.initializers.normal(fan_in**-0.5)


def uniform(fan_in: int):
  """What peft starts the first adapter from (He 2015 with a = sqrt 5)."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
    key, shape, dtype, -bound, bound
  )


ZEROS, ONES = nn.initializers.zeros, nn.initializers.ones


def weight(module, name, shape, dtype, init):
  """A parameter, cast before it is gathered over `fsdp`: bf16 on the wire."""
  w = module.param(name, init, shape).astype(dtype)
  return shard(w, suffix(name))


def linear(module, cfg, x, name: str, read: str, written: str, fan_in: int):
  """y = x W over the axes `read`, and the adapter of W where it has one."""
  size = lambda axes: tuple(getattr(cfg, a) for a in axes)
  shape, init = size(read + written), normal(fan_in)
  w = weight(module, f'{name}_{read}{written}', shape, x.dtype, init)
  y = jnp.einsum(f'BT{read},{read}{written}->BT{written}', x, w)
  scale = int8.scale_name(name, written)
  if module.has_variable('params', scale):  # Only where `unstack` put it.
    y *= weight(module, scale, size(written), x.dtype, ONES)
  if cfg.lora is None or name not in cfg.lora.targets:
    return y
  rank, mark = (cfg.lora.rank,), f'{name}{MARK}'
  start = uniform(math.prod(size(read)))
  a = weight(module, f'{mark}a_{read}A', size(read) + rank, x.dtype, start)
  b = weight(
    module, f'{mark}b_A{written}', rank + size(written), x.dtype, ZEROS
  )
  h_BTA = jnp.einsum(f'BT{read},{read}A->BTA', x, a)
  update = jnp.einsum(f'BTA,A{written}->BT{written}', h_BTA, b)
  return y + cfg.lora.scale * update


class RMSNorm(nn.Module):
  eps: float

  @nn.compact
  def __call__(self, x):
    scale = self.param('scale', ONES, x.shape[-1:])
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
    return (y * scale).astype(x.dtype)


class Attention(nn.Module):
  cfg: Config
  kernel: Callable | None  # Reads segment_BT for the mask_BTS of `attend`.

  @nn.compact
  def __call__(self, x_BTD, pos_BT, mask, past, column):
    c = self.cfg

    def project(name, heads):
      y_BTNH = linear(self, c, x_BTD, name, 'D', f'{heads}H', c.D)
      if c.qkv_bias:
        shape = (getattr(c, heads), c.H)
        y_BTNH += weight(self, f'{name}b_{heads}H', shape, x_BTD.dtype, ZEROS)
      return y_BTNH

    q_BTNH, k_BTKH, v_BTKH = (
      project('q', 'N'),
      project('k', 'K'),
      project('v', 'K'),
    )
    if c.qk_norm:
      q_BTNH = RMSNorm(c.norm_eps, name='q_norm')(q_BTNH)
      k_BTKH = RMSNorm(c.norm_eps, name='k_norm')(k_BTKH)
    q_BTNH = rope(q_BTNH, pos_BT, c.rope_theta, c.yarn)
    k_BKSH = rope(k_BTKH, pos_BT, c.rope_theta, c.yarn).swapaxes(1, 2)
    v_BKSH = v_BTKH.swapaxes(1, 2)
    kv = k_BKSH, v_BKSH
    if past is None:
      how = attend if self.kernel is None else self.kernel
      y_BTNH = how(q_BTNH, *kv, mask)
    else:  # The new token goes beside what is only read.
      cache, side = past
      put = lambda old, new: jax.lax.dynamic_update_slice(
        old, new, (0, 0, column, 0)
      )
      kv = jax.tree.map(put, side, kv)
      y_BTNH = attend_parts(q_BTNH, (cache, kv), mask)
    fan_in = 2 * c.L * c.N * c.H
    return linear(self, c, y_BTNH, 'o', 'NH', 'D', fan_in), kv


class Mlp(nn.Module):
  cfg: Config

  @nn.compact
  def __call__(self, x_BTD):
    c = self.cfg
    gate_BTF = linear(self, c, x_BTD, 'gate', 'D', 'F', c.D)
    up_BTF = linear(self, c, x_BTD, 'up', 'D', 'F', c.D)
    gate_BTF = checkpoint_name(gate_BTF, 'gate')
    up_BTF = checkpoint_name(up_BTF, 'up')
    h_BTF = shard(jax.nn.silu(gate_BTF) * up_BTF, 'BTF')
    return linear(self, c, h_BTF, 'down', 'F', 'D', 2 * c.L * c.F)


class Block(nn.Module):
  cfg: Config
  kernel: Callable | None = None
  keep: bool = False  # whether to return keys and values

  @nn.compact
  def __call__(self, x_BTD, pos_BT, mask, past=None, column=0):
    eps = self.cfg.norm_eps
    h_BTD = RMSNorm(eps, name='pre_attn')(x_BTD)
    y_BTD, kv = Attention(self.cfg, self.kernel, name='attn')(
      h_BTD, pos_BT, mask, past, column
    )
    x_BTD = checkpoint_name(x_BTD + checkpoint_name(y_BTD, 'attn'), 'mid')
    x_BTD += Mlp(self.cfg, name='mlp')(RMSNorm(eps, name='pre_mlp')(x_BTD))
    return shard(x_BTD, 'BTD'), kv if self.keep else None


class Qwen(nn.Module):
  cfg: Config
  dtype: jnp.dtype
  remat: str
  kernel: Callable | None = None

  @nn.compact
  def __call__(self, tokens_BT, pos_BT, mask):
    c = self.cfg
    embed_VD = weight(self, 'embed_VD', (c.V, c.D), self.dtype, normal(c.D))
    if not c.tied:
      self.param('lm_head_VD', normal(c.D), (c.V, c.D))  # Read by `head`.
    x_BTD = shard(embed_VD[tokens_BT], 'BTD')
    block = Block
    if REMAT[self.remat] is not None:
      block = nn.remat(Block, prevent_cse=False, policy=REMAT[self.remat])
    layers = nn.scan(
      block,
      length=c.L,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(nn.broadcast, nn.broadcast),
    )
    x_BTD, _ = layers(c, self.kernel, name='layers')(x_BTD, pos_BT, mask)
    return RMSNorm(c.norm_eps, name='final_norm')(x_BTD)


def init(cfg: Config, key):
  """Random float32 parameters; a pure function of (cfg, key)."""
  one = jnp.zeros((1, 1), jnp.int32)
  mask_BTS = jnp.ones((1, 1, 1), bool)
  return Qwen(cfg, jnp.float32, 'none').init(key, one, one, mask_BTS)['params']


def count(params) -> int:
  return sum(x.size for x in jax.tree.leaves(params))


def train_flops(cfg: Config, *, tokens: int, pairs: int, targets: int) -> float:
  """Operations of a training step: forward, and twice that for the gradient.

  What is computed again to save memory does not count, as in MFU (Chowdhery
  2022). Weights under adapters have no gradient.

  Args:
    tokens: those that are read.
    pairs: of a query and a key that it sees.
    targets: tokens that the loss is of; the head is for them alone.
  """
  layer = 2 * cfg.D * cfg.H * (cfg.N + cfg.K) + 3 * cfg.D * cfg.F
  weights = 2 * (cfg.L * layer * tokens + cfg.V * cfg.D * targets)
  attention = 4 * cfg.L * cfg.N * cfg.H * pairs
  return (2 if cfg.lora else 3) * weights + 3 * attention


def positions(segment_BT):
  """Position ids that start at 0 in each segment; padding reads 0.

  `segment_BT` is 0 for padding, a bool mask is one segment a row; the tokens of
  a segment are neighbours.
  """
  count_BT = jnp.cumsum(segment_BT > 0, axis=1)
  first_BT = jnp.diff(segment_BT.astype(jnp.int32), axis=1, prepend=0) > 0
  # Tokens before the segment: counted where it starts, carried to its end.
  before_BT = jax.lax.cummax(jnp.where(first_BT, count_BT - 1, 0), axis=1)
  return jnp.where(segment_BT > 0, count_BT - 1 - before_BT, 0)


def forward(
  cfg,
  params,
  tokens_BT,
  segment_BT,
  *,
  pos_BT=None,
  branch_BT=None,
  dtype,
  remat='none',
):
  """hidden_BTD after the final norm.

  Args:
    cfg: the Config of `params`.
    params: float32 arrays, layers stacked.
    tokens_BT: token ids.
    segment_BT: which of the packed examples a token is part of, counted from
      1; 0 for padding. A bool mask of valid tokens is one example a row.
    pos_BT: position ids; None counts from 0 in every segment.
    branch_BT: where segments are trees, see `attention.visible`.
    dtype: compute precision.
    remat: a key of REMAT.
  """
  if pos_BT is None:
    pos_BT = positions(segment_BT)
  slot_T = jnp.arange(tokens_BT.shape[1])
  kernel = flash.find(cfg, *tokens_BT.shape, dtype)
  if branch_BT is not None:  # The kernels of flash.py do not know trees.
    kernel = attend_blocks
    mask = visible(slot_T, segment_BT, segment_BT, branch_BT)
  elif kernel is not None:
    mask = segment_BT.astype(jnp.int32)
  else:
    packed = segment_BT.dtype != jnp.bool_
    mask = visible(slot_T, segment_BT, segment_BT if packed else None)
  return Qwen(cfg, dtype, remat, kernel).apply(
    {'params': params}, tokens_BT, pos_BT, mask
  )


def logits(params, x_BTD):
  """Float32 logits_BTV of hidden states, padded vocabulary rows included."""
  z_BTV = jnp.einsum(
    'BTD,VD->BTV',
    x_BTD,
    shard(head(params, x_BTD.dtype), 'VD'),
    preferred_element_type=jnp.float32,
  )
  return shard(z_BTV, 'BTV')


def head(params, dtype):
  """w_VD in the compute dtype; a tied head is the embedding."""
  return params.get('lm_head_VD', params['embed_VD']).astype(dtype)


def score(
  cfg,
  params,
  tokens_BT,
  segment_BT,
  *,
  start: int = 1,
  temperature=1.0,
  dtype,
  remat='none',
  chunk: int = xent.VOCAB_CHUNK,
):
  """Log-probs and entropies (nats) of tokens start..T-1, each given its past.

  Two arrays [B, T - start]; see `xent.token_logp`, and `forward` for the
  arguments.
  """
  x_BTD = forward(cfg, params, tokens_BT, segment_BT, dtype=dtype, remat=remat)
  return logps(
    params, x_BTD[:, start - 1 : -1], tokens_BT[:, start:], temperature, chunk
  )


def logps(
  params, x_BTD, targets_BT, temperature=1.0, chunk: int = xent.VOCAB_CHUNK
):
  """(logp_BT, entropy_BT) of targets given the hidden states; see `score`."""
  return xent.token_logp(
    x_BTD,
    head(params, x_BTD.dtype),
    targets_BT,
    temperature=temperature,
    chunk=chunk,
  )


def fused_loss(
  loss,
  cfg,
  params,
  tokens_BT,
  segment_BT,
  mask_BT,
  aux=(),
  *,
  start: int = 1,
  temperature=1.0,
  dtype,
  remat='none',
  chunk: int = xent.TOKEN_CHUNK,
):
  """(sum, dict of sums) of a loss of tokens start..T-1; see `xent.fused_loss`.

  `mask_BT` and the arrays of `aux` are [B, T - start].
  """
  x_BTD = forward(cfg, params, tokens_BT, segment_BT, dtype=dtype, remat=remat)
  return xent.fused_loss(
    loss,
    x_BTD[:, start - 1 : -1],
    head(params, dtype),
    tokens_BT[:, start:],
    mask_BT,
    aux,
    temperature=temperature,
    chunk=chunk,
  )


def unstack(params, dtype, adapters: Lora | None = None):
  """The decode copy: `layers` a list, matrices cast, norm scales float32.

  Of dtype int8 are the matrices of the layers alone, see int8.py; it computes
  in bfloat16 then.
  Decoding by a scan over stacked weights copies every weight at every token.
  Adapters are merged into their matrices: `step` runs the base model.
  """
  params = merge(params, adapters)
  compute = jnp.bfloat16 if dtype == jnp.int8 else dtype
  cast = lambda tree: jax.tree.map_with_path(
    lambda path, x: x.astype(compute) if suffix(path[-1].key) else x, tree
  )
  finish = int8.quantize if dtype == jnp.int8 else cast
  L = params['layers']['pre_attn']['scale'].shape[0]
  layer = lambda i: jax.tree.map(lambda x: x[i], params['layers'])
  layers = [finish(layer(i)) for i in range(L)]
  return cast(params | {'layers': []}) | {'layers': layers}


def new_cache(cfg: Config, B: int, S: int, dtype):
  """One (k_BKSH, v_BKSH) a layer, zeros."""
  zeros = lambda: shard(jnp.zeros((B, cfg.K, S, cfg.H), dtype), 'BKSH')
  return [(zeros(), zeros()) for _ in range(cfg.L)]


def prefill(cfg: Config, params, tokens_BP):
  """(hidden_BPD, cache of P columns) of prompts, padded behind their end.

  `params` comes from `unstack`, here and in `step`.
  """
  B, P = tokens_BP.shape
  pos_BT = jnp.broadcast_to(jnp.arange(P), (B, P))
  mask_BTS = visible(jnp.arange(P), jnp.ones((B, P), bool))
  past = [None] * cfg.L
  return unrolled(cfg, params, tokens_BP, pos_BT, mask_BTS, past, 0)


def step(cfg: Config, params, token_B, pos_B, cache, seen_BS, side, column):
  """(hidden_BD, side) of one token a row, written to a column of `side`.

  It sees the columns `seen_BS` of the cache and those of `side` up to its own.
  Loops carry `side` alone, which has a column a step; `settle` ends them. A row
  could not write its own column of the cache without cost: one write a step
  in common is free.
  """
  steps = side[0][0].shape[2]
  beside_S = jnp.arange(steps) <= column
  beside_BS = jnp.broadcast_to(beside_S, (len(token_B), steps))
  mask_BTS = jnp.concatenate([seen_BS, beside_BS], axis=1)[:, None]
  past = list(zip(cache, side, strict=True))
  x_BTD, side = unrolled(
    cfg, params, token_B[:, None], pos_B[:, None], mask_BTS, past, column
  )
  return x_BTD[:, 0], side


def unrolled(cfg, params, tokens_BT, pos_BT, mask_BTS, past, column):
  """(hidden_BTD, keys and values a layer)."""
  x_BTD = shard(params['embed_VD'][tokens_BT], 'BTD')
  block, kept = Block(cfg, keep=True), []
  for layer, one in zip(params['layers'], past, strict=True):
    x_BTD, kv = block.apply(
      {'params': layer}, x_BTD, pos_BT, mask_BTS, one, column
    )
    kept.append(kv)
  norm = RMSNorm(cfg.norm_eps)
  return norm.apply({'params': params['final_norm']}, x_BTD), kept


def settle(cache, side, slot_B):
  """The cache with the columns of `side` from `slot_B` on, a row each.

  Row b must have room: slot + columns <= S, or its columns shift.
  """
  row = lambda old, new, slot: jax.lax.dynamic_update_slice(
    old, new, (0, slot, 0)
  )
  one = lambda old, new: shard(jax.vmap(row)(old, new, slot_B), 'BKSH')
  return jax.tree.map(one, cache, side)
