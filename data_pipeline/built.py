"""Whether a dataset is already there, undamaged and of these settings."""

import hashlib
import json
import sys

ROLES = ('generator', 'policy', 'teacher')
# Of a role: where its model is and what it costs decide nothing.
WHERE = ('url', 'key', 'price_in', 'price_out')
TOKENIZER = 'tokenizer'  # of a dataset's own, the directory beside its splits


def is_built(out, settings) -> bool:
  """Whether `out` holds these settings; exits where it holds anything else."""
  manifest = out / 'manifest.json'
  if manifest.exists():
    found = json.loads(manifest.read_text())
    if found['settings'] == settings:
      if found['sha256'] == digests(out):
        return True
      sys.exit(
        f'{out} is damaged: its files are not those of {manifest}. '
        'Delete it and build again.'
      )
    sys.exit(
      f'{out} holds data of another config (see {manifest}). Delete it or '
      'choose another --config.out.'
    )
  if out.exists() and any(out.iterdir()):
    sys.exit(
      f'{out} is not empty and not a dataset; choose another --config.out.'
    )
  return False


def deciding(c) -> dict:
  """The settings that decide what is built, not where or by how many."""
  found = json.loads(c.to_json())
  for role in ROLES:
    if role in found and not found[role]['url']:
      del found[role]
    elif role in found:
      found[role] = {k: v for k, v in found[role].items() if k not in WHERE}
  elsewhere = ('out', 'workers', 'client')
  return {k: v for k, v in found.items() if k not in elsewhere}


def digests(directory) -> dict:
  """{file name: sha256} of the splits in a directory."""
  return {
    file.name: hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted(directory.glob('*.parquet'))
  }
