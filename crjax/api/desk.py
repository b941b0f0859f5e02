"""Where HTTP, one event loop, and the engine, one thread, meet."""

import asyncio
import collections
import dataclasses
import queue
import secrets

from crjax.api.asks import Ask
from crjax.api.served import Refused


@dataclasses.dataclass(eq=False)
class Work:
  """The choices of one ask, and what the engine made of them so far."""

  loop: asyncio.AbstractEventLoop
  count: int
  dropped: set[int] = dataclasses.field(default_factory=set)
  # (index, ids, logps, finish); None when the engine has ended.
  pieces: asyncio.Queue = dataclasses.field(default_factory=asyncio.Queue)


class Desk:
  """Hands requests over in their order; at most `room` of them wait.

  The event loop calls submit, piece, drop and counts, the engine's thread
  arriving, cancelled and deliver, either of them stop and end. `request` makes
  the engine's of (tokens, question, rollout, knobs, least, most, tag).
  """

  def __init__(self, room: int, request):
    self.room, self.request = room, request
    self.queue = queue.Queue()
    self.open = set()  # Works that somebody waits for
    self.running = 0  # requests handed over and not finished
    self.tally = collections.Counter()  # kept by the engine
    self.ended = False

  def submit(self, ask: Ask) -> Work:
    """Raises Refused if there is no room, or no engine any more."""
    waiting, count = self.queue.qsize(), len(ask.prompts) * ask.n
    if waiting + count > self.room:
      raise Refused(
        f'{waiting} choices wait, {self.room} may: no room for {count} more',
        status=429,
        code='rate_limit_exceeded',
      )
    work = Work(asyncio.get_running_loop(), count)
    self.open.add(work)
    if self.ended:  # Looked at last: `end` tells those that were open before.
      self.drop(work)
      raise Refused('the server has ended', status=503)
    for request in self._requests(ask, work):
      self.queue.put(request)
    return work

  async def piece(self, work: Work):
    """(index, ids, logps, finish) that are new."""
    found = await work.pieces.get()
    if found is None:
      raise Refused('the server has ended before it was done', status=503)
    return found

  def drop(self, work: Work, index=None):
    """Nobody waits for one choice any more, or for all of them."""
    if index is not None:
      work.dropped.add(index)
      return
    work.dropped.update(range(work.count))
    self.open.discard(work)

  def counts(self) -> dict:
    return {
      'status': 'ended' if self.ended else 'ok',
      'running': self.running,
      'waiting': self.queue.qsize(),
      'tokens': self.tally['tokens'],
    }

  def stop(self):
    """Nobody is there any more: the engine ends within a chunk."""
    for work in list(self.open):
      self.drop(work)
    self.queue.put(None)

  def arriving(self):
    """Yields requests, and None for 'none now' while others run."""
    while True:
      try:
        request = self.queue.get(block=not self.running)
      except queue.Empty:
        yield None
        continue
      if request is None:
        return
      if not self.cancelled(request):
        self.running += 1
        yield request

  def cancelled(self, request) -> bool:
    work, index = request.tag
    return index in work.dropped

  def deliver(self, piece):
    self.running -= piece.finish is not None
    work, index = piece.request.tag
    if index not in work.dropped:
      ids, logps = list(map(int, piece.tokens)), list(map(float, piece.logp))
      new = index, ids, logps, piece.finish
      work.loop.call_soon_threadsafe(work.pieces.put_nowait, new)

  def end(self):
    """No piece will come any more: whoever waits is told."""
    self.ended = True
    for work in list(self.open):
      work.loop.call_soon_threadsafe(work.pieces.put_nowait, None)

  def _requests(self, ask, work):
    """The noise of a choice is that of (seed, its number among the n)."""
    for i, tokens in enumerate(ask.prompts):
      seed = secrets.randbits(31) if ask.seed is None else ask.seed % 2**31
      for rollout in range(ask.n):
        tag = work, i * ask.n + rollout
        yield self.request(
          tokens, seed, rollout, ask.knobs, ask.least, ask.most[i], tag
        )
