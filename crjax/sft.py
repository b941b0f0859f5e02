"""Supervised fine-tuning on completions, read from `run` outwards."""

import functools
import time

import jax
import jax.numpy as jnp

from crjax import lora, losses, model, optim
from crjax.sharding import gather, put


def run(state, batches, *, mesh, update, log, save, due, steps: int):
  """Trains to `steps` from wherever `state` and `batches` stand.

  The device is never waited for: while it works on a step, the host writes down
  the numbers of the one before and lays out the next batch.

  Args:
    state: see optim.py; donated, step by step.
    batches: iterator of `data.Examples`; its position belongs to the state.
    mesh: where host batches go.
    update: see `make_update`.
    log: called with (step, metrics as floats, tokens read).
    save: called with (step, state, batches); writes where `due` says so.
    due: step -> whether `save` writes; all is logged before it does.
    steps: total optimizer steps of the run.
  """
  start = int(gather(state['step']))
  save(start, state, batches)
  finish = lambda: None
  for step in range(start + 1, steps + 1):
    began = time.monotonic()
    examples = next(batches)
    on_device = put(mesh, examples)
    clock = {'time/input_s': time.monotonic() - began}
    state, metrics = update(state, on_device)
    clock['time/dispatch_s'] = time.monotonic() - began - clock['time/input_s']
    finish()  # Of the step before.
    finish = functools.partial(
      _finish, log, step, metrics, clock, examples.segment_BT
    )
    if due(step):
      finish()
      finish = lambda: None
      save(step, state, batches)
  return state


def _finish(log, step, metrics, clock, segment_BT):
  """Waits for a step's numbers and logs them."""
  began = time.monotonic()
  found = gather(metrics)
  clock['time/wait_s'] = time.monotonic() - began
  tokens = int((segment_BT > 0).sum())
  shares = {'padding': 1 - tokens / segment_BT.size}
  log(step, found | shares | clock, tokens=tokens)


def make_update(cfg, optimizer, rate, *, frozen, micro: int, dtype, remat: str):
  """A jitted (state, examples) -> (state, metrics); the state is donated.

  `frozen` are the parameters beside those of the state, None where all are
  trained. `micro` slices the batch for gradient accumulation; the loss is the
  mean in nats over the completion tokens of the whole step, whatever the
  slices and however examples share rows. The result is a `functools.partial`;
  its `func` is the jitted (state, examples, frozen=).
  """

  def loss(params, examples, frozen):
    return model.fused_loss(
      nll,
      cfg,
      lora.join(frozen, params),
      examples.tokens_BT,
      examples.segment_BT,
      learnt(examples),
      dtype=dtype,
      remat=remat,
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, examples, *, frozen):
    count = jnp.maximum(learnt(examples).sum(), 1)
    beside = functools.partial(loss, frozen=frozen)
    grads, sums = optim.accumulate(beside, state['params'], examples, micro)
    grads, means = jax.tree.map(lambda x: x / count, (grads, sums))
    lr = rate(state['step'])
    state, norm = optim.apply(optimizer, state, grads)
    extra = {'lr': lr, 'grad_norm': norm, 'completion_tokens': count}
    return optim.tick(state), means | extra

  return functools.partial(update, frozen=frozen)


def learnt(examples):
  """Mask of tokens 1..T-1 that are foretold from their own example."""
  same_BT = examples.segment_BT[:, 1:] == examples.segment_BT[:, :-1]
  return (examples.mask_BT[:, 1:] > 0) & same_BT


def nll(logp_M, entropy_M, mask_M):
  """Sums of the loss and of the entropies in nats."""
  total = losses.cross_entropy(logp_M, mask_M)
  return total, {
    'loss': total,
    'entropy': losses.masked_sum(entropy_M, mask_M),
  }
