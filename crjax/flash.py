"""Causal attention of packed rows by the kernel of the platform.

Never [B, N, T, S] in memory, and no work for keys behind the query's block:
splash attention on TPUs, cuDNN's on NVIDIA GPUs. Where neither fits, a CPU
first of all, `attention.attend` computes the same with einsums.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from crjax.sharding import ACTIVATIONS

LANES = 128  # of a TPU: tokens a block and numbers a head come in these
BLOCKS = (1024, 512, 256, 128)


def find(cfg, B: int, T: int, dtype):
  """(q_BTNH, k_BKSH, v_BKSH, segment_BT) -> y_BTNH, or None.

  `cfg` has N, K and H. The platform is that of the mesh in use, which may be of
  devices that are not here.
  """
  mesh = jax.sharding.get_abstract_mesh()
  device = None if mesh.empty else mesh.abstract_device
  platform = device.platform if device else jax.default_backend()
  if platform == 'tpu' and T % LANES == 0:
    return _on_mesh(splash, mesh, cfg, B)
  if platform == 'gpu' and dtype == jnp.bfloat16 and not cfg.H % 8:
    return cudnn
  return None


def splash(q_BTNH, k_BKSH, v_BKSH, segment_BT, *, interpret=False):
  """Pallas for TPUs; heads are padded to whole lanes, which adds zeros."""
  from jax.experimental.pallas.ops.tpu import splash_attention as kernels

  _, T, N, H = q_BTNH.shape
  block = next(n for n in BLOCKS if T % n == 0)
  sizes = kernels.BlockSizes(
    block_q=block,
    block_kv=block,
    block_kv_compute=block,
    block_q_dkv=block,
    block_kv_dkv=block,
    block_kv_dkv_compute=block,
    use_fused_bwd_kernel=True,
  )
  kernel = kernels.make_splash_mha(
    kernels.MultiHeadMask([kernels.CausalMask((T, T))] * N),
    head_shards=1,
    q_seq_shards=1,
    block_sizes=sizes,
    interpret=interpret,
  )
  pad = lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, -H % LANES)])
  q_BNTH = pad(q_BTNH.swapaxes(1, 2) * H**-0.5)
  ids = kernels.SegmentIds(segment_BT, segment_BT)
  y_BNTH = jax.vmap(kernel)(q_BNTH, pad(k_BKSH), pad(v_BKSH), segment_ids=ids)
  return y_BNTH[..., :H].swapaxes(1, 2)


def cudnn(q_BTNH, k_BKSH, v_BKSH, segment_BT):
  """The mask is one bias of [B, T, T] for all heads, in bfloat16."""
  same_BTS = segment_BT[:, :, None] == segment_BT[:, None, :]
  return jax.nn.dot_product_attention(
    q_BTNH,
    k_BKSH.swapaxes(1, 2),
    v_BKSH.swapaxes(1, 2),
    mask=same_BTS[:, None],
    is_causal=True,
    implementation='cudnn',
  )


def _on_mesh(kernel, mesh, cfg, B):
  """A kernel that the compiler cannot split, on each device's rows and heads.

  None where the mesh does not split them evenly.
  """
  if mesh.empty:
    return kernel
  rows, heads = ACTIVATIONS['B'], ACTIVATIONS['K']
  if (
    B % math.prod(mesh.shape[name] for name in rows)
    or cfg.K % mesh.shape[heads]
  ):
    return None
  cache = P(rows, heads)
  queries = P(rows, None, heads)
  return jax.shard_map(
    kernel,
    in_specs=(queries, cache, cache, P(rows)),
    out_specs=queries,
    check_vma=False,
  )
