"""The compiled functions of a run, and the shapes that they are called with.

What `crjax.train` would run, from its own functions, for arrays that need not
exist: a plan compiles them, a benchmark does.
"""

import functools

import jax
import numpy as np

from crjax import aot, data, engine, hf, inputs, model, sampling, train
from crjax.sharding import DECODE_WEIGHTS

PROMPTS = 8  # Computed together, as the engine does by default.


def shape(c):
  """The model Config of a run, from `c.shape` or the checkpoint's config."""
  given = c.get('shape')
  cfg = model.Config(**given) if given else hf.inspect(c.model).cfg
  return inputs.with_adapters(c, cfg)


def of_sft(c, cfg, mesh, optimizer, rate, state, frozen):
  """{name: (jitted function, its arguments)}: the one step of SFT."""
  one = jax.ShapeDtypeStruct((c.batch, c.length), np.int32)
  batch = aot.rows(data.Examples(*[one] * len(data.Examples._fields)), mesh)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, frozen, batch):
    update = train.sft_update(c, cfg, optimizer, rate, frozen=frozen)
    return update(state, batch)

  return {'update': (step, state, frozen, batch)}


def of_grpo(c, cfg, mesh, optimizer, rate, state, frozen):
  """The same of GRPO: decode copy, prefill, a step of decoding, update."""
  dtype = inputs.DTYPES[c.dtype]
  copy = sampling.make_decode_copy(cfg, mesh, dtype)
  length = c.prompt_length + c.completion_length
  batch = aot.rows(largest_batch(c), mesh)
  reference = state['params'] if c.kl_coef else None

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, frozen, reference, batch):
    score = train.policy_score(c, cfg)
    update = train.make_policy_update(
      c, mesh, score, optimizer, rate, frozen, reference
    )
    return update(state, batch)

  todo = {'decode copy': (copy, state['params'], frozen)}
  todo |= of_rollout(
    cfg,
    mesh,
    slots=c.slots,
    length=length,
    prompt=c.prompt_length,
    chunk=c.chunk,
    dtype=dtype,
  )
  return todo | {'update': (step, state, frozen, reference, batch)}


def of_rollout(
  cfg, mesh, *, slots: int, length: int, prompt: int, chunk: int = 16, dtype
):
  """{name: (jitted function of the engine, the arguments that it gets)}.

  The prefill of PROMPTS prompts of `prompt` tokens, and steps of `slots` rows
  whose caches have the columns that the full `length` needs.
  """
  unstack = lambda params: model.unstack(params, dtype)
  shapes = jax.eval_shape(unstack, hf.abstract(cfg.base))
  weights = aot.placed(shapes, mesh, DECODE_WEIGHTS, strict=False)
  made = engine.make(
    cfg, mesh, slots=slots, length=length, chunk=chunk, prompts=PROMPTS
  )
  columns = engine.bucket(length + chunk, made.window)
  cache, rows = jax.eval_shape(lambda: made.fresh(slots, columns, dtype))
  cache = jax.tree.map(lambda x: aot.laid(x, 'BKSH', mesh), cache)
  keep_B = jax.ShapeDtypeStruct((slots,), np.bool_)
  prompts = jax.ShapeDtypeStruct((PROMPTS, prompt), np.int32)
  whole = lambda tree: aot.whole(tree, mesh)
  return {
    'prefill': (made.prefill, weights, whole(prompts)),
    'decode': (made.advance, weights, cache, whole(rows), whole(keep_B)),
  }


def largest_batch(c):
  """Shapes of the batch of a step in which every row is as long as it may be.

  Made by the code that makes real batches, from zeros.
  """
  B, P, C = c.questions * c.rollouts, c.prompt_length, c.completion_length
  ones = np.ones((c.questions, P), bool)
  ids_Q = np.arange(c.questions, dtype=np.int32)
  questions = data.Prompts(np.zeros(ones.shape, np.int32), ones, ids_Q, [])
  mask_BC = np.ones((B, C), bool)
  rolled = sampling.Rollout(
    tokens_BT=np.zeros(mask_BC.shape, np.int32),
    logp_BT=np.zeros(mask_BC.shape, np.float32),
    mask_BT=mask_BC,
    stopped_B=np.ones(B, bool),
  )
  ones_QR = np.ones((c.questions, c.rollouts), np.float32)
  batch = train.make_batching(c)(questions, rolled, ones_QR, ones_QR)
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
