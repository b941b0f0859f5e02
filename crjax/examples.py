"""Rows of files as examples of SFT, and what cannot be trained on.

A row is a chat or a pair, in one of the usual forms:

  {'messages': [{'role': ..., 'content': ...}, ...]}   ends with the assistant
  {'prompt': [messages], 'completion': [messages]}
  {'prompt': 'text', 'completion': 'text'}             no chat template

Only the last answer is learnt. What is written wrong is an error that names
file, row and field; what is right and of no use is left out, counted and shown.
"""

import collections
import json
import pathlib
from typing import NamedTuple

import numpy as np

from crjax import files, tokenizer

ROLES = ('system', 'user', 'assistant', 'tool')
PAIR = ('prompt', 'completion')
FORMS = {
  'messages': '`messages`',
  'chats': '`prompt` and `completion` as chats',
  'texts': '`prompt` and `completion` as texts',
}
SHOWN = 60  # characters of a row that is left out


class Example(NamedTuple):
  """Tokens, of which those from `start` on are learnt."""

  tokens_T: np.ndarray  # int32
  start: int


def load(path, tok, *, length: int, thinking=None) -> list[Example]:
  """The examples of a file that fit rows of `length` tokens, in its order.

  Raises ValueError for rows that are not of one of the forms above.
  """
  rows = read(path, set())
  form = _one_form(path, rows)
  kept, left_out = [], collections.defaultdict(list)
  for i, row in enumerate(rows):
    example, why = _example(f'{path} row {i}', row, form, tok, thinking)
    if not why and len(example.tokens_T) > length:
      prompt = example.start >= length
      why = f'longer than {length} tokens' + ', its prompt alone' * prompt
    if why:
      left_out[why].append(i)
    else:
      kept.append(example)
  for why, found in left_out.items():
    shown = json.dumps(rows[found[0]], ensure_ascii=False, default=str)[:SHOWN]
    report(path, found, len(rows), f'{why}; row {found[0]} is {shown} ...')
  return kept


def report(path, found, total: int, why: str):
  """Says what is left out of a file; `found` are the rows."""
  print(
    f'{path}: {len(found):,} of {total:,} rows are left out, as each is {why}'
  )


def _one_form(path, rows) -> str:
  """The key of FORMS that every row of the file has."""
  first = {}
  for i, row in enumerate(rows):
    pair = _has(row, 'prompt') and _has(row, 'completion')
    if _has(row, 'messages') == pair:
      has = [name for name in row if _has(row, name)]
      raise ValueError(
        f'{path} row {i}: has the fields {has}; needs either `messages` or '
        '`prompt` and `completion`'
      )
    texts = pair and all(isinstance(row[k], str) for k in PAIR)
    form = 'texts' if texts else 'chats' if pair else 'messages'
    first.setdefault(form, i)
  if len(first) > 1:
    found = [f'row {i} has {FORMS[form]}' for form, i in first.items()]
    raise ValueError(
      f'{path} mixes {len(found)} forms: {", ".join(found)}; write a file for '
      'each and give them together in config.data'
    )
  return next(iter(first))


def _has(row, name) -> bool:
  return row.get(name) is not None


def _example(where, row, form, tok, thinking):
  """(Example, '') or (None, why the row is of no use)."""
  if form == 'messages':
    chat = row['messages']
    _check_chat(f'{where}: messages', chat)
    if chat[-1]['role'] != 'assistant' or len(chat) < 2:
      return None, 'without a last answer by the assistant'
  elif form == 'texts':
    return _text(tok, row['prompt'], row['completion'])
  else:
    prompt, completion = row['prompt'], row['completion']
    _check_chat(f'{where}: prompt', prompt)
    _check_chat(f'{where}: completion', completion)
    if [m['role'] for m in completion] != ['assistant']:
      raise ValueError(
        f'{where}: completion has the roles '
        f'{[m["role"] for m in completion]}; needs one message, of the '
        'assistant'
      )
    chat = [*prompt, *completion]
  if not chat[-1]['content'].strip():
    return None, 'without text in its last answer, so that nothing is to learn'
  try:
    tokens, mask = tokenizer.encode_example(
      tok, [_bare(m) for m in chat], thinking=thinking
    )
  except ValueError as error:
    raise ValueError(f'{where}: {error}') from error
  return Example(np.asarray(tokens, np.int32), mask.index(1)), ''


