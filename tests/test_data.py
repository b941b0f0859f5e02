import json

import datasets
import numpy as np
import pytest

from crjax import data, tokenizer


@pytest.fixture(scope='module')
def tok(smoke_data):
  return tokenizer.load(smoke_data / 'tokenizer')


def examples(smoke_data, tok, **changes):
  knobs = {'batch': 4, 'length': 400, 'seed': 0, 'pad_id': tok.pad_token_id}
  return data.examples(smoke_data / 'sft_train.parquet', tok, **knobs | changes)


def prompts(smoke_data, tok, **changes):
  knobs = {'questions': 4, 'length': 200, 'seed': 0, 'pad_id': tok.pad_token_id}
  return data.prompts(smoke_data / 'rl_train.parquet', tok, **knobs | changes)


def equal(a, b):
  for x, y in zip(a, b, strict=True):
    np.testing.assert_array_equal(x, y)


def test_an_example_batch_reads_back(smoke_data, tok):
  tokens_BT, mask_BT, segment_BT = next(examples(smoke_data, tok))
  assert tokens_BT.shape == mask_BT.shape == (4, 400)
  for row, mask in zip(tokens_BT, mask_BT, strict=True):
    (where,) = np.nonzero(mask)
    assert (np.diff(where) == 1).all()
    assert row[where[-1]] == tok.eos_token_id
    assert (row[where[-1] + 1 :] == tok.pad_token_id).all()
    text = tok.decode(row[mask])
    assert text.startswith('<reasoning>') and '</answer>' in text
    assert tok.decode(row[: where[0]]).endswith('<|im_start|>assistant\n')


def test_a_prompt_batch_is_padded_on_the_left(smoke_data, tok):
  batch = next(prompts(smoke_data, tok))
  for row, mask, task in zip(
    batch.tokens_QP, batch.mask_QP, batch.tasks, strict=True
  ):
    assert mask[-1] and (np.diff(mask.astype(int)) >= 0).all()
    text = tok.decode(row[mask])
    assert task['code'] in text
    assert text.endswith('<|im_start|>assistant\n')


@pytest.mark.parametrize('make', [examples, prompts])
def test_the_position_is_json_and_resumes_exactly(make, smoke_data, tok):
  one = make(smoke_data, tok)
  for _ in range(7):
    next(one)
  state = json.loads(json.dumps(one.get_state()))
  want = [next(one) for _ in range(60)]  # More than an epoch.
  other = make(smoke_data, tok)
  other.set_state(state)
  for batch in want:
    equal(batch[:2], next(other)[:2])


def test_an_epoch_holds_every_row_once_and_epochs_differ(smoke_data, tok):
  batches = prompts(smoke_data, tok)
  epoch = batches.rows // 4
  ids = [
    np.concatenate([next(batches).ids_Q for _ in range(epoch)])
    for _ in range(2)
  ]
  assert sorted(ids[0]) == sorted(ids[1]) == list(range(batches.rows))
  assert (ids[0] != ids[1]).any()
  other = next(prompts(smoke_data, tok, seed=1))
  assert (other.ids_Q != ids[0][:4]).any()


def test_long_rows_are_counted_not_lost_in_silence(smoke_data, tok, capsys):
  whole = examples(smoke_data, tok).rows
  fewer = examples(smoke_data, tok, length=170).rows
  assert 0 < fewer < whole
  assert (
    f'{whole - fewer} of {whole} rows are left out' in capsys.readouterr().out
  )
  with pytest.raises(ValueError, match='gives 0 rows'):
    examples(smoke_data, tok, length=10)


def test_bad_files_are_named(tmp_path, tok, smoke_data):
  with pytest.raises(FileNotFoundError, match=r'data_pipeline\.build'):
    data.read(tmp_path / 'no.parquet', set())
  damaged = tmp_path / 'bad.parquet'
  damaged.write_bytes(b'PAR1 not really')
  with pytest.raises(ValueError, match=r'bad\.parquet is damaged'):
    data.read(damaged, set())
  other = tmp_path / 'other.parquet'
  datasets.Dataset.from_list([{'a': 1}]).to_parquet(str(other))
  with pytest.raises(ValueError, match='lacks the fields'):
    data.read(other, {'messages'})
  with pytest.raises(ValueError, match='expected one of'):
    data.read(smoke_data / 'manifest.json', set())
