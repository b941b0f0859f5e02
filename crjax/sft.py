"""Supervised fine-tuning on completions, read from `run` outwards."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from crjax import lora, losses, model, optim, xent
from crjax.sharding import gather, move, put


def run(state, batches, *, mesh, update, count, log, save, due, steps: int):
  """Trains to `steps` from wherever `state` and `batches` stand.

  The device is never waited for: while it works on a step, the host writes down
  the numbers of the one before and lays out the next batch.

  Args:
    state: see optim.py; donated, step by step.
    batches: iterator of `data.Examples`; its position belongs to the state.
    mesh: where host batches go.
    update: see `make_update`.
    count: Examples on the host -> what `log` takes by name beside the metrics.
    log: called with (step, metrics as floats, Examples, **what `count` gave);
      it may end the run.
    due: step -> whether its state is kept, asked once a step.
    save: called with (step, state, batches) where it is; all is logged before.
    steps: total optimizer steps of the run.
  """
  start = int(gather(state['step']))
  if due(start):
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
      _finish, log, step, metrics, clock, examples, count(examples)
    )
    if due(step):
      finish()
      finish = lambda: None
      save(step, state, batches)
  return state


def _finish(log, step, metrics, clock, examples, counts):
  """Waits for a step's numbers and logs them."""
  began = time.monotonic()
  found = gather(metrics)
  clock['time/wait_s'] = time.monotonic() - began
  log(step, found | clock, examples, **counts)


def count(cfg, examples) -> dict:
  """{'tokens', 'slots', 'flops'}: tokens without padding, places for them, and
  the operations that the step needs at least (see `model.train_flops`)."""
  segment_BT = examples.segment_BT
  B, T = segment_BT.shape
  names_BT = np.arange(B)[:, None] * (T + 1) + segment_BT
  sizes = np.unique(names_BT[segment_BT > 0], return_counts=True)[1]
  sizes = sizes.astype(np.int64)
  tokens = int(sizes.sum())
  flops = model.train_flops(
    cfg,
    tokens=tokens,
    pairs=int((sizes * (sizes + 1) // 2).sum()),
    targets=int(examples.mask_BT.sum()),
  )
  return {'tokens': tokens, 'slots': B * T, 'flops': flops}


def make_update(
  cfg,
  optimizer,
  rate,
  *,
  frozen,
  micro: int,
  dtype,
  remat: str,
  chunk: int = xent.TOKEN_CHUNK,
  ema: float = 0.0,
  offload: bool = False,
):
  """A jitted (state, examples) -> (state, metrics); the state is donated.

  `frozen` are the parameters beside those of the state, None where all are
  trained. `micro` slices the batch for gradient accumulation; the loss is the
  mean in nats over the completion tokens of the whole step, whatever the
  slices and however examples share rows. `chunk`: tokens whose logits there are
  at a time. `ema`: see `optim.apply`. `offload`:
  the optimizer's state comes from the host and goes back there. The result is a
  `functools.partial`; its `func` is the jitted (state, examples, frozen=).
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
      chunk=chunk,
    )

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state, examples, *, frozen):
    count = jnp.maximum(learnt(examples).sum(), 1)
    beside = functools.partial(loss, frozen=frozen)
    grads, sums = optim.accumulate(beside, state['params'], examples, micro)
    grads, means = jax.tree.map(lambda x: x / count, (grads, sums))
    lr = rate(state['step'])
    if offload:
      state |= {'opt': move(state['opt'], jax.memory.Space.Device)}
    state, norm = optim.apply(optimizer, state, grads, ema=ema)
    if offload:
      state |= {'opt': move(state['opt'], jax.memory.Space.Host)}
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
