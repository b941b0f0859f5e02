"""Supervised fine-tuning on completions, read from `run` outwards."""

import functools

import jax
import jax.numpy as jnp

from crjax import lora, losses, model, optim
from crjax.sharding import gather, put


def run(state, batches, *, mesh, update, log, save, steps: int):
  """Trains to `steps` from wherever `state` and `batches` stand.

  Args:
    state: see optim.py; donated, step by step.
    batches: iterator of `data.Examples`; its position belongs to the state.
    mesh: where host batches go.
    update: see `make_update`.
    log: called with (step, metrics as floats, tokens read).
    save: called with (step, state, batches); decides itself whether to write.
    steps: total optimizer steps of the run.
  """
  save(int(gather(state['step'])), state, batches)
  for step in range(int(gather(state['step'])) + 1, steps + 1):
    examples = next(batches)
    state, metrics = update(state, put(mesh, examples))
    log(step, gather(metrics), tokens=examples.tokens_BT.size)
    save(step, state, batches)
  return state


def make_update(cfg, optimizer, rate, *, frozen, micro: int, dtype, remat: str):
  """A jitted (state, examples) -> (state, metrics); the state is donated.

  `frozen` are the parameters beside those of the state, None where all are
  trained. `micro` slices the batch for gradient accumulation; the loss is the
  mean in nats over the completion tokens of the whole step, whatever the
  slices.
  """

  def loss(params, examples, frozen):
    tokens_BT, mask_BT = examples.tokens_BT, examples.mask_BT[:, 1:] > 0
    # Rows are padded on the right: causality hides it, nothing else must.
    valid_BT = jnp.ones_like(tokens_BT, bool)
    logp_BT, entropy_BT = model.score(
      cfg,
      lora.join(frozen, params),
      tokens_BT,
      valid_BT,
      dtype=dtype,
      remat=remat,
    )
    nll = losses.cross_entropy(logp_BT, mask_BT)
    return nll, {
      'loss': nll,
      'entropy': losses.masked_sum(entropy_BT, mask_BT),
    }

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, frozen, examples):
    count = jnp.maximum((examples.mask_BT[:, 1:] > 0).sum(), 1)
    beside = functools.partial(loss, frozen=frozen)
    grads, sums = optim.accumulate(beside, state['params'], examples, micro)
    grads, means = jax.tree.map(lambda x: x / count, (grads, sums))
    lr = rate(state['step'])
    state, norm = optim.apply(optimizer, state, grads)
    extra = {'lr': lr, 'grad_norm': norm, 'completion_tokens': count}
    return optim.tick(state), means | extra

  return lambda state, examples: update(state, frozen, examples)
