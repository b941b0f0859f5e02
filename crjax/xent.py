"""Losses over a vocabulary of 152,000 without its logits.

The float32 logits of 16,384 tokens are 10 GB, their gradient as much again.
Here they exist for a chunk at a time:

  token_logp  log-probs and entropies, for any use. Reads the head by chunks of
              rows, keeps a few numbers a token, recomputes the chunks for the
              gradient: four matmuls with the head.
  fused_loss  a loss summed over tokens, whose gradient is made while the logits
              of a chunk of tokens are there: three matmuls, and tokens that the
              mask leaves out cost none.

A device works on its own tokens and, where the mesh splits the vocabulary, on
its own rows of the head; the sums over the mesh are outside of the loops.
Axis letters beside those of sharding.py: M tokens, C a chunk of M or of V.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

VOCAB_CHUNK = 8192  # rows of the head; 0.5 GB of logits at 16,384 tokens
TOKEN_CHUNK = 2048  # tokens; 1.2 GB of logits at a vocabulary of 152,064


class Split(NamedTuple):
  """The mesh axes that split an axis of the loss; () for none."""

  tokens: tuple[str, ...] = ()
  vocab: tuple[str, ...] = ()
  width: tuple[str, ...] = ()  # of the head's gradient, as it is stored


def token_logp(x_BTD, w_VD, targets_BT, *, temperature=1.0, chunk=VOCAB_CHUNK):
  """(logp_BT of the targets, entropy_BT in nats), float32.

  Args:
    x_BTD: hidden states after the final norm.
    w_VD: the head in the dtype of `x_BTD`.
    targets_BT: the token that each hidden state has to foretell.
    temperature: divides the logits.
    chunk: rows of the head at a time.
  """
  temperature = jnp.asarray(temperature, jnp.float32)
  return _token_logp(x_BTD, w_VD, targets_BT, temperature, chunk)


def fused_loss(
  loss,
  x_BTD,
  w_VD,
  targets_BT,
  mask_BT,
  aux=(),
  *,
  temperature=1.0,
  chunk=TOKEN_CHUNK,
):
  """(sum, dict of sums) of a loss; its gradient is made on the way.

  Args:
    loss: (logp_M, entropy_M, mask_M, *aux_M) -> (sum, dict of sums) over any
      subset of the tokens, differentiated by logp_M alone. What it reads is
      passed in `aux`: it closes over no traced array.
    mask_BT: the tokens that the loss is of; the others are not computed.
    aux: more arrays [B, T] for the loss; constants.
    chunk: tokens at a time.

  The other arguments are those of `token_logp`.
  """
  temperature = jnp.asarray(temperature, jnp.float32)
  rows = tuple(map(jnp.asarray, (targets_BT, mask_BT, *aux)))
  return _fused_loss(loss, chunk, x_BTD, w_VD, rows, temperature)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _token_logp(x_BTD, w_VD, targets_BT, temperature, chunk):
  return _logp_forward(x_BTD, w_VD, targets_BT, temperature, chunk)[0]


def _logp_forward(x_BTD, w_VD, targets_BT, temperature, chunk):
  split = _split(x_BTD, w_VD)
  read = functools.partial(_read, chunk=chunk, split=split)
  B, V = _spec(split.tokens), _spec(split.vocab)
  logp_BT, entropy_BT, logz_BT = _on_mesh(
    read, split, (B, V, B, P()), (B, B, B)
  )(x_BTD, w_VD, targets_BT, temperature)
  kept = x_BTD, w_VD, targets_BT, temperature, logz_BT, entropy_BT
  return (logp_BT, entropy_BT), kept


def _logp_backward(chunk, kept, cotangents):
  x_BTD, w_VD = kept[:2]
  split = _split(x_BTD, w_VD)
  pull = functools.partial(_pull, chunk=chunk, split=split)
  B, V = _spec(split.tokens), _spec(split.vocab)
  dx_BTD, dw_VD = _on_mesh(
    pull,
    split,
    (B, V, B, P(), B, B, B, B),
    (B, _spec(split.vocab, split.width)),
  )(*kept, *cotangents)
  return dx_BTD, dw_VD, None, None


_token_logp.defvjp(_logp_forward, _logp_backward)


def _read(x_BTD, w_VD, targets_BT, temperature, *, chunk, split):
  """(logp_BT, entropy_BT, logz_BT) by an online softmax over chunks of rows."""
  shape = targets_BT.shape
  x_MD, target_M = _flat(x_BTD), targets_BT.ravel()
  target_M -= _first_row(w_VD, split)

  def step(carry, w_CD, start):
    top_M, total_M, dot_M, hit_M = carry
    z_MC = _logits(x_MD, w_CD, temperature)
    new_M = jnp.maximum(top_M, z_MC.max(-1))
    e_MC = jnp.exp(z_MC - new_M[:, None])
    shrink_M = jnp.exp(top_M - new_M)
    hot_MC = _hot(target_M - start, z_MC)
    return (
      new_M,
      total_M * shrink_M + e_MC.sum(-1),
      dot_M * shrink_M + (e_MC * z_MC).sum(-1),
      hit_M + jnp.where(hot_MC, z_MC, 0.0).sum(-1),
    ), ()

  zero_M = jnp.zeros(x_MD.shape[0])
  start = (jnp.full_like(zero_M, -jnp.inf), zero_M, zero_M, zero_M)
  (top_M, total_M, dot_M, hit_M), _ = _over_rows(step, start, w_VD, chunk)
  most_M = jax.lax.pmax(top_M, split.vocab)
  scale_M = jnp.exp(top_M - most_M)
  total_M, dot_M, hit_M = jax.lax.psum(
    (total_M * scale_M, dot_M * scale_M, hit_M), split.vocab
  )
  logz_M = most_M + jnp.log(total_M)
  found = hit_M - logz_M, logz_M - dot_M / total_M, logz_M
  return tuple(a_M.reshape(shape) for a_M in found)


def _pull(
  x_BTD,
  w_VD,
  targets_BT,
  temperature,
  logz_BT,
  entropy_BT,
  g_BT,
  h_BT,
  *,
  chunk,
  split,
):
  """(dx_BTD, dw_VD) for the cotangents of log-probs, g, and entropies, h."""
  x_MD, target_M = _flat(x_BTD), targets_BT.ravel()
  target_M -= _first_row(w_VD, split)
  column = lambda a_BT: a_BT.reshape(-1, 1)
  logz_M1, entropy_M1 = column(logz_BT), column(entropy_BT)
  g_M1, h_M1 = column(g_BT) / temperature, column(h_BT) / temperature

  def step(dx_MD, w_CD, start):
    logp_MC = _logits(x_MD, w_CD, temperature) - logz_M1
    p_MC = jnp.exp(logp_MC)
    dz_MC = g_M1 * (_hot(target_M - start, p_MC) - p_MC)
    dz_MC -= h_M1 * p_MC * (logp_MC + entropy_M1)
    dx_CD, dw_CD = _products(dz_MC.astype(x_MD.dtype), x_MD, w_CD)
    return dx_MD + dx_CD, dw_CD.astype(w_VD.dtype)

  dx_MD, dw_VD = _over_rows(
    step, jnp.zeros(x_MD.shape, jnp.float32), w_VD, chunk
  )
  dx_MD = jax.lax.psum(dx_MD, split.vocab).astype(x_BTD.dtype)
  return dx_MD.reshape(x_BTD.shape), _sum_head(dw_VD, split)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused_loss(loss, chunk, x_BTD, w_VD, rows, temperature):
  total, sums, *_ = _run_fused(
    loss, chunk, x_BTD, w_VD, rows, temperature, gradient=False
  )
  return total, sums


def _fused_forward(loss, chunk, x_BTD, w_VD, rows, temperature):
  total, sums, dx_BTD, dw_VD = _run_fused(
    loss, chunk, x_BTD, w_VD, rows, temperature, gradient=True
  )
  return (total, sums), (dx_BTD, dw_VD)


def _fused_backward(loss, chunk, kept, cotangents):
  g = cotangents[0]
  dx_BTD, dw_VD = (a * g.astype(a.dtype) for a in kept)
  return dx_BTD, dw_VD, None, None


_fused_loss.defvjp(_fused_forward, _fused_backward)


def _run_fused(loss, chunk, x_BTD, w_VD, rows, temperature, *, gradient):
  split = _split(x_BTD, w_VD)
  work = functools.partial(
    _fused, loss, chunk=chunk, split=split, gradient=gradient
  )
  B, V = _spec(split.tokens), _spec(split.vocab)
  out = (P(), P(), B, _spec(split.vocab, split.width)) if gradient else P()
  return _on_mesh(work, split, (B, V, B, P()), out)(
    x_BTD, w_VD, rows, temperature
  )


def _fused(loss, x_BTD, w_VD, rows, temperature, *, chunk, split, gradient):
  """(sum, sums) or (sum, sums, dx_BTD, dw_VD) of this device's tokens.

  The loop visits the tokens of the mask alone, and ends with the last of them.
  """
  x_MD = _flat(x_BTD)
  target_M, mask_M, *aux_M = (a.ravel() for a in rows)
  target_M -= _first_row(w_VD, split)
  M = len(target_M)
  C = min(chunk, M)
  # Tokens of the mask first; then padding to whole chunks, out of range.
  order_M = jnp.argsort(~mask_M, stable=True)
  order_M = jnp.pad(order_M, (0, -M % C), constant_values=M)
  count = mask_M.sum()

  def step(i, carry):
    totals, dx_MD, dw_VD = carry
    at_C = jax.lax.dynamic_slice_in_dim(order_M, i * C, C)
    take = lambda a_M: a_M.at[at_C].get(mode='clip')
    on_C = i * C + jnp.arange(C) < count
    x_CD = jnp.where(on_C[:, None], take(x_MD), 0)
    z_CV = _logits(x_CD, w_VD, temperature)
    logp_C, entropy_C, p_CV, hot_CV = _softmax(z_CV, take(target_M), split)
    of_logp = lambda logp_C: loss(logp_C, entropy_C, on_C, *map(take, aux_M))
    if not gradient:
      return jax.tree.map(jnp.add, totals, of_logp(logp_C)), dx_MD, dw_VD
    part, pull, sums = jax.vjp(of_logp, logp_C, has_aux=True)
    (g_C,) = pull(jnp.ones_like(part))
    dz_CV = (g_C / temperature)[:, None] * (hot_CV - p_CV)
    dx_CD, more_VD = _products(dz_CV.astype(x_CD.dtype), x_CD, w_VD)
    dx_MD = dx_MD.at[at_C].set(dx_CD.astype(dx_MD.dtype), mode='drop')
    totals = jax.tree.map(jnp.add, totals, (part, sums))
    return totals, dx_MD, dw_VD + more_VD

  some_C = jnp.zeros(C)
  like = jax.eval_shape(
    loss, some_C, some_C, some_C > 0, *(a_M[:C] for a_M in aux_M)
  )
  totals = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), like)
  made = (jnp.zeros_like(x_MD), jnp.zeros(w_VD.shape, jnp.float32))
  # The minimum changes nothing: it tells `crjax.plan` the most turns there are.
  turns, most = -(-count // C), -(-M // C)
  _, (totals, dx_MD, dw_VD) = jax.lax.while_loop(
    lambda turn: turn[0] < jnp.minimum(turns, most),
    lambda turn: (turn[0] + 1, step(*turn)),
    (0, (totals, *(made if gradient else ((), ())))),
  )
  totals = jax.lax.psum(totals, split.tokens)
  if not gradient:
    return totals
  dx_MD = jax.lax.psum(dx_MD, split.vocab)
  dw_VD = _sum_head(dw_VD.astype(w_VD.dtype), split)
  return *totals, dx_MD.reshape(x_BTD.shape), dw_VD


def _softmax(z_CV, target_C, split):
  """(logp_C, entropy_C, p_CV, hot_CV) of whole rows of logits."""
  top_C = jax.lax.pmax(z_CV.max(-1), split.vocab)
  e_CV = jnp.exp(z_CV - top_C[:, None])
  hot_CV = _hot(target_C, z_CV)
  total_C, dot_C, hit_C = jax.lax.psum(
    (
      e_CV.sum(-1),
      (e_CV * z_CV).sum(-1),
      jnp.where(hot_CV, z_CV, 0.0).sum(-1),
    ),
    split.vocab,
  )
  logz_C = top_C + jnp.log(total_C)
  p_CV = e_CV / total_C[:, None]
  return hit_C - logz_C, logz_C - dot_C / total_C, p_CV, hot_CV


def _logits(x_MD, w_VD, temperature):
  z_MV = jnp.einsum('MD,VD->MV', x_MD, w_VD, preferred_element_type=jnp.float32)
  return z_MV / temperature


def _products(dz_MV, x_MD, w_VD):
  """The two gradients of a matmul, in float32."""
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  return product('MV,VD->MD', dz_MV, w_VD), product('MV,MD->VD', dz_MV, x_MD)


def _hot(target_M, z_MV):
  """True at the column of the target, which may be in none of these."""
  return jnp.arange(z_MV.shape[1]) == target_M[:, None]


def _over_rows(step, carry, w_VD, chunk):
  """Scans `step(carry, w_CD, first row)`; joins what it returns beside."""
  V = w_VD.shape[0]
  size = _even(V, chunk)
  part = lambda i: jax.lax.dynamic_slice_in_dim(w_VD, i * size, size)
  one = lambda carry, i: step(carry, part(i), i * size)
  carry, made = jax.lax.scan(one, carry, jnp.arange(V // size))
  join = lambda a: a.reshape(-1, *a.shape[2:])
  made = jax.tree.map(join, made)
  if start := V % size:
    start = V - start
    carry, last = step(carry, w_VD[start:], start)
    made = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), made, last)
  return carry, made


def _even(V: int, chunk: int) -> int:
  """A chunk that divides V if a fair one does, so that no short one is left."""
  chunk = min(chunk, V)
  best = next(n for n in range(chunk, 0, -1) if V % n == 0)
  return best if 4 * best >= chunk else chunk


def _flat(x_BTD):
  return x_BTD.reshape(-1, x_BTD.shape[-1])


def _split(x_BTD, w_VD) -> Split:
  """How the mesh in use splits these; what does not divide stays whole."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.size <= 1:  # A sum over one device would still copy.
    return Split()
  ways = lambda axes: math.prod(mesh.shape[a] for a in axes)
  fits = lambda n, *axes: axes if n % ways(axes) == 0 else ()
  return Split(
    tokens=fits(x_BTD.shape[0], 'data', 'fsdp'),
    vocab=fits(w_VD.shape[0], 'tensor'),
    width=fits(w_VD.shape[1], 'fsdp'),
  )


