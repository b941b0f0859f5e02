"""A pool of worker processes that run programs for their value.

What it isolates: every job runs in its own forked process with CPU, memory,
file-size and wall-clock limits, closed standard streams and a fixed hash seed;
a crash, a hang or a poisoned interpreter ends with the job, and the expected
answer is never in that process. What it does not: files can be read and
deleted, processes of the same user signalled, the network reached. Run
untrusted programs inside a container.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
from typing import NamedTuple

WORKER = pathlib.Path(__file__).with_name('worker.py')
SLACK_SECONDS = 5.0  # How much later than its own deadline a worker may reply.


class Job(NamedTuple):
  """A program, and a call of one of its functions."""

  code: str
  entry: str
  args: str  # source text between the parentheses of the call
  trace: bool = False


class Step(NamedTuple):
  """One executed line of the entry function."""

  line: int
  event: str  # 'call' (the first step), 'line', 'return' or 'exception'
  changed: dict  # variable -> repr: the parameters, or what the line changed


class Result(NamedTuple):
  """What became of a job. Verdict 'infra' is our failure, not the program's."""

  verdict: str  # 'ok', 'error', 'timeout', 'memory' or 'infra'
  value: str = ''  # repr of the returned value, up to 4 KB
  detail: str = ''
  steps: tuple = ()


class Pool:
  """`workers` processes; use as a context manager.

  Args:
    workers: how many jobs run at the same time.
    cpu_seconds: CPU time of one job; four times that in wall-clock time.
    memory_mb: address space of one job, in MiB.
  """

  def __init__(self, workers=2, *, cpu_seconds=2.0, memory_mb=512):
    self._limits = {
      'cpu_seconds': cpu_seconds,
      'wall_seconds': 4 * cpu_seconds,
      'memory_mb': memory_mb,
    }
    self._threads = concurrent.futures.ThreadPoolExecutor(workers)
    self._idle = queue.SimpleQueue()
    for _ in range(workers):
      self._idle.put(start())

  def run(self, jobs) -> list[Result]:
    """One Result a job, in the order of the jobs; raises nothing for a job."""
    return list(self._threads.map(self._run, jobs))

  def _run(self, job) -> Result:
    process = self._idle.get()
    try:
      for _ in range(2):  # A dead worker is replaced, its job tried once more.
        try:
          process = process or start()
          return ask(process, job._asdict() | self._limits)
        except (OSError, ValueError) as error:
          if process:
            stop(process)
          process = None
          problem = f'{type(error).__name__}: {error}'
      return Result('infra', detail=problem)
    finally:
      self._idle.put(process)

  def close(self):
    self._threads.shutdown()
    while not self._idle.empty():
      if process := self._idle.get():
        stop(process)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def start() -> subprocess.Popen:
  """A worker: bare interpreter, empty environment, fixed hash seed.

  Its directory is deleted under it, so that a program can create no file.
  """
  command = [sys.executable, '-S', '-s', '-B', str(WORKER)]
  fixed = {'PYTHONHASHSEED': '0', 'LC_ALL': 'C.UTF-8', 'TZ': 'UTC'}
  libraries = {k: v for k, v in os.environ.items() if k == 'LD_LIBRARY_PATH'}
  with tempfile.TemporaryDirectory(prefix='crjax-') as directory:
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      env=libraries | fixed,
      cwd=directory,
      text=True,
      start_new_session=True,
    )
    ready = process.stdout.readline()
  if ready != 'ready\n':
    stop(process)
    raise OSError(f'no worker starts; run it by hand: {" ".join(command)}')
  return process


def stop(process) -> None:
  process.kill()
  process.wait()
  process.stdout.close()
  with contextlib.suppress(OSError):  # Bytes that a dead worker never read.
    process.stdin.close()


def ask(process, job) -> Result:
  """Sends one job; raises OSError or ValueError if the worker is gone."""
  # A program can stop or starve its worker; then the worker is killed too.
  late = job['wall_seconds'] + SLACK_SECONDS
  timer = threading.Timer(late, process.kill)
  timer.start()
  try:
    process.stdin.write(json.dumps(job) + '\n')
    process.stdin.flush()
    reply = process.stdout.readline()
  finally:
    timer.cancel()
  if not reply:
    raise OSError('worker exited without a reply')
  found = json.loads(reply)
  steps = tuple(Step(*step) for step in found.pop('steps', ()))
  return Result(**found, steps=steps)
