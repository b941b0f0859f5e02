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

from crjax import files, runtime

NAMES = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')
# What a launcher reads from the exit status; anything else is a crash.
WRONG_INPUT = 2  # No second try would help.
DIVERGED = 3  # Nor here: the same batch would come again.
SAVED = 75  # EX_TEMPFAIL: told to stop, saved, wants to be started again.
HUNG = 70  # EX_SOFTWARE: ended by its own watchdog.
NOTE_SECONDS = 10  # Between two notes of where a process stands.
SILENT_SECONDS = 30  # Without a new one. JAX ends all after about 60.
REFUSING_SECONDS = 5  # For the other processes to find the same fault.
# Errors of the machine or the network, which may be gone at the next try.
GIVEN = (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError)


def begin(distributed: bool):
  """What an entry point does before JAX sees a device."""
  runtime.prepare()
  if distributed:
    with inputs('--distributed'):
      join()


def refuse(message: str):
  """Ends this process with the status WRONG_INPUT."""
  end(message, WRONG_INPUT)


def end(message: str, code: int):
  """Ends this process with `code`, which its launcher reads.

  Leaving a job of several in the usual way waits for the others, which may
  wait for this one, and an error of that wait would take the place of `code`.
  """
  print(message, file=sys.stderr, flush=True)
  if jax.distributed.is_initialized():
    time.sleep(REFUSING_SECONDS)
    sys.stdout.flush()
    os._exit(code)
  sys.exit(code)


