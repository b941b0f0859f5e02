"""Parts of a stage made by several processes, which end with their parent."""

import multiprocessing
from multiprocessing import connection
import os
import sys
import threading
import time

from data_pipeline import store

TELL_SECONDS = 10.0


def mine(target, count, shard) -> list[int]:
  """Numbers of the parts that are missing and this shard's."""
  return [i for i in store.missing(target, count) if i % shard[1] == shard[0]]


def run(stage, make, settings, target, source, numbers, workers):
  """Makes parts of a stage: `make(settings, target, source, numbers)`."""
  if not numbers:
    return
  workers = min(workers, len(numbers))
  context = multiprocessing.get_context('spawn')
  processes = [
    context.Process(
      target=work_on,
      args=(make, settings, target, source, numbers[i::workers]),
    )
    for i in range(workers)
  ]
  for process in processes:
    process.start()
  try:
    watch(stage, processes, target, numbers)
  finally:
    for process in processes:
      process.terminate()
      process.join()


def watch(stage, processes, target, numbers):
  """Tells how far the parts are until the processes end; exits if one fails."""
  began, told = time.monotonic(), 0.0
  alive = {p.sentinel: p for p in processes}
  while alive:
    for sentinel in connection.wait(list(alive), timeout=1.0):
      process = alive.pop(sentinel)
      process.join()
      if process.exitcode:
        sys.exit(
          f'data: a process of the stage {stage!r} ended with status '
          f'{process.exitcode}; what it said is above. The parts that are done '
          'stay: the same command goes on.'
        )
    seconds = time.monotonic() - began
    if seconds - told > TELL_SECONDS or not alive:
      told = seconds
      done = sum(store.part(target, i).exists() for i in numbers)
      rest = seconds / max(done, 1) * (len(numbers) - done)
      print(
        f'data: {stage}: {done} of {len(numbers)} parts, {seconds:.0f} s, '
        f'about {rest:.0f} s left',
        flush=True,
      )


def work_on(make, settings, target, source, numbers):
  """The main function of a worker process; ends with its parent."""
  threading.Thread(target=end_with_parent, daemon=True).start()
  make(settings, target, source, numbers)


def end_with_parent():
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)
