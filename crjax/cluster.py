"""The processes of one job: how they meet, how they stop, how they hang.

`jax.distributed` does the work; it knows the machines of a TPU pod by itself,
and those of other launchers by three environment variables.
"""

import contextlib
import faulthandler
import json
import os
import pathlib
import signal
import socket
import sys
import threading
import time
import traceback

import jax

from crjax import files

NAMES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
# What a launcher reads from the exit status; anything else is a crash.
WRONG_INPUT = 2  # No second try would help.
SAVED = 75  # EX_TEMPFAIL: told to stop, saved, wants to be started again.
HUNG = 70  # EX_SOFTWARE: ended by its own watchdog.


def join():
  """Joins the other processes of this job, before JAX sees any device.

  launch/ssh.sh and launch/slurm.sbatch set NAMES; where none is set, JAX looks
  for a TPU pod, Slurm or Open MPI itself.

  Raises:
    ValueError: some of NAMES are set and others not.
  """
  found = {name: os.environ.get(name) for name in NAMES}
  if not any(found.values()):
    jax.distributed.initialize()
    return
  if missing := [name for name, value in found.items() if not value]:
    raise ValueError(f'{missing} must be set too: {NAMES} belong together')
  address, count, index = found.values()
  jax.distributed.initialize(address, int(count), int(index))


def listen():
  """stopping(step) -> bool: whether SIGTERM has come, to any process.

  Call it once a step, on every process, with a count that only grows: all
  processes of a job read true at the same step. A job of several asks the
  coordination service, whose handler `join` installed; it costs no collective.
  """
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils  # Needs a distributed runtime.

    return multihost_utils.reached_preemption_sync_point
  came = threading.Event()
  signal.signal(signal.SIGTERM, lambda *_: came.set())
  return lambda step: came.is_set()


@contextlib.contextmanager
def watchdog(workdir, seconds: float):
  """Yields beat(step); a process that does not beat for `seconds` ends.

  Before it ends it prints where every process of the job stands, as far as
  they share `workdir`, and the stacks of its own threads. Each process leaves
  its position in workdir/processes, a few times in `seconds`.
  """
  mine = {'host': socket.gethostname(), 'pid': os.getpid(), 'step': None}
  beats, over = [time.time()], threading.Event()
  main = threading.main_thread().ident

  def beat(step: int):
    mine['step'] = step
    beats[0] = time.time()

  def look():
    while not over.wait(min(seconds / 4, 30)):
      idle = time.time() - beats[0]
      place = _place(main)
      note = mine | {'idle': round(idle), 'at': place, 'time': time.time()}
      with contextlib.suppress(OSError):  # A full disk ends no run from here.
        files.write_text(_note(workdir), json.dumps(note))
      if idle > seconds:
        print(_report(workdir, idle, mine['step'], place), file=sys.stderr)
        faulthandler.dump_traceback(all_threads=True)
        sys.stderr.flush()
        os._exit(HUNG)  # The main thread may never come back to be asked.

  thread = threading.Thread(target=look, name='watchdog', daemon=True)
  thread.start()
  try:
    yield beat
  finally:
    over.set()
    thread.join()
    pathlib.Path(_note(workdir)).unlink(missing_ok=True)


def _note(workdir):
  return pathlib.Path(workdir) / 'processes' / f'{jax.process_index()}.json'


def _place(thread: int) -> str:
  """The innermost line of the main thread that is ours: what it waits for."""
  frame = sys._current_frames().get(thread)
  ours = [
    line
    for line in traceback.extract_stack(frame)
    if 'crjax' in pathlib.Path(line.filename).parts
  ]
  if not ours:
    return 'unknown'
  line = ours[-1]
  name = pathlib.Path(line.filename).name
  return f'{name}:{line.lineno} {line.name}: {line.line}'


def _report(workdir, idle, step, place) -> str:
  folder = pathlib.Path(workdir) / 'processes'
  lines = [
    f'watchdog: no step in {idle:.0f} s on process {jax.process_index()} of '
    f'{jax.process_count()}, after step {step}, at {place}. The processes of '
    'this job, those that hold the others up first:'
  ]
  notes = []
  for path in folder.glob('*.json'):
    with contextlib.suppress(OSError, ValueError):
      notes.append((path.stem, json.loads(path.read_text('utf-8'))))
  for index, note in sorted(notes, key=lambda x: (x[1]['time'], x[0])):
    silent = time.time() - note['time']
    lines.append(
      f'  process {index} ({note["host"]}, pid {note["pid"]}): step '
      f'{note["step"]}, last heard of {silent:.0f} s ago, at {note["at"]}'
    )
  lines.append(
    'Ends this process; the launcher starts the job again, and it resumes from '
    'its last checkpoint. A longer bound: --config.watchdog=SECONDS'
  )
  return '\n'.join(lines)
