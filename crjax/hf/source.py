"""What a run keeps of the checkpoint it started from, for its export.

A run's directory `source` holds config.json, generation_config.json and the
tokenizer files as they were, the files and dtypes of the tensors, and a
fingerprint of the weights, so that a resumed run notices other ones.
"""

import hashlib
import os
import pathlib
import shutil

import numpy as np

from crjax import files, tokenizer
from crjax.hf import config

LAYOUT = 'layout.json'
CONFIG = 'config.json'
GENERATION = 'generation_config.json'
CARRIED = (GENERATION, *tokenizer.FILES)
SAMPLES, SAMPLE_BYTES = 16, 4096  # of each file, for the fingerprint


def remember(checkpoint, path, tokenizer_dir=None):
  """Keeps in `path` what an export carries over from a checkpoint.

  With `tokenizer_dir`, all tokenizer files are its own. Raises ValueError if
  `path` remembers other weights: the checkpoint was replaced since.
  """
  path, place = pathlib.Path(path), checkpoint.place
  stored = checkpoint.tensors.values()
  mark = fingerprint({t.file for t in stored})
  before = read_layout(path).get('fingerprint', mark)
  if before != mark:
    raise ValueError(
      f'{place.name} holds other weights than those that {path.parent} started '
      'from; bring them back, or start a new run'
    )
  path.mkdir(parents=True, exist_ok=True)
  names = (CONFIG, GENERATION) if tokenizer_dir else (CONFIG, *CARRIED)
  for name in names:
    if (file := place.path / name).exists():
      shutil.copy(file, path / name)
  if tokenizer_dir:
    tokenizer.copy(tokenizer_dir, path)
  layout = {t.name: [os.path.basename(t.file), t.code] for t in stored}
  config.write_json(path / LAYOUT, {'fingerprint': mark, 'tensors': layout})


def remember_new(cfg, path, tokenizer_dir):
  """The same for a model that starts from nothing."""
  tokenizer.copy(tokenizer_dir, path)
  for name, value in new(cfg, tokenizer_dir).items():
    config.write_json(pathlib.Path(path) / name, value)


def new(cfg, tokenizer_dir, dtype='float32') -> dict:
  """{file: JSON} that describe a model which no checkpoint describes."""
  ids, ends = token_ids(tokenizer_dir) if tokenizer_dir else ({}, {})
  return {
    CONFIG: config.write(cfg) | {'dtype': dtype} | ids,
    GENERATION: ids | ends,
  }


def read_layout(source) -> dict:
  """What `remember` wrote of weights and tensors; {} where it did not."""
  path = pathlib.Path(source or '') / LAYOUT
  return config.read_json(path) if source and path.exists() else {}


def carried(source, names) -> dict[str, bytes]:
  """{file: bytes} of those of `names` that `source` holds."""
  found = {name: pathlib.Path(source) / name for name in names}
  return {k: path.read_bytes() for k, path in found.items() if path.exists()}


def fingerprint(paths) -> str:
  """A hash of the sizes of files and of bytes from all over them.

  Training moves nearly every weight, so a few blocks tell checkpoints apart.
  """
  digest = hashlib.sha256()
  for path in sorted(paths, key=os.path.basename):
    with files.Ranges(path) as file:
      digest.update(f'{os.path.basename(path)} {file.size}\n'.encode())
      n = min(SAMPLE_BYTES, file.size)
      for start in np.linspace(0, file.size - n, SAMPLES, dtype=int):
        block = bytearray(n)
        file.read_into(block, int(start))
        digest.update(block)
  return digest.hexdigest()


def token_ids(tokenizer_dir):
  """(bos, eos and pad ids, all end ids) as fields, from the tokenizer.

  Generation ends at the end of a turn or of the text, as training samples do.
  """
  tok = tokenizer.load(tokenizer_dir)
  ids = {
    'bos_token_id': tok.bos_token_id,
    'eos_token_id': tok.eos_token_id,
    'pad_token_id': tok.pad_token_id,
  }
  ends = list(tokenizer.stop_ids(tok))
  ids = {k: v for k, v in ids.items() if v is not None}
  return ids, {'eos_token_id': ends} if ends else {}
