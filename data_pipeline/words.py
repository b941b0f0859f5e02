"""What programs are written with: levels, builtins, names and values."""

import functools
import json
from typing import NamedTuple

from data_pipeline import inventory

# Level -> what a program of it has.
LEVELS = {
  'nested': 'nested calls, straight line',
  'builtins': 'more statements with several builtins, straight line',
  'depth1': 'control flow, one deep',
  'depth2': 'control flow, two deep',
  'depth3': 'control flow, three deep',
  'helper': 'one or two helper functions',
  'class': 'a small class',
  'short': 'one or two statements, each about what the last one made',
}


class Words(NamedTuple):
  """The part of the grammar that a build uses; see configs/data_7b.py."""

  levels: tuple
  arities: tuple
  targets: tuple  # Entries of the inventory around which programs are built,
  entries: tuple  # and those that may follow.
  names: tuple  # of the functions and parameters of level 'short'
  small: dict | None  # of `literal.small_value`; None: values of all sizes


def words(settings: dict) -> Words:
  """Of the field `programs` of a config; ValueError for what is not there."""
  return _words(json.dumps(settings, sort_keys=True))


@functools.cache
def _words(text) -> Words:
  settings = json.loads(text)
  known = {e.name: e for e in inventory.ENTRIES}
  methods = settings['methods'] or list(known)
  for field, values, allowed in (
    ('methods', methods, known),
    ('levels', settings['levels'], LEVELS),
  ):
    if wrong := [v for v in values if v not in allowed]:
      raise ValueError(f'config.programs.{field}: there is no {wrong[0]!r}')
  lacking = [f for f in ('names', 'small') if not settings[f]]
  if 'short' in settings['levels'] and lacking:
    raise ValueError(f"config.programs.{lacking[0]}: level 'short' needs some")
  entries = tuple(known[m] for m in methods)
  given = settings['given']
  targets = [e for e in entries if not given or e.receiver in given]
  return Words(
    tuple(settings['levels']),
    tuple(settings['arities']),
    tuple(targets),
    entries,
    tuple(settings['names']),
    settings['small'] or None,
  )


ALL = Words(tuple(LEVELS)[:-1], (1, 2, 3), *[inventory.ENTRIES] * 2, (), None)
