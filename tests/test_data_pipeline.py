"""The dataset of the smoke run: short programs, bare chains, a tokenizer."""

import collections
import hashlib
import json
import subprocess
import sys

import datasets
from ml_collections import ConfigDict
import pytest

from configs import data_smoke
from crjax import rewards, tokenizer
from crjax.execution import Job, Pool, literals
from data_pipeline import (
  backward,
  built,
  constant,
  frames,
  identity,
  narrate,
  synth,
  words,
)
from tests.conftest import ROOT

SPLITS = {'sft_train': 120, 'rl_train': 40, 'test': 20}


@pytest.fixture(scope='module')
def rows(smoke_data):
  return {
    split: datasets.Dataset.from_parquet(
      str(smoke_data / f'{split}.parquet')
    ).to_list()
    for split in SPLITS
  }


@pytest.fixture(scope='module')
def pool():
  with Pool(1) as made:
    yield made


@pytest.fixture(scope='module')
def short():
  """The words of the smoke run and some of its programs."""
  chosen = words.words(
    json.loads(data_smoke.get_config().to_json())['programs']
  )
  return chosen, [synth.program('t', i, chosen) for i in range(200)]


def test_short_programs_run_and_hold_only_what_was_chosen(short, pool):
  chosen, programs = short
  jobs = [Job(p.code, 'f', synth.source_of(p.args)) for p in programs]
  assert [r.verdict for r in pool.run(jobs)].count('ok') > 190
  small, letters = chosen.small, set(chosen.small['letters'])
  for p in programs:
    assert p.method in {e.name for e in chosen.targets}
    assert p.code.count('\n') <= 5 and p.code[6] in chosen.names
    (value,) = p.args
    assert small['lengths'][0] <= len(value) <= small['lengths'][1]
    assert len(set(value)) == len(value)  # No guess which one was copied.
    if isinstance(value, str):
      assert set(value.lower()) <= letters
    else:
      assert max(value) <= small['largest']
  hashes = {identity.program_hash(p.code) for p in programs}
  assert len(hashes) > 120


@pytest.mark.parametrize(
  ('field', 'value', 'said'),
  [
    ('methods', ['str.uper'], "there is no 'str.uper'"),
    ('levels', ['shorter'], "there is no 'shorter'"),
    ('small', {}, "level 'short' needs some"),
  ],
)
def test_words_that_are_not_there_are_named(field, value, said):
  settings = json.loads(data_smoke.get_config().to_json())['programs']
  with pytest.raises(ValueError, match=f'programs.{field}: {said}'):
    words.words(settings | {field: value})


CODE = 'def f(x):\n    if x:\n        x.pop()\n    x = x + [4, 9]\n    return x'


def test_a_bare_chain_is_the_lines_and_what_they_make(pool):
  (result,) = pool.run([Job(CODE, 'f', '[1, 5, 7]', trace=True)])
  frame, call = frames.entry(result.trace, CODE), 'f([1, 5, 7])'
  told = narrate.forward(CODE, frame, call, 0, 300, ('bare',))
  assert told.split('\n') == [
    'x = [1, 5, 7]',
    'if x # true with x = [1, 5, 7]',
    'x.pop() # x = [1, 5]',
    'x = x + [4, 9] # x = [1, 5, 4, 9]',
  ]
  undone = backward.backward(CODE, frame, call, '', 0, 300, ('bare',))
  assert undone.split('\n') == [
    'x = x + [4, 9] # x = [1, 5]',
    'if x # x = [1, 5, 7]',
    'x = [1, 5, 7]',
  ]


def test_splits_have_their_rows_and_share_no_program(rows):
  assert {k: len(v) for k, v in rows.items()} == SPLITS
  hashes = [
    {identity.program_hash(row['verify']['code']) for row in some}
    for some in rows.values()
  ]
  assert sum(map(len, hashes)) == len(set.union(*hashes))
  for split, some in rows.items():
    kinds = collections.Counter(row['kind'] for row in some)
    share = 0.7 if split == 'rl_train' else 0.5
    assert kinds['output'] == share * len(some)
    assert kinds['output'] + kinds['input'] == len(some)