def _spec(*axes) -> P:
  return P(*(names or None for names in axes))


def _on_mesh(f, split, ins, outs):
  """`f` on each device's part; without a mesh of several, `f`."""
  if jax.sharding.get_abstract_mesh().size <= 1:
    return f
  return jax.shard_map(f, in_specs=ins, out_specs=outs, check_vma=False)


def _first_row(w_VD, split):
  """Where this device's rows of the head start."""
  if not split.vocab:
    return 0
  return jax.lax.axis_index(split.vocab) * w_VD.shape[0]


def _sum_head(dw_VD, split):
  """The head's gradient over all tokens, in the parts it is stored in."""
  if not split.tokens:  # The same tokens everywhere.
    if not split.width:
      return dw_VD
    size = dw_VD.shape[1] // jax.lax.axis_size(split.width)
    first = jax.lax.axis_index(split.width) * size
    return jax.lax.dynamic_slice_in_dim(dw_VD, first, size, 1)
  if not split.width:
    return jax.lax.psum(dw_VD, split.tokens)
  rest = tuple(a for a in split.tokens if a not in split.width)
  dw_VD = jax.lax.psum_scatter(
    dw_VD, split.width, scatter_dimension=1, tiled=True
  )
  return jax.lax.psum(dw_VD, rest)
