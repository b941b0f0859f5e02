"""The dataset that is left: Parquet files, manifest and card, all or nothing.

The same settings give the same bytes, whoever worked on them and where.
"""

import collections
import json
import os
import platform
import shutil

from crjax import tokenizer
from data_pipeline import card, identity, store
from data_pipeline.built import TOKENIZER, digests

SHARED = ('id', 'pid', 'kind', 'level', 'method', 'difficulty', 'verify')


def row(wanted, made) -> dict:
  """A row of the dataset of a selected one and what `asking.ask` made of it."""
  program, case = wanted['program'], wanted['case']
  kind = made['kind']
  return {
    'id': f'{program["pid"]}-{identity.digest(case["args"], 6)}-{kind}',
    'split': wanted['split'],
    'asked': wanted['asked'],
    'pid': program['pid'],
    'kind': kind,
    'level': program['level'],
    'method': program['method'],
    'type': case['type'],
    'events': case['events'],
    'difficulty': case['difficulty'],
    'verify': made['verify'],
    'prompt': made['prompt'],
    'completion': made['completion'],
  }


def is_trained(split) -> bool:
  """Whether rows of a split have chains, not only questions."""
  return split == 'sft_train'


def extras(split, settings) -> dict:
  """{column: type} of what models add: right samples, where a chain is from."""
  found = {'passed': 'int64'} if 'policy' in settings else {}
  if 'teacher' in settings and is_trained(split):
    found['chain'] = 'string'
  return found


def features(split, settings):
  """Written down: a split without a kind has no rows to tell its types."""
  import datasets

  text, number = datasets.Value('string'), datasets.Value('int64')
  step = {'kind': text, 'line': number, 'occ': number, 'var': text}
  verify = {k: text for k in ('code', 'entry', 'args', 'output')}
  verify |= {
    'gold': datasets.List(text),
    'questions': datasets.List(step | {'gold': datasets.List(text)}),
  }
  turns = datasets.List({'role': text, 'content': text})
  found = {k: text for k in SHARED} | {'difficulty': number, 'verify': verify}
  more = {k: datasets.Value(v) for k, v in extras(split, settings).items()}
  return datasets.Features(found | more | {field(split): turns})


def field(split) -> str:
  return 'messages' if is_trained(split) else 'prompt'


def table(rows, split, settings) -> list[dict]:
  """The rows of a split as they are in its file."""
  found, names = [], (*SHARED, *extras(split, settings))
  for one in rows:
    if one['split'] == split:
      turns = one['prompt']
      if is_trained(split):
        said = {'role': 'assistant', 'content': one['completion']}
        turns = [*turns, said]
      found.append({k: one[k] for k in names} | {field(split): turns})
  return found


def train_tokenizer(rows, settings, directory):
  """A small one of the texts of the SFT split, where the config asks for it."""
  if vocab_size := settings['vocab_size']:
    found = table(rows, 'sft_train', settings)
    turns = [turn for row in found for turn in row['messages']]
    texts = [turn['content'] for turn in turns]
    tokenizer.train(texts, directory / TOKENIZER, vocab_size=vocab_size)


def write(out, rows, settings, summary, examples):
  """Writes everything beside `out`, then puts it there at once.

  Returns the summary of the manifest.
  """
  import datasets  # Slow to import; not needed to say that all is built.

  temporary = out.with_name(f'{out.name}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  for split in settings['splits']:
    made = datasets.Dataset.from_list(
      table(rows, split, settings), features=features(split, settings)
    )
    made.to_parquet(temporary / f'{split}.parquet')
  train_tokenizer(rows, settings, temporary)
  summary = summary | card.balance(rows, settings, temporary)
  text = card.text(rows, settings, summary, examples)
  (temporary / 'README.md').write_text(text)
  manifest = {
    'settings': settings,
    'rows': dict(collections.Counter(r['split'] for r in rows)),
    'summary': summary,
    'versions': {
      'python': platform.python_version(),
      'datasets': datasets.__version__,
      'code': store.code_hash(),
    },
    'sha256': digests(temporary),
  }
  (temporary / 'manifest.json').write_text(json.dumps(manifest, indent=2))
  shutil.rmtree(out, ignore_errors=True)
  os.replace(temporary, out)
  return summary
