"""Completions of a model in this process, kept as they come.

The journal knows a completion by what it depends on: the weights, the tokens of
the prompt, the settings and, where tokens are drawn, its place in the data. An
evaluation that was cut off samples only the rest.
"""

import functools
import hashlib
import time

import jax
import numpy as np

from crjax import engine, files, tokenizer
from crjax.evals import journal

PIECE = 1 << 16  # bytes of a file of weights, of which three tell it apart


def fingerprint(place) -> str:
  """Of the weights: the sizes of their files, and three pieces of each."""
  told = hashlib.sha256()
  for name in files.listdir(place.weights):
    if not name.endswith(files.WEIGHTS):
      continue
    with files.Ranges(f'{place.weights}/{name}') as file:
      told.update(f'{name} {file.size}\n'.encode())
      last = max(file.size - PIECE, 0)
      for start in (0, last // 2, last):
        piece = bytearray(min(PIECE, file.size))
        file.read_into(piece, start)
        told.update(piece)
  return told.hexdigest()[:24]


def make_complete(
  cfg,
  params,
  tok,
  mesh,
  *,
  batch: int,
  prompt_length: int,
  completion_length: int,
  seed: int,
  thinking: bool | None,
  kept=None,
  model='',
):
  """`complete` for `evaluate.run`, from the decode copy `params`.

  `batch` completions at a time, of prompts whose last completions were longest
  first. Noise depends on the prompt's place in the data, not on what is sampled
  beside it. `kept` is the path of a journal, `model` what the weights are known
  by in it.
  """
  made = engine.make(
    cfg,
    mesh,
    slots=batch,
    fewest=max(batch // 8, 1),
    length=prompt_length + completion_length,
    stop_ids=tokenizer.stop_ids(tok),
  )
  longest = {}  # completion of each prompt so far
  known = journal.load(kept) if kept else {}

  def key(tokens, question, rollout, temperature):
    noise = [seed, question, rollout] if temperature else []
    return journal.digest(
      [model, list(map(int, tokens)), completion_length, temperature, noise]
    )

  def sample(asked, temperature):
    """Yields (request, answer) of each request when it is done."""
    requests = engine.longest_first(
      engine.Request(
        tokens,
        i,
        r,
        engine.Knobs(temperature),
        most=completion_length,
        expected=longest.get(i, 0.0),
      )
      for i, r, tokens in asked
    )
    pieces = engine.stream(made, params, requests, key=jax.random.key(seed))
    began = time.monotonic()
    for n, done in enumerate(engine.completions(pieces), start=1):
      i = done.request.question
      longest[i] = max(longest.get(i, 0.0), len(done.tokens))
      # Without the end token.
      length = len(done.tokens) - (done.finish == 'stop')
      text = tokenizer.decode(tok, [done.tokens], [length])[0]
      yield done.request, {'text': text, 'finish': done.finish}
      if n % max(batch, 1) == 0 or n == len(requests):
        _progress(n, len(requests), temperature, began)

  def complete(prompts, temperature, rollouts):
    encode = functools.partial(tokenizer.encode_prompt, tok, thinking=thinking)
    encoded = list(map(encode, prompts))
    fits = [i for i, x in enumerate(encoded) if len(x) <= prompt_length]
    fits.sort(key=lambda i: -len(encoded[i]))
    texts = [None] * (len(prompts) * rollouts)
    truncated = np.zeros(len(texts), bool)

    def note(i, r, answer):
      texts[i * rollouts + r] = answer['text']
      truncated[i * rollouts + r] = answer['finish'] == 'length'

    left = []
    for i, r in [(i, r) for i in fits for r in range(rollouts)]:
      answer = known.get(key(encoded[i], i, r, temperature))
      if answer:
        note(i, r, answer)
      else:
        left.append((i, r, encoded[i]))
    if len(left) < len(fits) * rollouts:
      print(f'evaluate: {len(fits) * rollouts - len(left)} are in {kept}')
    for request, answer in sample(left, temperature):
      i, r = request.question, request.rollout
      note(i, r, answer)
      if kept:
        name = key(encoded[i], i, r, temperature)
        journal.keep(kept, {'key': name, **answer})
    return texts, truncated

  return complete


def _progress(done, total, temperature, began):
  if jax.process_index():
    return
  left = (time.monotonic() - began) / done * (total - done)
  print(
    f'evaluate: {done} of {total} completions, T={temperature:g}, about '
    f'{left:.0f} s left',
    flush=True,
  )
