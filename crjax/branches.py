"""Rows of an update: a prompt stands once, its completions branch from it.

The inputs of a completion of n tokens are the last token of the prompt and its
own first n - 1; what comes before is shared, and costs what it costs once:

  tokens    p0 p1 p2 p3  a0 a1  p3 b0   q0 q1 c0 c1 ...
  group      1  1  1  1   1  1   1  1    2  2  2  2   0 is padding
  branch     0  0  0  1   1  1   2  2    0  3  3  3   0 is the shared part
  position   0  1  2  3   4  5   3  4    0  1  2  3
  predicts  -- -- --  a0 a1 a2  b0 b1   -- c0 c1 c2

A token sees those before it of its group that are shared or of its own branch
(`attention.visible`), so that log-probs and gradients are those of separate
rows. All on the host, in NumPy.
"""

from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
  """What an update reads: B rows of T input tokens with C predictions each.

  All arrays start as NumPy. Rows are ordered so that `optim.slices` of the
  updates of a batch, and of the slices of an update, are what `pack` meant.
  """

  tokens_BT: np.ndarray  # int32, as the other three
  pos_BT: np.ndarray  # position ids
  group_BT: np.ndarray  # the question of a token, from 1; 0 is padding
  branch_BT: np.ndarray  # the completion of a token, from 1; 0 is shared
  index_BC: np.ndarray  # int32, the input that predicts; ascending
  target_BC: np.ndarray  # int32, the token that is predicted
  seq_BC: np.ndarray  # int32, the completion it is part of; 0 is none
  logp_BC: np.ndarray  # of the sampler, in its numerics
  adv_BC: np.ndarray
  weight_BC: np.ndarray  # what a token counts in the loss, see AGGREGATIONS
  old_logp_BC: np.ndarray  # of the trainer, at the start of the step
  ref_logp_BC: np.ndarray  # of the frozen reference


# Aggregations: from length_QR, 0 for what is left out, and the longest length
# there may be, to what each token of a completion counts. A sum over any split
# of the tokens gives the same loss: no denominator is ever local.


def token_mean(length_QR, limit):
  """Every token of the step counts the same (DAPO, arXiv 2503.14476)."""
  return np.ones(length_QR.shape) / max(length_QR.sum(), 1)


def sequence_mean(length_QR, limit):
  """Every completion counts the same (GRPO, arXiv 2402.03300)."""
  count = max((length_QR > 0).sum(), 1)
  return 1 / np.maximum(length_QR, 1) / count


def prompt_mean(length_QR, limit):
  """Every question counts the same (ScaleRL, arXiv 2510.13786)."""
  total_Q1 = length_QR.sum(1, keepdims=True)
  count = max((total_Q1 > 0).sum(), 1)
  return np.ones(length_QR.shape) / np.maximum(total_Q1, 1) / count


def length_normalised(length_QR, limit):
  """A sum over tokens by completions x limit (Dr.GRPO, arXiv 2503.20783)."""
  return np.ones(length_QR.shape) / (max((length_QR > 0).sum(), 1) * limit)


AGGREGATIONS = {
  'token-mean': token_mean,
  'sequence-mean': sequence_mean,
  'prompt-mean': prompt_mean,
  'length-normalised': length_normalised,
}


class Completion(NamedTuple):
  """One branch, before it has a place."""

  question: int
  prompt: np.ndarray  # int32 tokens, at least one
  tokens: np.ndarray  # int32, at least one
  logp: np.ndarray
  adv: np.ndarray  # one a token
  weight: float


def pack(updates, *, length: int, rows: int, chunks=None) -> Batch:
  """The Batch of lists of Completions, one list an optimizer update.

  Args:
    updates: each list is ordered by question.
    length: T. A prompt and one completion must fit.
    rows: rows of a slice; a batch has a power of two of slices an update, of
      which those without a completion cost nothing.
    chunks: cuts a list into parts of one question that stay together in a row;
      None is `shared`.
  """
  chunks = chunks or shared
  placed = [fill(chunks(some, length), length) for some in updates]
  most = max(-(-len(p) // rows) for p in placed)
  slices = 1 << (max(most, 1) - 1).bit_length()
  predictions = [
    sum(len(c.tokens) for part in row for c in part)
    for its_rows in placed
    for row in its_rows
  ]
  unit = max(length // 8, 1)
  width = min(-(-max(predictions, default=1) // unit) * unit, length)
  total = len(updates) * slices * rows
  batch = _empty(total, length, width)
  for update, its_rows in enumerate(placed):
    for i, row in enumerate(its_rows):
      b = ((i % rows) * slices + i // rows) * len(updates) + update
      _write(batch, b, row)
  return batch


def shared(completions, length: int):
  """Chunks of one question, as many completions to a prompt as fit a row."""
  parts, used = [], 0
  for c in completions:
    _check(c, length)
    opens = not parts or parts[-1][0].question != c.question
    if opens or used + len(c.tokens) > length:
      parts.append([])
      used = len(c.prompt) - 1
    parts[-1].append(c)
    used += len(c.tokens)
  return parts


def alone(completions, length: int):
  """Chunks of one completion: every one brings its prompt."""
  for c in completions:
    _check(c, length)
  return [[c] for c in completions]


def fill(parts, length: int):
  """Rows, lists of chunks: first fit, the longest first, ties in order."""
  size = lambda part: len(part[0].prompt) - 1 + sum(len(c.tokens) for c in part)
  rows, room = [], []
  for part in sorted(parts, key=size, reverse=True):
    fits = [i for i, free in enumerate(room) if free >= size(part)]
    if not fits:
      rows.append([])
      room.append(length)
      fits = [len(rows) - 1]
    rows[fits[0]].append(part)
    room[fits[0]] -= size(part)
  return rows


def _check(c, length):
  need = len(c.prompt) - 1 + len(c.tokens)
  if need > length:
    raise ValueError(
      f'a prompt of {len(c.prompt)} and a completion of {len(c.tokens)} tokens '
      f'do not fit a row of {length}; set config.row to at least '
      'prompt_length + completion_length'
    )


def _empty(B, T, C) -> Batch:
  ints = lambda n: np.zeros((B, n), np.int32)
  floats = lambda: np.zeros((B, C), np.float32)
  wide, narrow = [ints(T) for _ in range(4)], [ints(C) for _ in range(3)]
  return Batch(*wide, *narrow, *(floats() for _ in range(5)))


def _write(batch, b, row):
  """Fills row b with its chunks."""
  t = i = branch = 0
  for group, part in enumerate(row, 1):
    prompt = part[0].prompt
    before = len(prompt) - 1
    start = t
    batch.tokens_BT[b, t : t + before] = prompt[:-1]
    batch.pos_BT[b, t : t + before] = np.arange(before)
    t += before
    for c in part:
      n, branch = len(c.tokens), branch + 1
      at, out = slice(t, t + n), slice(i, i + n)
      batch.tokens_BT[b, t] = prompt[-1]
      batch.tokens_BT[b, t + 1 : t + n] = c.tokens[:-1]
      batch.pos_BT[b, at] = before + np.arange(n)
      batch.branch_BT[b, at] = branch
      batch.index_BC[b, out] = np.arange(t, t + n)
      batch.target_BC[b, out] = c.tokens
      batch.seq_BC[b, out] = branch
      batch.logp_BC[b, out] = c.logp
      batch.adv_BC[b, out] = c.adv
      batch.weight_BC[b, out] = c.weight
      t, i = t + n, i + n
    batch.group_BT[b, start:t] = group
