"""One run of a pool: which jobs go where, and what their replies mean."""

import collections
import marshal
import secrets
import selectors
import time
from typing import NamedTuple
import warnings

from crjax.execution import results, screen, wire
from crjax.execution.results import Result

IN_FLIGHT = 2  # frames a worker: one runs, one waits in its socket
WALL = 5  # times the processor time; only a backstop
SLACK_SECONDS = 5.0  # How much later than its limits a worker may reply.
LONGEST_CODE = 1 << 20  # characters
TRIES = 2  # of a job whose worker or child was lost
RECHECK = 100  # Of so many values from shared processes, one is run alone.
PROGRESS_SECONDS = 0.5


class Frame(NamedTuple):
  """Jobs of one program that share a fork, by their place in the run."""

  places: tuple
  token: bytes
  data: bytes
  seconds: float  # that it may take


class Run:
  """The state of one `Pool.run`: what waits, what is out, what was found."""

  def __init__(self, pool, links, jobs, progress):
    self.pool, self.links, self.jobs = pool, list(links), jobs
    self.progress, self.told = progress, time.monotonic()
    self.found = [None] * len(jobs)
    self.lost = collections.Counter()  # Tries of a job that gave no verdict.
    self.left = len(jobs)
    self.shared, self.doubted = 0, {}  # The values that are run again.
    self.queue = collections.deque(groups(jobs, pool.share))

  def results(self):
    with selectors.DefaultSelector() as selector:
      for link in list(self.links):
        if link.is_open() and not link.frames:
          selector.register(link.socket, selectors.EVENT_READ, link)
        else:  # Left over from a run that was interrupted, or dead.
          self.renew(selector, link)
      while self.left:
        for link in list(self.links):
          self.guard(selector, link, lambda: self.feed(link))
        if not self.links:
          self.give_up()
          break
        self.wait(selector)
    return self.found

  def feed(self, link):
    # The last frames go to whoever is free, not behind a long one.
    most = IN_FLIGHT if len(self.queue) > len(self.links) else 1
    while self.queue and len(link.frames) < most:
      places = self.queue.popleft()
      job = self.jobs[places[0]]
      if len(job.code) > LONGEST_CODE:
        for place in places:
          self.settle(place, Result('unsupported', detail='program too long'))
      else:
        link.send(self.frame(places))

  def frame(self, places):
    pool, job = self.pool, self.jobs[places[0]]
    payload = marshal.dumps(
      {
        'code': job.code,
        'entry': job.entry,
        'args': [self.jobs[place].args for place in places],
        'trace': job.trace,
      },
      2,  # A version without references.
    )
    token, wall_s = secrets.token_bytes(16), WALL * pool.cpu_seconds
    header = wire.Header(
      size=len(payload),
      calls=len(places),
      cpu_us=int(pool.cpu_seconds * 1e6),
      wall_us=int(wall_s * 1e6),
      memory_mb=pool.memory_mb,
      record_bytes=wire.RECORD_BYTES + (wire.TRACE_BYTES if job.trace else 0),
      token=token,
    )
    seconds = wall_s * len(places) + SLACK_SECONDS
    return Frame(places, token, wire.HEADER.pack(*header) + payload, seconds)

  def wait(self, selector):
    """Moves the bytes that can move; replaces workers that do not answer."""
    for link in self.links:
      writes = selectors.EVENT_WRITE if link.outbox else 0
      selector.modify(link.socket, selectors.EVENT_READ | writes, link)
    for key, events in selector.select(1.0):
      link = key.data
      if events & selectors.EVENT_WRITE:
        self.guard(selector, link, link.write)
      if events & selectors.EVENT_READ and link in self.links:
        self.guard(selector, link, lambda: self.receive(link))
    now = time.monotonic()
    for link in list(self.links):
      if link.frames and now - link.since > link.frames[0].seconds:
        self.replace(selector, link)

  def guard(self, selector, link, work):
    try:
      work()
    except OSError:
      self.replace(selector, link)

  def replace(self, selector, link):
    """Of the frames that a dead worker held, the first is the suspect."""
    selector.unregister(link.socket)
    for i, frame in enumerate(link.frames):
      for place in frame.places:
        if self.found[place] is None:
          self.again(place, 'its worker died', suspect=i == 0)
    self.renew(selector, link)

  def renew(self, selector, link):
    self.links.remove(link)
    try:
      new = self.pool.replace(link)
    except OSError:
      return  # One fewer; `results` ends without any.
    self.links.append(new)
    selector.register(new.socket, selectors.EVENT_READ, new)

  def again(self, place, why, suspect=True):
    """Runs a job alone, unless it was lost too often."""
    self.lost[place] += suspect
    if self.lost[place] >= TRIES:
      self.settle(place, Result('infra', detail=f'{why}, {TRIES} times'))
    else:
      self.queue.append((place,))

  def receive(self, link):
    for frame, reply, data in link.read():
      records = results.split(data)
      read = self.read_one if len(frame.places) == 1 else self.read_many
      read(frame, reply, records)

  def read_one(self, frame, reply, records):
    (place,) = frame.places
    if reply.end != wire.ENDED or records == []:
      result = results.ended(reply)
    elif records is None or len(records) > 1:
      result = Result('crash', detail='a forged or broken record')
    else:
      result = results.read(records[0], frame.token, self.jobs[place])
    if result.verdict == 'infra':
      self.again(place, result.detail)
    else:
      self.confirm(place, result)
      self.settle(place, result._replace(cpu_s=reply.cpu_us / 1e6))

  def read_many(self, frame, reply, records):
    """Only values count in company; whatever else happened, happens alone."""
    if records is None or len(records) > len(frame.places):
      records = []
    cpu_s = reply.cpu_us / 1e6 / max(len(records), 1)
    for place, record in zip(frame.places, records, strict=False):
      result = results.read(record, frame.token, self.jobs[place])
      self.shared += result.verdict == 'ok'
      if result.verdict != 'ok':
        self.queue.append((place,))
      elif self.shared % RECHECK == 0:
        self.doubted[place] = result
        self.queue.append((place,))
      else:
        self.settle(place, result._replace(cpu_s=cpu_s))
    rest = frame.places[len(records) :]
    if rest and records and reply.end == wire.ENDED and not reply.status:
      self.queue.append(rest)  # It ended by itself.
    else:  # One of them ended it; others may not have been written yet.
      self.queue.extend((place,) for place in rest)

  def confirm(self, place, alone):
    shared = self.doubted.pop(place, None)
    if shared and (shared.py, shared.strict) != (alone.py, alone.strict):
      warnings.warn(
        'sandbox: a call gave another value in company than alone; use '
        f'Pool(share=1) for programs like this:\n{self.jobs[place].code}',
        RuntimeWarning,
        stacklevel=2,
      )

  def settle(self, place, result):
    self.found[place] = result
    self.left -= 1
    now = time.monotonic()
    if self.progress and (not self.left or now - self.told > PROGRESS_SECONDS):
      self.told = now
      self.progress(len(self.jobs) - self.left, len(self.jobs))

  def give_up(self):
    for place, result in enumerate(self.found):
      if result is None:
        self.settle(place, Result('infra', detail='no worker starts'))


def groups(jobs, share):
  """Places of jobs that go into one frame each, in order of their programs."""
  programs = collections.defaultdict(list)
  for place, job in enumerate(jobs):
    programs[job.code, job.entry].append(place)
  for (code, entry), places in programs.items():
    alone = share == 1 or not entry or len(places) == 1 or screen.unsafe(code)
    together = [] if alone else [p for p in places if not jobs[p].trace]
    for start in range(0, len(together), share):
      yield tuple(together[start : start + share])
    for place in places:
      if alone or jobs[place].trace:
        yield (place,)
