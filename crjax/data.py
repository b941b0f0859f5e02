"""Grain pipelines from rows of files to host batches of tokens.

Both iterators are endless, shuffled anew at every pass, and have `get_state()`
and `set_state()`: the position is plain JSON and part of a checkpoint. Every
process reads the same batches; `sharding.put` takes its share of them, so that
the order does not depend on how many processes there are.
"""

import bisect
from typing import NamedTuple

import grain
import numpy as np

from crjax import tokenizer
from crjax.examples import load, read, report


class Examples(NamedTuple):
  """Rows of SFT, of one example or several, padded on the right."""

  tokens_BT: np.ndarray  # int32
  mask_BT: np.ndarray  # true on completion tokens, those to be learnt
  segment_BT: np.ndarray  # int32, which example of its row, from 1; 0: padding


class Prompts(NamedTuple):
  """Questions of RL, padded on the left."""

  tokens_QP: np.ndarray  # int32
  mask_QP: np.ndarray  # true on tokens
  ids_Q: np.ndarray  # int32, the row in the file; names the question's noise
  tasks: list  # of `task`


class Batches:
  """An endless iterator of batches; its state is JSON.

  Args:
    sources: a list of rows for each data set.
    collate: rows -> batch.
    weights: how often each data set is drawn from; None for a single one.
    names: of the data sets, for messages.
  """

  def __init__(
    self, sources, collate, *, batch: int, seed: int, names, weights=None
  ):
    for rows, name in zip(sources, names, strict=True):
      if len(rows) < batch:
        raise ValueError(
          f'{name} gives {len(rows)} rows that fit, fewer than a batch of '
          f'{batch}; lower the batch or build more data'
        )
    self.rows = sum(map(len, sources))
    self._collate = collate
    orders = [
      grain.MapDataset.source(rows).seed(seed + i).shuffle().repeat()
      for i, rows in enumerate(sources)
    ]
    order = grain.MapDataset.mix(orders, weights) if weights else orders[0]
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
  sources, tok, *, batch, length, seed, pad_id, thinking=None, packed=False
) -> Batches:
  """Batches of Examples, `length` tokens wide; longer examples are left out.

  Args:
    sources: a file, or pairs (file, weight): the weights are the shares of the
      examples that come from each, whether packed or not.
    thinking: see tokenizer.encode_prompt.
    packed: several examples share a row where they fit. Each sees itself alone,
      so that the loss and the gradient of an example do not change.
  """
  if isinstance(sources, str) or not isinstance(sources, (list, tuple)):
    sources = ((sources, 1.0),)
  names, shares = zip(*sources, strict=True)
  if min(shares) <= 0:
    raise ValueError(f'config.data: the weights {shares} must be above 0')
  found = [load(n, tok, length=length, thinking=thinking) for n in names]
  rows = [
    pack(part, length) if packed else [[one] for one in part] for part in found
  ]
  # A draw is a row; packed rows hold several examples.
  weights = [
    share * len(some) / max(len(part), 1)
    for share, some, part in zip(shares, rows, found, strict=True)
  ]
  _describe(names, found, rows, weights, length)

  def collate(rows):
    return lay_out(rows, length, pad_id)

  return Batches(
    rows,
    collate,
    batch=batch,
    seed=seed,
    names=names,
    weights=weights if len(weights) > 1 else None,
  )


def pack(found, length: int) -> list[list]:
  """Examples in rows of at most `length` tokens: the longest first, each where
  it leaves the least room (best fit decreasing, Johnson 1974)."""
  rows, with_room, rooms = (
    [],
    {},
    [],
  )  # with_room: room -> rows; rooms: its keys
  sizes = np.array([len(one.tokens_T) for one in found])
  for i in np.argsort(-sizes, kind='stable'):
    size = int(sizes[i])
    at = bisect.bisect_left(rooms, size)
    room, row = length, []
    if at < len(rooms):
      room = rooms[at]
      row = with_room[room].pop()
      if not with_room[room]:
        del with_room[room], rooms[at]
    else:
      rows.append(row)
    row.append(found[i])
    left = room - size
    if left not in with_room:
      bisect.insort(rooms, left)
    with_room.setdefault(left, []).append(row)
  return rows


def lay_out(rows, length: int, pad_id: int) -> Examples:
  """Lists of examples as arrays, the examples of a row side by side."""
  shape = len(rows), length
  tokens_BT = np.full(shape, pad_id, np.int32)
  mask_BT, segment_BT = np.zeros(shape, bool), np.zeros(shape, np.int32)
  for b, row in enumerate(rows):
    first = 0
    for n, (tokens_T, start) in enumerate(row, 1):
      last = first + len(tokens_T)
      tokens_BT[b, first:last] = tokens_T
      mask_BT[b, first + start : last] = True
      segment_BT[b, first:last] = n
      first = last
  return Examples(tokens_BT, mask_BT, segment_BT)


def _describe(names, found, rows, weights, length):
  """Says how much of the rows is padding and how often each is read."""
  drawn = sum(map(len, rows)) * np.array(weights) / sum(weights)
  for name, part, some, n in zip(names, found, rows, drawn, strict=True):
    if not some:
      continue
    tokens = sum(len(one.tokens_T) for one in part)
    padding = 1 - tokens / (len(some) * length)
    passes = f', {n / len(some):.2f} passes an epoch' * (len(names) > 1)
    print(
      f'{name}: {len(part):,} examples, {tokens:,} tokens in {len(some):,} '
      f'rows of {length:,}, {padding:.1%} padding{passes}'
    )


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

  return Batches([kept], collate, batch=questions, seed=seed, names=[path])


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


def _fitting(rows, size, length, path):
  kept = [row for row in rows if size(row) <= length]
  if long := [i for i, row in enumerate(rows) if size(row) > length]:
    report(path, long, len(rows), f'longer than {length} tokens')
  return kept
