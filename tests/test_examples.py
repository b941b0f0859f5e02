"""What users' files look like: the usual forms, and what is wrong with them."""

import json

import datasets
import pytest

from crjax import examples, tokenizer

ASK = [{'role': 'user', 'content': 'What is 1 + 1?'}]
ANSWER = [{'role': 'assistant', 'content': 'It is 2.'}]
CHAT = {'messages': ASK + ANSWER}
PAIR = {'prompt': ASK, 'completion': ANSWER}
TEXT = {'prompt': 'assert 1 + 1 ==', 'completion': ' 2'}


@pytest.fixture(scope='module')
def tok(smoke_data):
  return tokenizer.load(smoke_data / 'tokenizer')


def jsonl(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def parquet(path, rows):
  datasets.Dataset.from_list(rows).to_parquet(str(path))
  return path


def load(path, tok, length=100):
  return examples.load(path, tok, length=length)


def texts(tok, example):
  tokens_T, start = example
  return tok.decode(tokens_T[:start]), tok.decode(tokens_T[start:])


@pytest.mark.parametrize('form', [CHAT, PAIR], ids=['messages', 'pair'])
def test_chats_are_rendered_by_the_template(tok, tmp_path, form):
  (example,) = load(jsonl(tmp_path / 'rows.jsonl', [form]), tok)
  prompt, completion = texts(tok, example)
  assert prompt.endswith('1 + 1?<|im_end|>\n<|im_start|>assistant\n')
  assert completion == 'It is 2.<|im_end|>'


def test_texts_are_not_and_end_with_the_end_token(tok, tmp_path):
  (example,) = load(jsonl(tmp_path / 'rows.jsonl', [TEXT]), tok)
  assert texts(tok, example) == ('assert 1 + 1 ==', ' 2<|im_end|>')


def test_files_and_directories_hold_the_same(tok, tmp_path):
  rows = [CHAT, PAIR | {'prompt': None, 'completion': None} | CHAT]
  found = [
    load(write(tmp_path / name, rows), tok)
    for write, name in ((jsonl, 'a.jsonl'), (parquet, 'a.parquet'))
  ]
  (tmp_path / 'both').mkdir()
  jsonl(tmp_path / 'both' / 'train.jsonl', rows)
  found.append(load(tmp_path / 'both', tok))
  for other in found:
    assert [texts(tok, x) for x in other] == [texts(tok, x) for x in found[0]]


def bad(role='user', **message):
  return {'messages': [{'role': role, 'content': 'x'} | message, *ANSWER]}


@pytest.mark.parametrize(
  ('rows', 'words'),
  [
    (
      [CHAT, bad('usr')],
      [r"row 1: messages\[0\].role is 'usr'", 'have system'],
    ),
    ([CHAT, bad(content=None)], [r'row 1: messages\[0\].content is None']),
    ([CHAT, {'messages': []}], ['row 1: messages is', 'needs a list']),
    ([CHAT, {'messages': None}], ['row 1: has the fields', 'needs either']),
    ([{'text': 'x'}], [r"row 0: has the fields \['text'\]", '`completion`']),
    ([{'prompt': 'x'}], ['row 0', '`prompt` and `completion`']),
    ([CHAT | TEXT], ['row 0: has the fields', 'either']),
    ([PAIR | {'completion': ASK}], ['row 0: completion', "'user'"]),
    ([CHAT, TEXT], ['mixes two forms: row 0', 'row 1', 'a file for each']),
  ],
)
def test_a_row_written_wrong_is_named(tok, tmp_path, rows, words):
  path = jsonl(tmp_path / 'rows.jsonl', rows)
  for word in words:
    with pytest.raises(ValueError, match=word) as error:
      load(path, tok)
    assert 'rows.jsonl' in str(error.value)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('', 'is empty'),
    ('\n', 'rows.jsonl'),
    ('{"messages": []}\n{"messages": [}\n', 'line 2 is not JSON'),
    ('{"prompt": "a", "completion": "b"}\n[1]\n', 'line 2 is not an object'),
    (
      json.dumps(TEXT) + '\n' + json.dumps(PAIR) + '\n',
      "'prompt' is a str in line 1 and a list in line 2",
    ),
  ],
)
def test_a_file_that_cannot_be_read_names_the_line(tok, tmp_path, text, words):
  path = tmp_path / 'rows.jsonl'
  path.write_text(text)
  with pytest.raises(ValueError, match=words) as error:
    load(path, tok)
  assert 'build it again' in str(error.value)


def test_what_cannot_be_learnt_is_counted_and_shown(tok, tmp_path, capsys):
  long = [{'role': 'user', 'content': 'word ' * 300}]
  rows = [
    CHAT,
    {'messages': ASK},
    {'messages': [*ASK, {'role': 'assistant', 'content': ' '}]},
    {'messages': long + ANSWER},
    {'messages': [*ASK, {'role': 'assistant', 'content': 'word ' * 300}]},
    CHAT,
    {'messages': long + ANSWER},
  ]
  kept = load(jsonl(tmp_path / 'rows.jsonl', rows), tok)
  assert len(kept) == 2
  shown = capsys.readouterr().out
  for why in (
    '1 of 7 rows are left out, as each is without a last answer',
    '1 of 7 rows are left out, as each is without text in its last answer',
    '2 of 7 rows are left out, as each is longer than 100 tokens, its prompt',
    '1 of 7 rows are left out, as each is longer than 100 tokens; row 4 is',
  ):
    assert why in shown
  assert '"What is 1 + 1?"' in shown  # An example of them.


def test_hub_names_are_told_from_files(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert examples.is_hub_name('owner/name')
  assert examples.is_hub_name('owner/name@train_sft')
  assert not examples.is_hub_name('runs/data_7b/sft_train.parquet')
  assert not examples.is_hub_name('rows.jsonl')
  (tmp_path / 'data').mkdir()
  assert not examples.is_hub_name('data/rows.jsonl')
