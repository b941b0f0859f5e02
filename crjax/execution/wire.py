"""The bytes between a pool and its workers. Standard library only.

A frame is HEADER, then a marshalled dict {code, entry, args: [source], trace}:
calls of one program that share a fork. Its reply is REPLY, then the records
that the child wrote: a length, the frame's token, a tag and the tag's fields.
The worker counts records by their length and reads nothing else of them.
"""

import struct
from typing import NamedTuple

TOKEN_BYTES = 16  # Drawn for each frame; a record without it is forged.
RECORD_BYTES = 64 << 10  # of a value; larger is 'output_limit'
TRACE_BYTES = 2 << 20  # more, of a value with its trace
MOST_CALLS = 16  # that share a fork
REPLY_BYTES = MOST_CALLS * (RECORD_BYTES + 64) + TRACE_BYTES
FIELD = '\0'  # Between the fields of a record; repr and JSON never hold it.

# How the worker saw a child end.
ENDED, CPU, WALL, OUTPUT, CLOSED = range(5)
READY = b'\1'  # The first byte of a child, when it gives way to the program.


class Header(NamedTuple):
  """Of a frame; the limits hold for each call."""

  size: int  # bytes of the marshalled dict
  calls: int
  cpu_us: int
  wall_us: int
  memory_mb: int
  record_bytes: int
  token: bytes


class Reply(NamedTuple):
  """How a frame's child ended."""

  size: int  # bytes of the records
  end: int  # ENDED, CPU, WALL, OUTPUT or CLOSED
  status: int  # of wait4(2)
  cpu_us: int


HEADER = struct.Struct(f'<IIIIII{TOKEN_BYTES}s')
REPLY = struct.Struct('<IBiI')
LENGTH = struct.Struct('<I')

# Tags of a record and their fields.
VALUE = 'V'  # py text, strict text, repr, steps
RAISED = 'X'  # phase, type, message, steps
TAINTED = 'T'  # what the program touched
UNSUPPORTED = 'U'  # why the result is no value
PRINTED = 'O'  # more than a program may print
STOPPED = 'S'  # verdict, detail: the tracer gave up