def _text(tok, prompt, completion):
  """The example of two texts: tokenized apart, closed by the end token."""
  if not completion.strip():
    return None, 'without text in its completion, so that nothing is to learn'
  encode = lambda text: tok(text, add_special_tokens=False)['input_ids']
  before, after = encode(prompt), encode(completion)
  if not before:
    return None, 'without a prompt'
  tokens = [*before, *after, tok.eos_token_id]
  return Example(np.asarray(tokens, np.int32), len(before)), ''


def _check_chat(where, chat):
  if not isinstance(chat, list) or not chat:
    raise ValueError(
      f'{where} is {_short(chat)}; needs a list of messages, each with a role '
      'and a content'
    )
  for n, message in enumerate(chat):
    role = message.get('role') if isinstance(message, dict) else None
    if role not in ROLES:
      raise ValueError(
        f'{where}[{n}].role is {_short(role)}; have {", ".join(ROLES)}'
      )
    if not isinstance(message.get('content'), str):
      raise ValueError(
        f'{where}[{n}].content is {_short(message.get("content"))}; needs text'
      )


def _short(value) -> str:
  return repr(value)[:SHOWN]


def _bare(message):
  """Without the fields that only other rows have: they are None here."""
  return {k: v for k, v in message.items() if v is not None}


def read(path, fields: set):
  """The rows of a Parquet or JSONL file as dicts.

  `path` may also be the URL of such a file in a bucket, a directory of them, or
  a data set of the hub, `owner/name` or `owner/name@split`; the split is
  `train` if none is given.

  Raises FileNotFoundError, or ValueError for a file that is damaged, empty or
  lacks one of `fields`.
  """
  import datasets  # Slow to import; tests of pure functions do without.

  if files.remote(path):
    with files.fetched(path) as local:
      try:
        return read(local, fields)
      except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
  make = {
    '.parquet': datasets.Dataset.from_parquet,
    '.jsonl': datasets.Dataset.from_json,
  }
  name, _, split = str(path).partition('@')
  path = pathlib.Path(name if split else path)
  if not path.exists() and not is_hub_name(name):
    raise FileNotFoundError(
      f'{path} does not exist; build it with '
      '`python -m data_pipeline.build --config=configs/data_smoke.py`'
    )
  if path.is_file():
    if path.suffix not in make:
      raise ValueError(f'{path}: expected one of {sorted(make)} files')
    if not path.stat().st_size:
      raise ValueError(f'{path} is empty; build it again')
    if path.suffix == '.jsonl' and (found := _broken_line(path)):
      raise ValueError(f'{path} is damaged: {found}; build it again')
  try:
    if path.is_file():
      rows = make[path.suffix](str(path))
    else:
      rows = datasets.load_dataset(name, split=split or 'train')
  except Exception as error:  # Each reader of `datasets` raises its own kind.
    raise ValueError(f'{path} is damaged: {error}; build it again') from error
  if not len(rows):
    raise ValueError(f'{path} has no rows; build it again')
  if missing := fields - set(rows.column_names):
    raise ValueError(
      f'{path} lacks the fields {sorted(missing)}; it has '
      f'{sorted(rows.column_names)}'
    )
  return rows.to_list()


def is_hub_name(name) -> bool:
  """True for `owner/name` and `owner/name@split`."""
  name = str(name).partition('@')[0]
  local = pathlib.Path(name).parent.is_dir()
  return bool(files.HUB_NAME.fullmatch(name)) and not local


def _broken_line(path) -> str:
  """The first line that is no JSON object or has a field of another kind.

  `datasets` would read such a field as JSON, and the text ' 2' as a number.
  """
  kinds = {}
  with open(path, encoding='utf-8', errors='replace') as lines:
    for n, line in enumerate(lines, 1):
      if not line.strip():
        continue
      try:
        row = json.loads(line)
      except ValueError as error:
        return f'line {n} is not JSON ({error}): {_short(line)}'
      if not isinstance(row, dict):
        return f'line {n} is not an object: {_short(line)}'
      for field, value in row.items():
        if value is None:
          continue
        this = type(value).__name__
        this = 'number' if this in ('int', 'float') else this
        first, kind = kinds.setdefault(field, (n, this))
        if kind != this:
          return (
            f'{field!r} is a {kind} in line {first} and a {this} in line {n}'
          )
  return ''
