"""Chains of a teacher: of several samples the shortest that is right.

A sample is rejected by its form, then by the strict judge; no answer of a
model is taken on trust, and what became of each sample is counted.
"""

import collections
import itertools
import unicodedata

import numpy as np

from crjax import rewards
from crjax.rewards.answers import TAGS
from data_pipeline import cases, dataset

# Words of a run, and the share of such runs that may repeat earlier ones.
# Rounds of a loop read alike: with runs of 4 and 0.2, as usual, a quarter of
# the chains that are told from traces would go. So does one of 100, and
# whatever says everything twice.
RUN, MOST_REPEATED = 8, 0.4
HINT = (
  ' Follow the run line by line and say what each line makes of the values; '
  'sum up rounds of a loop that are alike. Be brief. Write each tag once, and '
  'nothing before, between or after the two blocks.'
)


def messages(prompt) -> list[dict]:
  """The question of a row as a teacher gets it: with advice on the form."""
  system, *rest = prompt
  return [system | {'content': system['content'] + HINT}, *rest]


def spoken(text: str) -> str:
  """What follows the thoughts of a model that writes them into its answer."""
  return text.rpartition('</think>')[2].strip()


def fault(text, finish, prompt, limits) -> str:
  """Why a sample is not worth judging, or ''.

  Args:
    text: of `spoken`; prompt: the text of the question.
    limits: shortest and longest, in characters.
  """
  if finish != 'stop':
    return 'cut off'
  counts = [text.count(tag) for tag in TAGS]
  if 0 in counts:
    return 'a tag is missing'
  if max(counts) > 1:
    return 'a tag is doubled'
  if not rewards.extract(text).format_ok:
    return 'text outside the tags'
  if len(text) < limits['shortest']:
    return 'too short'
  if len(text) > limits['longest']:
    return 'too long'
  if foreign(text) - foreign(prompt):
    return 'another language'
  return 'repetition' if repeated(text) > MOST_REPEATED else ''


def foreign(text: str) -> set[str]:
  """Letters of other scripts than the Latin one."""
  return {
    c
    for c in set(text)
    if c.isalpha() and not unicodedata.name(c, '').startswith('LATIN')
  }


def repeated(text: str) -> float:
  """The share of runs of words that have been there before."""
  words = text.split()
  runs = [tuple(words[i : i + RUN]) for i in range(len(words) - RUN + 1)]
  return 1 - len(set(runs)) / len(runs) if runs else 0.0


def judged(rows, texts, size: int, pool) -> np.ndarray:
  """[row, sample] float32: what the strict judge gives `size` texts a row.

  Raises RuntimeError where the machinery failed.
  """
  tasks = [{'kind': r['kind']} | r['verify'] for r in rows for _ in range(size)]
  worth, _ = rewards.score(tasks, texts, [False] * len(texts), pool)
  if np.isnan(worth).any():
    raise RuntimeError(
      'a worker died without an answer, which no program causes; is the '
      'machine out of memory? Try fewer --config.workers.'
    )
  return worth.reshape(len(rows), size)


def taught(rows, answers, pool, settings):
  """(head, rows) of a part: chains of the teacher where it has right ones.

  Args:
    rows: of `dataset.row`.
    answers: `chat.Answer`s, one after the other for each row to train on.
    settings: the teacher's: model, samples (answers a row), shortest, longest,
      and narrate: whether a row that no sample solves keeps the chain of its
      trace or is dropped.

  The head has samples and chains, counts of what became of them, and examples,
  {reason: [question and sample]}.
  """
  asked = [row for row in rows if dataset.is_trained(row['split'])]
  texts = [spoken(answer.text) for answer in answers]
  worth = judged(asked, texts, settings['samples'], pool)
  said = iter(zip(texts, answers, worth.flat, strict=True))
  samples, chains, examples = collections.Counter(), collections.Counter(), {}
  made = []
  for row in rows:
    if not dataset.is_trained(row['split']):
      made.append(row)
      continue
    right, question = [], row['prompt'][1]['content']
    for text, answer, value in itertools.islice(said, settings['samples']):
      reason = fault(text, answer.finish, question, settings)
      if reason := reason or 'wrong' * bool(value != 1):
        samples[reason] += 1
        shown = f'{question}\n\n{text}'[: cases.SHOWN]
        examples.setdefault(reason, [shown])
      else:
        right.append(text)
    samples['right, not the shortest'] += max(0, len(right) - 1)
    samples['kept'] += bool(right)
    source, new = chosen(row, right, settings)
    chains[source] += 1
    made += new
  return {'samples': samples, 'chains': chains, 'examples': examples}, made


def chosen(row, right, settings):
  """(what became of a row, [the row with its chain] or [])."""
  if right:  # min: the first of several that are as short.
    text, source = min(right, key=len), settings['model']
    return 'of the teacher', [row | {'completion': text, 'chain': source}]
  if settings['narrate']:
    return 'of the trace', [row | {'chain': 'trace'}]
  return 'dropped', []
