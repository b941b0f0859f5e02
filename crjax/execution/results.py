"""What a job is, and what becomes of it: reads the bytes that workers send."""

import json
import os
import signal
from typing import NamedTuple

from crjax.execution import labels, wire

MISSHAPEN = (
  ValueError,
  TypeError,
  KeyError,
  IndexError,
  AttributeError,
  RecursionError,
)


class Job(NamedTuple):
  """A program, and a call of one of its functions.

  `args` is source of literals, as `literals.render_call` gives it; names of
  the program do not exist there. With entry '' they do, and the arguments
  themselves are the value: ([positional], {keyword: ...}).
  """

  code: str
  entry: str
  args: str  # source text between the parentheses of the call
  trace: bool = False


class Result(NamedTuple):
  """What became of a job. Verdict 'infra' is our failure, not the program's."""

  verdict: str  # 'ok' or one of verdicts.KINDS
  value: str = ''  # repr of what was returned
  detail: str = ''
  steps: tuple = ()
  py: str = ''  # canonical texts, see values.texts
  strict: str = ''
  cpu_s: float = 0.0
  trace: tuple = ()  # labels.Event of every frame; `steps` are the entry's


def split(data: bytes) -> list[bytes] | None:
  """The records in a reply, tokens included; None if bytes are left over."""
  records, start = [], 0
  while start < len(data):
    if len(data) - start < wire.LENGTH.size:
      return None
    (length,) = wire.LENGTH.unpack_from(data, start)
    start += wire.LENGTH.size
    records.append(data[start : start + length])
    if len(records[-1]) < length:
      return None
    start += length
  return records


def ended(reply) -> Result:
  """Of a child that ended without a record for its call."""
  if reply.end in (wire.CPU, wire.WALL):
    what = 'CPU' if reply.end == wire.CPU else 'wall-clock'
    return Result('timeout', detail=f'{what} limit')
  if reply.end == wire.OUTPUT:
    return Result('output_limit', detail='limit of what a worker reads')
  if reply.end == wire.CLOSED:
    return Result('crash', detail='closed its channel and went on')
  code = os.waitstatus_to_exitcode(reply.status)
  if code == -signal.SIGSYS:
    return Result('disallowed', detail='a forbidden system call')
  if code == -signal.SIGXCPU:
    return Result('timeout', detail='CPU limit')
  if code == -signal.SIGKILL:  # No program can: the system did, or a user.
    return Result('infra', detail='its process was killed')
  how = f'status {code}' if code >= 0 else signal.Signals(-code).name
  return Result('crash', detail=f'exit with {how} and no value')


def read(record: bytes, token: bytes, job: Job) -> Result:
  """Of a record; a forged or broken one is a 'crash', and never raises."""
  try:
    if record[: len(token)] != token:
      raise ValueError('no token')
    text = record[len(token) :].decode()
    return _read(text[:1], text[1:], job)
  except MISSHAPEN:
    return Result('crash', detail='a forged or broken record')


def _read(tag, body, job):
  if tag == wire.VALUE:
    py, strict, value, rows = body.split(wire.FIELD)
    return Result('ok', value, py=py, strict=strict, **_trace(rows, job))
  if tag == wire.RAISED:
    phase, name, message, rows = body.split(wire.FIELD)
    return Result(
      _raised(phase, name),
      detail=f'{name} in {phase}: {message}'.removesuffix(': '),
      **_trace(rows, job),
    )
  if tag == wire.STOPPED:
    kind, detail = body.split(wire.FIELD)
    return Result({k: k for k in STOPS}[kind], detail=detail)
  kind = {
    wire.TAINTED: 'disallowed',
    wire.UNSUPPORTED: 'unsupported',
    wire.PRINTED: 'output_limit',
  }[tag]
  return Result(kind, detail=body[:200])


STOPS = ('timeout', 'output_limit', 'unsupported')


def _raised(phase, name):
  if name == 'MemoryError':
    return 'memory'
  is_syntax = phase == 'compile' and name != 'SystemExit'
  return 'syntax' if is_syntax else 'exception'


def _trace(rows, job):
  if not job.trace:
    return {}
  events = labels.decode(json.loads(rows))
  return {'trace': events, 'steps': labels.steps(events, job.code)}
