"""What a run leaves: its log and samples, and when its state is kept, and how.

Part of train.py's reading of the config, as inputs.py is.
"""

import contextlib
import math
import time

import jax
import numpy as np

from crjax import checkpoint, cluster, divergence, metrics


def note_sandbox(c, report):
  """Says, and keeps in the run, how programs are isolated on this machine."""
  if jax.process_index() == 0:
    checkpoint.write_json(f'{c.workdir}/sandbox.json', report)
  print(f'{c.task}: programs run at isolation level {report["level"]}')


@contextlib.contextmanager
def open_checkpoints(c):
  """See `checkpoint.open_manager`; what it cannot write ends the run."""
  with cluster.inputs('This run cannot keep checkpoints'):
    how = {'keep': c.keep, 'best': c.keep_best}
    manager = checkpoint.open_manager(c.workdir, **how)
  try:
    with manager:
      yield manager
  except checkpoint.Unwritten as error:
    cluster.end(f'{c.task}: {error}', 1)


def saving(c, manager, steps: int, beat, log, send):
  """(due, save, log) of a run: when its state is kept, and how.

  `due(step)`, once a step, is true every c.save_every, at the end, at step 0 of
  a random start, which exists nowhere else, and after SIGTERM to whichever
  process. Then `save(step, state, batches)` writes; told to stop, it ends the
  process with the status cluster.SAVED. What is logged between two saves is
  what c.keep_best goes by, and the seconds that a save took from the run are
  logged with the next step. `beat`: see cluster.watchdog; `log`, `send`: see
  open_log.
  """
  stopping, told = cluster.listen(), []
  best, recent, taken = c.keep_best.removeprefix('-'), [], []

  def due(step):
    beat(step)
    manager.check()
    if stopping(step) and step < steps:
      told.append(step)
    first = step == 0 and not c.model
    regular = step and (step % c.save_every == 0 or step == steps)
    return bool(first or regular or told)

  def noting(step, scalars, *args, **counts):
    if best and best not in scalars:
      cluster.refuse(
        f'config.keep_best = {c.keep_best!r} is none of {sorted(scalars)}'
      )
    recent.append(float(scalars.get(best, math.nan)))
    if taken:
      scalars = scalars | {'time/save_s': taken.pop()}
    log(step, scalars, *args, **counts)

  def save(step, state, batches):
    divergence.check_state(c.workdir, step, state['params'])
    began = time.monotonic()
    send()  # A run that resumes from here has these lines.
    numbers = None
    if best:  # The first process's mean is that of all: others have rows less.
      mean = checkpoint.agree(repr(float(np.mean(recent or math.nan))))
      numbers = {best: float(mean)}
    recent.clear()
    checkpoint.save(manager, step, state, batches.get_state(), numbers)
    taken.append(time.monotonic() - began)
    if told:
      manager.wait_until_finished()
      print(
        f'{c.task}: told to stop: saved step {step} of {steps} in {c.workdir}; '
        'the same command continues',
        flush=True,
      )
      raise SystemExit(cluster.SAVED)

  return due, save, noting


@contextlib.contextmanager
def open_log(c, state, steps: int, alarms=lambda lines: {}):
  """Yields log(step, metrics, batch, tokens, rows), and send().

  The first writes files, shows progress and samples; the second sends what a
  bucket has not got yet.

  The first process of several writes for all. All of them end a run that has
  diverged, see divergence.py.
  """
  check = divergence.make_check(c.workdir, by_loss=c.task == 'sft')
  if jax.process_index():
    check_only = lambda step, scalars, batch, **_: check(step, scalars, batch)
    yield check_only, lambda: None
    return
  with metrics.Writer(
    c.workdir,
    start_step=int(jax.device_get(state['step'])),
    total_steps=steps,
    alarms=alarms,
    chips=jax.device_count(),
    peak=metrics.peak(jax.devices()[0].device_kind),
  ) as writer:

    def log(step, scalars, batch, tokens, rows=(), **counts):
      numbers = {k: float(v) for k, v in scalars.items()}
      writer.write(step, numbers, tokens, **counts)
      if rows and (step % c.samples_every == 0 or step == steps):
        writer.samples(step, rows)
      check(step, scalars, batch)

    yield log, writer.send
