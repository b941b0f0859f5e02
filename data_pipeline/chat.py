"""Asks a server with OpenAI's chat API, and again until it has an answer.

What is asked is known by its content, so an answer in the journal is never
asked for again. Whatever may pass is tried again: time-outs, connections that
break, status 408, 409, 425, 429 and 5xx, and bodies that are no answer. A
refusal (any other status), too many attempts and the end of the time that was
given stop the run: nothing new is sent, what is under way is still kept.
"""

import asyncio
import collections
import email.utils
import json
import os
import random
import time
from typing import NamedTuple
import urllib.parse

import httpx2

from data_pipeline import identity

AGAIN = (408, 409, 425, 429)  # and all from 500
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds
SHOWN = 300  # characters of what a server says


class Answer(NamedTuple):
  """What a model said; cut off unless `finish` is 'stop'."""

  key: str
  text: str
  finish: str
  tokens: list  # [of the prompt, of the answer]; zeros if the server is silent
  endpoint: str


class Stopped(Exception):
  """The run cannot go on; the message says why."""


class Failed(Exception):
  """One attempt came to nothing: (reason, seconds the server asks to wait)."""


class Chat:
  """One server and model, asked by at most `concurrency` at a time.

  Args:
    url: where `/chat/completions` is, such as http://localhost:8000/v1.
    sampling: model, temperature, top_p and max_tokens.
    key: the environment variable that holds the API key; unset for none.
    concurrency, seconds (of one attempt), attempts (for one answer) and hours
      (of the run).
  """

  def __init__(
    self, journal, *, url, sampling, key, concurrency, seconds, attempts, hours
  ):
    self.journal, self.sampling, self.attempts = journal, sampling, attempts
    self.url, self.seconds = url.rstrip('/') + '/chat/completions', seconds
    self.endpoint = without_secrets(url)
    token = os.environ.get(key, '')
    self.http = httpx2.AsyncClient(
      headers={'Authorization': f'Bearer {token}'} if token else {},
      limits=httpx2.Limits(max_connections=concurrency),
      timeout=None,
    )
    self.room = asyncio.Semaphore(concurrency)
    self.why, self.halted = '', asyncio.Event()
    self.began = time.monotonic()
    self.deadline = self.began + 3600 * hours
    self.calm = 0.0  # When a server that is overrun wants to be asked again.
    self.waiting = {}  # Key -> the task that is asking.
    self.counts, self.failures = collections.Counter(), collections.Counter()

  def key(self, messages, sample: int) -> str:
    """Of everything that decides an answer."""
    asked = [self.sampling, messages, sample]
    return identity.digest(json.dumps(asked, sort_keys=True), 24)

  async def ask(self, messages, sample: int) -> Answer:
    """The answer to a conversation; `sample` tells several of them apart.

    Raises Stopped.
    """
    key = self.key(messages, sample)
    if found := self.journal.get(key):
      self.counts['kept'] += 1
      return Answer(**found)
    if key not in self.waiting:
      self.waiting[key] = asyncio.create_task(self.fetch(key, messages))
    try:
      return await self.waiting[key]
    finally:
      self.waiting.pop(key, None)

  async def fetch(self, key, messages) -> Answer:
    """Asks until there is an answer, and keeps it."""
    seed = int(key[:7], 16)  # 28 bits: some servers take 32 with a sign.
    body = self.sampling | {'messages': messages, 'seed': seed}
    async with self.room:
      for attempt in range(self.attempts):
        until = min(self.calm, self.deadline)
        await self.pause(until - time.monotonic())
        if time.monotonic() > self.deadline:
          self.stop('the hours that --config.client.hours gives are over')
        if self.why:
          raise Stopped(self.why)
        try:
          answer = Answer(key, *await self.attempt(body), self.endpoint)
        except Failed as error:
          reason, wait = error.args
          self.failures[reason] += 1
          self.calm = max(self.calm, time.monotonic() + wait)
          if attempt + 1 < self.attempts:
            await self.pause(backed_off(attempt))
        else:
          await self.journal.keep(answer._asdict())
          self.counts['answers'] += 1
          self.counts['in'] += answer.tokens[0]
          self.counts['out'] += answer.tokens[1]
          return answer
      self.stop(
        f'{self.attempts} attempts for one answer came to nothing, the last: '
        f'{reason}'
      )
      raise Stopped(self.why)

  async def attempt(self, body):
    """(text, finish, tokens) of one request; raises Failed or Stopped."""
    try:
      async with asyncio.timeout(self.seconds):
        reply = await self.http.post(self.url, json=body)
    except TimeoutError:
      raise Failed('no answer in time', 0) from None
    except httpx2.RequestError as error:
      raise Failed(f'connection: {type(error).__name__}', 0) from None
    if reply.status_code in AGAIN or reply.status_code >= 500:
      wait = asked_wait(reply.headers.get('retry-after', ''))
      raise Failed(f'status {reply.status_code}', wait)
    if reply.status_code != 200:
      said = reply.text[:SHOWN]
      self.stop(f'the server refuses (status {reply.status_code}): {said}')
      raise Stopped(self.why)
    try:
      return read(reply.json())
    except (ValueError, LookupError, TypeError):
      raise Failed('not an answer', 0) from None

  def stop(self, why):
    """Nothing more is sent; the first reason stays."""
    self.why = self.why or why
    self.halted.set()

  async def pause(self, seconds):
    """Sleeps, but not longer than the run is on."""
    if seconds > 0 and not self.why:
      try:
        async with asyncio.timeout(seconds):
          await self.halted.wait()
      except TimeoutError:
        pass

  async def close(self):
    """Waits for what is under way, which is paid for, and keeps it."""
    await asyncio.gather(*self.waiting.values(), return_exceptions=True)
    await self.http.aclose()


def read(reply):
  """(text, finish, tokens) of a body; raises what a wrong one leads to.

  A model that thinks in a field of its own and was cut off has no content.
  """
  choice = reply['choices'][0]
  text, finish = choice['message']['content'], choice['finish_reason']
  if not isinstance(text, str | None) or not isinstance(finish, str):
    raise TypeError('content or finish_reason is no text')
  usage = reply.get('usage') or {}
  names = ('prompt_tokens', 'completion_tokens')
  return text or '', finish, [int(usage.get(name) or 0) for name in names]


def backed_off(attempt: int) -> float:
  """Seconds; random, so that those who failed together do not come back so."""
  longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt)
  return longest * random.uniform(0.5, 1)


def asked_wait(text: str) -> float:
  """Seconds of a Retry-After, a number or a date; 0 for anything else."""
  try:
    return max(0.0, float(text))
  except ValueError:
    pass
  try:
    return max(
      0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    )
  except ValueError:
    return 0.0


def without_secrets(url: str) -> str:
  """A URL without what may be a password in it."""
  parts = urllib.parse.urlsplit(url)
  host = parts.netloc.rpartition('@')[2]
  return urllib.parse.urlunsplit((parts.scheme, host, parts.path, '', ''))