@contextlib.contextmanager
def inputs(what: str):
  """Refuses, in the name of `what`, inputs that are missing or wrong.

  Other OSErrors (a full disk, a bucket that does not answer) end the process
  with the status 1: another try may succeed.
  """
  try:
    yield
  except GIVEN as error:
    refuse(f'{what}: {error}')
  except OSError as error:
    end(f'{what}: {error}', 1)


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
  its position in workdir/processes, every NOTE_SECONDS. In a job of several an
  exception ends its process at once, with the same table: others wait for it.
  """
  mine = {'host': socket.gethostname(), 'pid': os.getpid(), 'step': None}
  beats, over = [time.monotonic()], threading.Event()
  pause = min(seconds / 4, NOTE_SECONDS)

  def beat(step: int):
    mine['step'] = step
    beats[0] = time.monotonic()

  idle = lambda: time.monotonic() - beats[0]
  threads = [  # Apart, as files may be what hangs.
    threading.Thread(target=work, args=(workdir, mine, over, pause, *more))
    for work, more in ((_speak, ()), (_look, (idle, seconds)))
  ]
  for thread in threads:
    thread.daemon = True
    thread.start()
  try:
    yield beat
  except Exception as error:
    if jax.process_count() == 1:
      raise
    over.set()
    _fail(workdir, mine, pause, error)
  finally:
    over.set()
    for thread in threads:
      thread.join(pause)
    files.remove(_note(workdir))


def _speak(workdir, mine, over, pause):
  """Leaves notes; process 0, for all, says who has stopped to."""
  told = set()
  _write(workdir, mine, 'its start')
  while not over.wait(pause):
    _write(workdir, mine, _place())
    heard = _hear(workdir) if jax.process_index() == 0 else {}
    if new := {*_silent(heard, SILENT_SECONDS)} - told:
      told |= new
      text = f'watchdog: {"; ".join(sorted(new))}: dead or cut off?\n'
      print(text + _report(mine['step'], heard), file=sys.stderr, flush=True)


def _look(workdir, mine, over, pause, idle, seconds):
  """Ends this process when it has been idle for too long."""
  while not over.wait(pause):
    if idle() > seconds:
      place = _place()
      what = f'no step in {idle():.0f} s (config.watchdog), at {place}'
      faulthandler.dump_traceback(all_threads=True)
      _last_words(workdir, mine, pause, f'watchdog: {what}', f'hung at {place}')
      # Where one process ends, JAX ends the others: they speak first.
      time.sleep(2 * pause if jax.process_count() > 1 else 0)
      os._exit(HUNG)  # The main thread may never come back to be asked.


def _fail(workdir, mine, pause, error):
  """Ends this process of several by an error, its own or that of another."""
  traceback.print_exc()
  what = f'{type(error).__name__}: {error}'.partition('\n')[0]
  if isinstance(error, jax.errors.JaxRuntimeError):
    _briefly(lambda: _write(workdir, mine, f'its end, by {what}'), pause)
    what = '; '.join([*_find_lost(workdir, 2.5 * pause), what])
  _last_words(workdir, mine, pause, f'lost: {what}', f'by {what}')
  os._exit(1)


def _last_words(workdir, mine, pause, what, end):
  print(what, file=sys.stderr, flush=True)

  def work():
    _write(workdir, mine, f'its end, {end}')
    text = _report(mine['step'], _hear(workdir))
    print(
      text + '\nIt ends; the launcher starts the job again, which resumes from '
      'its last checkpoint',
      file=sys.stderr,
      flush=True,
    )

  _briefly(work, pause)


def _write(workdir, mine, at: str):
  with contextlib.suppress(OSError):  # A full disk ends no run from here.
    text = json.dumps(mine | {'at': at, 'time': time.time()})
    files.write_text(_note(workdir), text)


def _briefly(work, seconds: float):
  """Does what may hang, and goes on without it then."""
  thread = threading.Thread(target=work, daemon=True)
  thread.start()
  thread.join(seconds)


def _note(workdir, index=None) -> str:
  index = jax.process_index() if index is None else index
  return f'{workdir}/processes/{index}.json'


def _hear(workdir) -> dict:
  """{process: its last note}, of those that have left one."""
  heard = {}
  for index in range(jax.process_count()):
    with contextlib.suppress(OSError, ValueError):
      heard[index] = json.loads(files.read_bytes(_note(workdir, index)))
  return heard


def _silent(heard: dict, seconds: float):
  """Sentences about processes whose last note is so old."""
  for index, note in heard.items():
    if time.time() - note['time'] > seconds:
      yield (
        f'process {index} ({note["host"]}, pid {note["pid"]}) has not been '
        f'heard of for {seconds:.0f} s'
      )


def _find_lost(workdir, seconds: float) -> list[str]:
  """Waits until others are silent for so long, or one has told its end."""
  last = time.monotonic() + 2 * seconds
  while time.monotonic() < last:
    heard = _hear(workdir)
    heard.pop(jax.process_index(), None)
    ended = any('its end' in note['at'] for note in heard.values())
    if ended or any(_silent(heard, seconds)):
      return list(_silent(heard, seconds))
    time.sleep(0.5)
  return []


def _place() -> str:
  """The functions of ours that the main thread is in; its innermost line."""
  frame = sys._current_frames().get(threading.main_thread().ident)
  ours = [
    line
    for line in traceback.extract_stack(frame)
    if 'crjax' in pathlib.Path(line.filename).parts
  ]
  if not ours:
    return 'unknown'
  line = ours[-1]
  name = pathlib.Path(line.filename).name
  names = ' > '.join(x.name for x in ours if not x.name.startswith('<'))
  return f'{names} ({name}:{line.lineno} {line.line})'


def _report(step, heard: dict) -> str:
  lines = [
    f'This is process {jax.process_index()} of {jax.process_count()}, after '
    f'step {step}. The processes of this job, those that hold the others up '
    'first:'
  ]
  # First who is silent; who is in a collective waits for the others.
  speaks = lambda note: time.time() - note['time'] < 2.5 * NOTE_SECONDS
  waits = lambda note: '(sharding.py:' in note['at']
  order = lambda x: (speaks(x[1]), waits(x[1]), x[1]['time'])
  for index, note in sorted(heard.items(), key=order):
    lines.append(
      f'  process {index} ({note["host"]}, pid {note["pid"]}): step '
      f'{note["step"]}, last heard of {time.time() - note["time"]:.0f} s ago, '
      f'at {note["at"]}'
    )
  return '\n'.join(lines)
