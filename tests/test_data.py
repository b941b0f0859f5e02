import json
import os

import datasets
import numpy as np
import pytest

from crjax import data, files, tokenizer
from crjax.examples import Example


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


def test_a_file_in_a_bucket_gives_the_same_batches(smoke_data, tok):
  """TensorFlow's own memory file system stands where gs:// would."""
  name = 'sft_train.parquet'
  url = f'ram://data-{os.getpid()}/{name}'
  knobs = {'batch': 4, 'length': 400, 'seed': 0, 'pad_id': tok.pad_token_id}
  with pytest.raises(FileNotFoundError, match=f'{url} does not exist'):
    data.examples(url, tok, **knobs)
  files.copy(smoke_data / name, url)
  batches = data.examples(url, tok, **knobs)
  equal(next(batches), next(examples(smoke_data, tok)))
  with files.writer(url) as file:
    file.write(b'no Parquet')
  with pytest.raises(ValueError, match=f'{url}: .*is damaged'):
    data.examples(url, tok, **knobs)


def test_an_example_batch_reads_back(smoke_data, tok):
  tokens_BT, mask_BT, _ = next(examples(smoke_data, tok))
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


def found(n=500, longest=60, seed=0):
  rng = np.random.default_rng(seed)
  sizes = rng.integers(2, longest + 1, n)
  return [
    Example(np.full(size, i, np.int32), 1) for i, size in enumerate(sizes)
  ]


def test_packed_rows_hold_every_example_once_and_little_padding():
  some = found()
  rows = data.pack(some, 128)
  sizes = [sum(len(one.tokens_T) for one in row) for row in rows]
  assert max(sizes) <= 128
  names = [int(one.tokens_T[0]) for row in rows for one in row]
  assert sorted(names) == list(range(len(some)))
  assert sum(sizes) / (128 * len(rows)) > 0.98
  assert names == [
    int(one.tokens_T[0]) for row in data.pack(some, 128) for one in row
  ]


def test_each_example_takes_the_tightest_place():
  """Best fit decreasing, against the definition."""
  some = found(60)
  rooms, rows = [], []
  for one in sorted(some, key=lambda one: -len(one.tokens_T)):
    size = len(one.tokens_T)
    fitting = [room for room in rooms if room >= size]
    if fitting:
      rooms[rooms.index(min(fitting))] -= size
    else:
      rooms.append(100 - size)
  rows = data.pack(some, 100)
  left = [100 - sum(len(one.tokens_T) for one in row) for row in rows]
  assert sorted(left) == sorted(rooms)


def test_packed_examples_are_laid_out_side_by_side():
  some = found(20)
  batch = data.lay_out(data.pack(some, 100), 100, pad_id=-1)
  for one in some:
    at = np.argwhere(batch.tokens_BT == one.tokens_T[0])
    assert len(at) == len(one.tokens_T) and len(set(at[:, 0])) == 1
    assert (np.diff(at[:, 1]) == 1).all()
    here = tuple(at.T)
    assert len(set(batch.segment_BT[here])) == 1
    assert list(batch.mask_BT[here]) == [False] + [True] * (len(at) - 1)
  empty = batch.segment_BT == 0
  np.testing.assert_array_equal(batch.tokens_BT == -1, empty)
  assert not batch.mask_BT[empty].any()
  assert batch.segment_BT.max() > 1


@pytest.fixture(scope='module')
def two_files(smoke_data, tmp_path_factory):
  """Two halves of a file, one with marked answers."""
  rows = data.read(smoke_data / 'sft_train.parquet', {'messages'})
  out = tmp_path_factory.mktemp('two')
  half = len(rows) // 3
  for name, part in (('few', rows[:half]), ('many', rows[half:])):
    for row in part:
      row['messages'][-1]['content'] += f' {name}'
    datasets.Dataset.from_list(part).to_parquet(str(out / f'{name}.parquet'))
  return out


@pytest.mark.parametrize('packed', [False, True])
def test_a_mixture_has_the_shares_asked_for(two_files, tok, packed, capsys):
  sources = [(two_files / 'few.parquet', 3.0), (two_files / 'many.parquet', 1)]
  batches = data.examples(
    sources,
    tok,
    batch=4,
    length=800,
    seed=0,
    pad_id=tok.pad_token_id,
    packed=packed,
  )
  of_few = all_of = 0
  for _ in range(30 if packed else 60):
    for tokens_T, segment_T in zip(*next(batches)[::2], strict=True):
      for n in range(1, segment_T.max() + 1):
        of_few += tok.decode(tokens_T[segment_T == n]).endswith('few<|im_end|>')
        all_of += 1
  assert of_few / all_of == pytest.approx(0.75, abs=0.05)
  assert 'passes an epoch' in capsys.readouterr().out
  state = json.loads(json.dumps(batches.get_state()))
  want = [next(batches) for _ in range(5)]
  batches.set_state(state)
  for batch in want:
    equal(batch, next(batches))


def test_a_weight_of_nothing_is_an_error(two_files, tok):
  with pytest.raises(ValueError, match='weights'):
    data.examples(
      [(two_files / 'few.parquet', 0.0), (two_files / 'many.parquet', 1.0)],
      tok,
      batch=4,
      length=400,
      seed=0,
      pad_id=0,
    )


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


def test_canaries_ask_what_others_ask_and_have_no_answer(smoke_data, tok):
  plain = prompts(smoke_data, tok, questions=1)
  more = prompts(smoke_data, tok, questions=1, canaries=3)
  assert more.rows == plain.rows + 3
  tasks = [next(more).tasks[0] for _ in range(more.rows)]
  originals = {task['id']: task for task in tasks}
  canaries = [task for task in tasks if task['id'].startswith(data.CANARY)]
  assert len(canaries) == 3
  for task in canaries:
    original = originals[task['id'].removeprefix(data.CANARY)]
    assert task['code'] == original['code']
    assert task['output'] != original['output']
