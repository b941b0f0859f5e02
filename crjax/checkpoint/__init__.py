"""Orbax checkpoints of a run; every name that other modules use.

A checkpoint holds the whole state (parameters, optimizer, step, sampling key)
and the position of the data iterator. Orbax writes into a temporary directory
and renames it, so a killed process leaves either a whole checkpoint or none;
in a bucket a last, small object does what the rename does. A manifest of sizes
and hashes is added to each, by which damage is noticed (`manifest.py`).
`python -m crjax.checkpoint` lists, verifies and copies them.
"""

from crjax.checkpoint.manifest import damage, unreadable
from crjax.checkpoint.reading import agree, restore, restore_params
from crjax.checkpoint.store import Unwritten, open_manager, save, write_json

__all__ = [
  'Unwritten',
  'agree',
  'damage',
  'open_manager',
  'restore',
  'restore_params',
  'save',
  'unreadable',
  'write_json',
]
