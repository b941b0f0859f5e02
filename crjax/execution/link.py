"""One worker process and the socket to it; only `pool` uses this."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

from crjax.execution import wire

WORKER = pathlib.Path(__file__).with_name('worker.py')
FIRST_UID = 61_500  # Of workers that root starts; one each.
START_SECONDS = 60.0
SOCKET_BYTES = 1 << 20


class Link:
  """Starts a worker; `ready` waits for its report, `stop` ends it.

  The worker lives as long as this end of the socket: it cannot outlive the
  process that started it, however that dies.
  """

  def __init__(self, index, hash_seed, without, modules=()):
    self.socket, theirs = socket.socketpair()
    for end in (self.socket, theirs):
      end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
    config = {
      'uid': FIRST_UID + index,
      'without': list(without),
      'modules': list(modules),
      'paths': [path for path in sys.path if modules and path],
    }
    # Not -I, which would ignore the hash seed. Its own directory is the first
    # to import from (no -P). No preexec_fn: CPython then uses vfork and exec,
    # which is safe from a process with threads.
    command = [interpreter(), '-s', '-S', '-B', str(WORKER)]
    fixed = {
      'PYTHONHASHSEED': str(hash_seed),
      'LC_ALL': 'C.UTF-8',
      'TZ': 'UTC',
      'MALLOC_ARENA_MAX': '1',
      'LD_BIND_NOW': '1',  # Here once, and not in every child.
      'OPENBLAS_NUM_THREADS': '1',  # A worker forks: it has one thread.
    }
    paths = {k: v for k, v in os.environ.items() if k == 'LD_LIBRARY_PATH'}
    with theirs:
      self.process = subprocess.Popen(
        [*command, str(theirs.fileno()), json.dumps(config)],
        pass_fds=[theirs.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,  # Until it is ready.
        env=paths | fixed,
        cwd='/',
        start_new_session=True,
      )
    self.frames = []  # sent and not answered, oldest first
    self.outbox, self.inbox = bytearray(), bytearray()
    self.since = time.monotonic()  # The oldest frame runs since then.

  def ready(self):
    """Reads the report; OSError if the worker does not come up."""
    self.socket.settimeout(START_SECONDS)
    try:
      (size,) = wire.LENGTH.unpack(self._exactly(wire.LENGTH.size))
      self.report = json.loads(self._exactly(size))
    except OSError as error:
      self.process.kill()
      said = self.process.stderr.read().decode(errors='replace')[-2000:]
      self.stop()
      raise OSError(f'a sandbox worker does not start: {said}') from error
    self.process.stderr.close()
    self.socket.setblocking(False)

  def _exactly(self, size):
    data = bytearray()
    while len(data) < size:
      part = self.socket.recv(size - len(data))
      if not part:
        raise ConnectionError('the worker ended')
      data += part
    return bytes(data)

  def send(self, frame):
    if not self.frames:
      self.since = time.monotonic()
    self.frames.append(frame)
    self.outbox += frame.data
    self.write()

  def write(self):
    """Sends what the socket takes; OSError if the worker is gone."""
    while self.outbox:
      try:
        sent = self.socket.send(self.outbox)
      except BlockingIOError:
        return
      del self.outbox[:sent]

  def read(self):
    """(frame, reply, records) that arrived; OSError if the worker is gone."""
    try:
      part = self.socket.recv(1 << 18)
      if not part:
        raise ConnectionError('the worker ended')
      self.inbox += part
    except BlockingIOError:
      pass
    while len(self.inbox) >= wire.REPLY.size:
      reply = wire.Reply._make(wire.REPLY.unpack_from(self.inbox))
      end = wire.REPLY.size + reply.size
      if len(self.inbox) < end:
        return
      data = bytes(self.inbox[wire.REPLY.size : end])
      del self.inbox[:end]
      self.since = time.monotonic()
      yield self.frames.pop(0), reply, data

  def is_open(self):
    return self.socket.fileno() >= 0

  def stop(self):
    """Ends the worker and all that it runs, and collects it."""
    self.socket.close()
    self.process.stderr.close()
    self.process.kill()  # Its children die with it, see worker and child.
    self.process.wait()


def interpreter() -> str:
  """The interpreter without a virtual environment: only its own library."""
  base = getattr(sys, '_base_executable', None)
  return base if base and os.path.exists(base) else sys.executable