def test_every_answer_of_the_chains_is_right(rows, pool):
  some = rows['sft_train']
  tasks = [{'kind': row['kind']} | row['verify'] for row in some]
  texts = [row['messages'][-1]['content'] for row in some]
  rewards_B, _ = rewards.score(tasks, texts, [False] * len(some), pool)
  assert (rewards_B == 1).all()


def test_the_manifest_tells_what_there_is(rows, smoke_data):
  manifest = json.loads((smoke_data / 'manifest.json').read_text())
  assert manifest['rows'] == SPLITS
  for name, digest in manifest['sha256'].items():
    data = (smoke_data / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
  tok = tokenizer.load(smoke_data / 'tokenizer')
  lengths = manifest['summary']['lengths']
  assert lengths['unit'] == 'tokens' and len(tok) <= 512
  texts = [row['messages'][-1]['content'] for row in rows['sft_train']]
  longest = max(len(tok(text)['input_ids']) for text in texts)
  assert lengths['all']['longest'] >= longest


def test_the_constant_baseline_is_the_best_constant(rows, smoke_data, pool):
  manifest = json.loads((smoke_data / 'manifest.json').read_text())
  known = manifest['summary']['constant_baseline']
  assert constant.baseline(rows['test'], pool) == known
  tasks = {
    kind: [r['verify'] for r in rows['test'] if r['kind'] == kind]
    for kind in ('output', 'input')
  }
  outputs = [t['output'] for t in tasks['output']]
  assert known['output'] == max(map(outputs.count, outputs)) / len(outputs)
  for guess in {t['args'] for t in tasks['input']}:
    jobs = [Job(t['code'], 'f', guess) for t in tasks['input']]
    right = [
      r.verdict == 'ok'
      and literals.render(literals.parse(r.value)) == t['output']
      for r, t in zip(pool.run(jobs), tasks['input'], strict=True)
    ]
    assert sum(right) / len(right) <= known['input']


def command(out, *flags):
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'data_pipeline.build',
      f'--config={ROOT / "configs" / "data_smoke.py"}',
      f'--config.out={out}',
      '--config.candidates=150',
      '--config.chunk=50',
      '--config.largest_share=0.2',
      *(f'--config.splits.{k}={v}' for k, v in SPLITS.items()),
      *flags,
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_any_number_of_workers_builds_the_same_bytes(smoke_data, tmp_path):
  again = tmp_path / 'again'
  assert command(again, '--config.workers=1').returncode == 0
  files = [p.relative_to(again) for p in again.rglob('*') if p.is_file()]
  assert len(files) == 5 + len(list((smoke_data / 'tokenizer').iterdir()))
  for name in files:
    assert (again / name).read_bytes() == (smoke_data / name).read_bytes(), name


def test_what_is_built_stays_and_what_is_not_data_is_not_touched(
  smoke_data, tmp_path
):
  before = (smoke_data / 'manifest.json').stat().st_mtime_ns
  again = command(smoke_data)
  assert again.returncode == 0 and 'already holds' in again.stdout
  assert (smoke_data / 'manifest.json').stat().st_mtime_ns == before
  other = command(smoke_data, '--config.seed=5')
  assert other.returncode != 0 and 'another config' in other.stderr
  (tmp_path / 'mine.txt').write_text('keep')
  foreign = command(tmp_path)
  assert foreign.returncode != 0 and 'not a dataset' in foreign.stderr
  assert (tmp_path / 'mine.txt').read_text() == 'keep'


def test_where_data_lies_and_how_many_build_it_is_not_what_it_is():
  config = ConfigDict({'seed': 1, 'out': 'a', 'workers': 2})
  same = ConfigDict({'seed': 1, 'out': '/elsewhere/a', 'workers': 1})
  other = ConfigDict({'seed': 2, 'out': 'a', 'workers': 2})
  assert built.deciding(config) == built.deciding(same)
  assert built.deciding(config) != built.deciding(other)
