"""Grain pipelines from Parquet rows to host batches of tokens.

Both iterators are endless, shuffled anew at every pass, and have `get_state()`
and `set_state()`: the position is plain JSON and part of a checkpoint. Every
process reads the same batches; `sharding.put` takes its share of them.
"""

import pathlib
from typing import NamedTuple

import grain
import numpy as np

from crjax import tokenizer


class Examples(NamedTuple):
  """Rows of SFT, padded on the right."""

  tokens_BT: np.ndarray  # int32
  mask_BT: np.ndarray  # true on completion tokens, those to be learnt


class Prompts(NamedTuple):
  """Questions of RL, padded on the left."""

  tokens_QP: np.ndarray  # int32
  mask_QP: np.ndarray  # true on tokens
  ids_Q: np.ndarray  # int32, the row in the file; names the question's noise
  tasks: list  # of `task`


class Batches:
  """An endless iterator of batches over `rows` rows; its state is JSON."""

  def __init__(self, rows, collate, *, batch: int, seed: int, source: str):
    if len(rows) < batch:
      raise ValueError(
        f'{source} gives {len(rows)} rows that fit, fewer than a batch of '
        f'{batch}; lower the batch or build more data'
      )
    self.rows = len(rows)
    self._collate = collate
    order = grain.MapDataset.source(rows).seed(seed).shuffle().repeat()
    self._iterator = iter(order.to_iter_dataset().batch(batch, batch_fn=list))

  def __iter__(self):
    return self

  def __next__(self):
    return self._collate(next(self._iterator))

  def get_state(self) -> dict:
    return self._iterator.get_state()

  def set_state(self, state: dict):
    self._iterator.set_state(state)


def examples(
  path, tok, *, batch, length, seed, pad_id, thinking=None
) -> Batches:
  """Batches of Examples, `length` tokens wide; longer rows are left out.

  `thinking`: see tokenizer.encode_prompt.
  """
  encoded = [
    tokenizer.encode_example(tok, row['messages'], thinking=thinking)
    for row in read(path, {'id', 'messages'})
  ]
  kept = _fitting(encoded, lambda row: len(row[0]), length, path)

  def collate(rows):
    ids, masks = zip(*rows, strict=True)
    return Examples(
      np.stack([_right(row, length, pad_id) for row in ids]),
      np.stack([_right(row, length, 0) for row in masks]).astype(bool),
    )

  return Batches(kept, collate, batch=batch, seed=seed, source=path)


def prompts(
  path, tok, *, questions, length, seed, pad_id, thinking=None
) -> Batches:
  """Batches of Prompts; see `examples`."""
  rows = [
    (
      i,
      tokenizer.encode_prompt(tok, row['prompt'], thinking=thinking),
      task(row),
    )
    for i, row in enumerate(read(path, {'id', 'kind', 'prompt', 'verify'}))
  ]
  kept = _fitting(rows, lambda row: len(row[1]), length, path)

  def collate(rows):
    ids, tokens, tasks = zip(*rows, strict=True)
    tokens_QP, mask_QP = left_pad(tokens, length, pad_id)
    return Prompts(tokens_QP, mask_QP, np.array(ids, np.int32), list(tasks))

  return Batches(kept, collate, batch=questions, seed=seed, source=path)


def task(row) -> dict:
  """What a judge needs to know of a question's row.

  {'id', 'kind', 'code', 'entry', 'args', 'output'}; where the factory built the
  file also the right answers about a step, `gold`, and the `questions` of kind
  'mixed', as `rewards.score` takes them.
  """
  return {'id': row['id'], 'kind': row['kind']} | row['verify']


def left_pad(rows, length: int, pad_id: int):
  """(tokens_QP int32, mask_QP) of token lists of at most `length`."""
  tokens_QP = np.full((len(rows), length), pad_id, np.int32)
  mask_QP = np.zeros((len(rows), length), bool)
  for i, row in enumerate(rows):
    tokens_QP[i, length - len(row) :] = row
    mask_QP[i, length - len(row) :] = True
  return tokens_QP, mask_QP


def read(path, fields: set):
  """The rows of a Parquet or JSONL file as dicts.

  Raises FileNotFoundError, or ValueError for a damaged file or one that lacks
  one of `fields`.
  """
  import datasets  # Slow to import; tests of pure functions do without.

  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(
      f'{path} does not exist; build it with '
      '`python -m data_pipeline.build --config=configs/data_smoke.py`'
    )
  make = {
    '.parquet': datasets.Dataset.from_parquet,
    '.jsonl': datasets.Dataset.from_json,
  }
  if path.suffix not in make:
    raise ValueError(f'{path}: expected one of {sorted(make)} files')
  try:
    rows = make[path.suffix](str(path))
  except Exception as error:  # Each reader of `datasets` raises its own kind.
    raise ValueError(f'{path} is damaged: {error}; build it again') from error
  if missing := fields - set(rows.column_names):
    raise ValueError(
      f'{path} lacks the fields {sorted(missing)}; it has '
      f'{sorted(rows.column_names)}'
    )
  return rows.to_list()


def _fitting(rows, size, length, path):
  kept = [row for row in rows if size(row) <= length]
  if left_out := len(rows) - len(kept):
    print(
      f'{path}: {left_out:,} of {len(rows):,} rows are longer than {length} '
      'tokens and left out'
    )
  return kept


def _right(row, length, fill):
  return np.pad(
    np.asarray(row, np.int32), (0, length - len(row)), constant_values=fill
  )
