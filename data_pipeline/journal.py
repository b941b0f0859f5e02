"""Answers of models on disk: each is kept before anyone sees it, and once.

A directory holds one file a shard, one JSON text a line, keyed by all that
decides an answer. A process appends to its own file alone, which it locks, and
reads those of all; so a run that was killed asks nothing twice, and neither
does one with other shards.
"""

import asyncio
import fcntl
import json
import os
import pathlib
import sys


class Journal:
  """What is known so far; texts stay on disk until they are asked for."""

  def __init__(self, directory: pathlib.Path, shard=(0, 1)):
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / '{}-of-{}.jsonl'.format(*shard)
    self.directory, self.places = directory, {}
    self.file = open(path, 'a+b')  # noqa: SIM115 (open as long as the run)
    try:
      fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      sys.exit(f'data: another process is asking for this shard: {path}')
    for other in sorted(directory.glob('*.jsonl')):
      size = self.index(other)
      if other == path:  # What a killed writer left behind its last line.
        self.file.truncate(size)
        self.size = size

  def index(self, path) -> int:
    """Notes where each answer of a file is; the size of its whole lines."""
    start = 0
    with open(path, 'rb') as file:
      for number, line in enumerate(file, 1):
        if not line.endswith(b'\n'):
          break
        try:
          key = json.loads(line)['key']
        except (ValueError, KeyError, TypeError):
          sys.exit(f'data: {path}, line {number}, is damaged; delete the line')
        self.places.setdefault(key, (path, start, len(line)))
        start += len(line)
    return start

  def get(self, key: str) -> dict | None:
    """The record with this key, or None."""
    if key not in self.places:
      return None
    path, start, size = self.places[key]
    with open(path, 'rb') as file:
      file.seek(start)
      return json.loads(file.read(size))

  async def keep(self, record: dict):
    """Appends a record with a `key`; it is on disk when this returns."""
    line = json.dumps(record).encode() + b'\n'
    start, self.size = self.size, self.size + len(line)
    self.file.write(line)
    self.file.flush()
    # Of several records under way, the first to get there syncs them all.
    await asyncio.to_thread(os.fsync, self.file.fileno())
    place = pathlib.Path(self.file.name), start, len(line)
    self.places.setdefault(record['key'], place)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.file.close()
