"""Files of a build that may be killed at any moment: whole or not there.

A directory is named by a hash of all that decides what is in it, so that what
an earlier run left is either right or not looked at.
"""

import hashlib
import json
import os
import pathlib

from data_pipeline import identity

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = (
  'data_pipeline/*.py',
  'data_pipeline/*.json',
  'crjax/execution/*.py',
  'crjax/rewards/*.py',
  'crjax/tokenizer.py',
)


def key(*parts) -> str:
  """A name for what these parts, as JSON, decide."""
  return identity.digest(json.dumps(parts, sort_keys=True), 12)


def code_hash() -> str:
  """Of the code that makes datasets."""
  found = hashlib.sha256()
  for pattern in SOURCES:
    for path in sorted(ROOT.glob(pattern)):
      found.update(path.read_bytes())
  return found.hexdigest()[:12]


def write(path: pathlib.Path, rows):
  """One JSON text a line; appears whole."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.name}.{os.getpid()}')
  with open(temporary, 'w') as file:
    file.writelines(json.dumps(row) + '\n' for row in rows)
  os.replace(temporary, path)


def read(path: pathlib.Path) -> list:
  with open(path) as file:
    return [json.loads(line) for line in file]


def first(path: pathlib.Path):
  with open(path) as file:
    return json.loads(file.readline())


def part(directory: pathlib.Path, number: int) -> pathlib.Path:
  return directory / f'{number:06}.jsonl'


def missing(directory, count: int) -> list[int]:
  """Numbers of the parts that are not there yet."""
  return [i for i in range(count) if not part(directory, i).exists()]


def digest(directory, count: int) -> str:
  """Of the parts of a directory in their order."""
  found = hashlib.sha256()
  for i in range(count):
    found.update(part(directory, i).read_bytes())
  return found.hexdigest()[:12]
