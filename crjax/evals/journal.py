"""Answers that are kept as they come, known by the content of their question.

One JSON object a line, {"key", ...}. A run that was cut off, or that asks more,
finds here what it had.
"""

import contextlib
import hashlib
import json
import os
import pathlib


def digest(value) -> str:
  """A name for anything that is JSON."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:24]


def load(path) -> dict:
  """{key: answer} of a journal; a last line that a kill tore is dropped.

  Raises ValueError naming a line that is no answer.
  """
  path, found = pathlib.Path(path), {}
  if path.exists():
    data = path.read_bytes()
    whole = data[: data.rfind(b'\n') + 1]
    if len(whole) < len(data):
      os.truncate(path, len(whole))
    for number, line in enumerate(whole.decode().split('\n')[:-1], start=1):
      try:
        answer = json.loads(line)
        found[answer['key']] = answer
      except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
          f'{path}, line {number}: no answer ({error}); remove that line'
        ) from error
  return found


def keep(path, answer):
  """Appends an answer."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with contextlib.closing(path.open('a', encoding='utf-8')) as file:
    file.write(json.dumps(answer) + '\n')
