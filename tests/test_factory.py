"""The large build end to end: bytes, kills, shards, splits and its card."""

import collections
import contextlib
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import datasets
import pytest

from crjax import data, rewards, tokenizer
from crjax.execution import Job, Pool
from data_pipeline import identity, instrument, replay, select, verify
from tests.conftest import ROOT

SPLITS = {'sft_train': 90, 'rl_train': 60, 'dev': 20, 'test': 20}
ENTRIES = ('README.md', 'manifest.json', *(f'{s}.parquet' for s in SPLITS))


def command(out, *flags):
  return [
    sys.executable,
    '-m',
    'data_pipeline.build',
    f'--config={ROOT / "configs" / "data_7b.py"}',
    f'--config.out={out}',
    '--config.workers=1',
    '--config.candidates=140',
    '--config.chunk=20',
    '--config.largest_share=0.1',
    *(f'--config.splits.{k}={v}' for k, v in SPLITS.items()),
    *flags,
  ]


def run(out, *flags, fine=True):
  done = subprocess.run(
    command(out, *flags), cwd=ROOT, capture_output=True, text=True
  )
  assert (done.returncode == 0) == fine, done.stderr
  return done


def killed(out, pattern, count, *flags):
  """Starts a build and kills it when so many parts are there."""
  process = subprocess.Popen(
    command(out, *flags),
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  work = out.with_name(f'{out.name}.work')
  while process.poll() is None and len(list(work.glob(pattern))) < count:
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.wait()
  return process.returncode == -signal.SIGKILL


@pytest.fixture(scope='module')
def built(tmp_path_factory):
  out = tmp_path_factory.mktemp('factory') / 'whole'
  run(out)
  return out


@pytest.fixture(scope='module')
def rows(built):
  return {
    split: datasets.Dataset.from_parquet(
      str(built / f'{split}.parquet')
    ).to_list()
    for split in SPLITS
  }


def test_kills_and_shards_change_no_byte(built, tmp_path):
  """Killed in three stages, once as a build of another mix of kinds.

  The cases of both builds are the same and stay; what was selected does not.
  """
  out = tmp_path / 'other'
  shard = lambda i, stage: (f'--stage={stage}', f'--shard={i}/2')
  assert killed(out, 'cases-*/*.jsonl', 1, *shard(0, 'cases'))
  run(out, *shard(1, 'cases'))
  (cases,) = out.with_name('other.work').glob('cases-*')
  before = {p.name: p.stat().st_mtime_ns for p in cases.glob('*.jsonl')}
  mix = '--config.mix.rl_train.output=0.9'
  assert killed(out, 'selected-*/summary.json', 1, mix)
  after = {p.name: p.stat().st_mtime_ns for p in cases.glob('*.jsonl')}
  assert len(after) == 7 and after | before == after  # None was made anew.
  assert killed(out, 'selected-*/summary.json', 2)
  killed(out, 'rows-*/*.jsonl', 1)
  run(out)
  for name in ENTRIES:
    assert (out / name).read_bytes() == (built / name).read_bytes(), name
  assert sorted(p.name for p in tmp_path.iterdir()) == ['other']
  again = run(out)
  assert 'already holds' in again.stdout
  other = run(out, '--config.seed=1', fine=False)
  assert 'another config' in other.stderr


def test_workers_end_with_their_parent(tmp_path):
  process = subprocess.Popen(command(tmp_path / 'left'), cwd=ROOT)
  work = tmp_path / 'left.work'
  while process.poll() is None and not list(work.glob('cases-*/*.jsonl')):
    time.sleep(0.05)
  below = descendants(process.pid)
  process.kill()
  process.wait()
  assert len(below) >= 4  # A worker and its three sandboxes.
  deadline = time.monotonic() + 20
  while any(map(is_alive, below)) and time.monotonic() < deadline:
    time.sleep(0.1)
  assert not [pid for pid in below if is_alive(pid)]


def descendants(pid):
  parents = {}
  for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
    with contextlib.suppress(OSError):
      parents[int(path.parent.name)] = int(
        path.read_text().rpartition(')')[2].split()[1]
      )
  found = {pid}
  while more := {p for p, parent in parents.items() if parent in found} - found:
    found |= more
  return found - {pid}


def is_alive(pid):
  try:
    text = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return text.rpartition(')')[2].split()[0] != 'Z'


def test_splits_are_full_and_share_no_program(rows):
  assert {k: len(v) for k, v in rows.items()} == SPLITS
  pids = {k: {row['pid'] for row in v} for k, v in rows.items()}
  hashes = {
    k: {identity.program_hash(row['verify']['code']) for row in v}
    for k, v in rows.items()
  }
  assert pids == hashes
  assert sum(map(len, pids.values())) == len(set.union(*pids.values()))
  ids = [row['id'] for v in rows.values() for row in v]
  assert len(set(ids)) == len(ids)


def test_kinds_are_as_many_as_the_mix_says(rows, built):
  mix = json.loads((built / 'manifest.json').read_text())['settings']['mix']
  for split, some in rows.items():
    kinds = collections.Counter(row['kind'] for row in some)
    for kind, share in mix[split].items():
      wanted = share / sum(mix[split].values()) * len(some)
      assert abs(kinds[kind] - wanted) <= 2
  golds = [
    row['verify']['gold'][0]
    for some in rows.values()
    for row in some
    if row['kind'] == 'coverage'
  ]
  assert abs(golds.count('YES') - golds.count('NO')) <= len(SPLITS)


def test_every_chain_ends_in_a_right_answer(rows):
  some = rows['sft_train']
  tasks = [data.task(row) for row in some]
  texts = [row['messages'][-1]['content'] for row in some]
  with Pool(1) as pool:
    rewards_B, _ = rewards.score(tasks, texts, [False] * len(some), pool)
  assert (rewards_B == 1).all()


def test_training_reads_it(built, rows, smoke_data):
  """Batches of both stages; a task of each kind reaches its judge whole."""
  tok = tokenizer.load(smoke_data / 'tokenizer')
  knobs = {'seed': 0, 'pad_id': tok.pad_token_id}
  examples = data.examples(
    built / 'sft_train.parquet', tok, batch=4, length=4000, **knobs
  )
  assert next(examples).mask_BT.any(1).all()
  prompts = data.prompts(
    built / 'rl_train.parquet', tok, questions=4, length=3000, **knobs
  )
  known = {row['id']: row for row in rows['rl_train']}
  for task in next(prompts).tasks:
    assert task == data.task(known[task['id']])
    assert bool(task['questions']) == (task['kind'] == 'mixed')
    assert bool(task['gold']) == (task['kind'] in tokenizer.STEPS)


def test_datasets_loads_it(built, tmp_path):
  load = lambda *name: datasets.load_dataset(
    str(built), *name, cache_dir=str(tmp_path)
  )
  prompts, messages = load(), load('sft')
  assert {k: len(v) for k, v in (prompts | messages).items()} == SPLITS
  assert set(prompts['rl_train'].column_names) >= {'id', 'kind', 'prompt'}
  assert 'messages' in messages['sft_train'].column_names


def test_the_funnel_adds_up(built, rows):
  manifest = json.loads((built / 'manifest.json').read_text())
  found = manifest['summary']
  assert found['programs'] == len(
    {row['pid'] for some in rows.values() for row in some}
  )
  dropped = found['dropped_programs']
  assert found['candidates'] == found['programs'] + sum(dropped.values())
  assert min(dropped.values()) >= 0
  assert manifest['rows'] == SPLITS


def test_the_card_has_tables_and_rows_of_each_kind(built, rows):
  text = (built / 'README.md').read_text()
  assert str(ROOT) not in text
  for head in (
    '## Funnel',
    '## Balance',
    '## Diversity',
    '## What was dropped',
  ):
    assert f'\n{head}\n' in text
  kinds = {row['kind'] for some in rows.values() for row in some}
  shown = text.partition('\n## Rows\n')[2].split('\n### ')[1:]
  assert {part.split('\n')[0] for part in shown} == kinds
  for part in shown:
    assert 1 <= part.count('<answer>\n') <= 20


def test_too_few_candidates_say_so(built, tmp_path):
  done = run(tmp_path / 'few', '--config.candidates=20', fine=False)
  assert 'raise --config.candidates or lower' in done.stderr
  assert '--config.splits.' in done.stderr


@pytest.mark.parametrize(
  ('flags', 'said'),
  [
    (['--stage=cases', '--shard=2/2'], '0 <= i < n'),
    (['--stage=cases', '--shard=x'], '0 <= i < n'),
    (['--shard=0/2'], 'needs a --stage'),
  ],
)
def test_a_wrong_shard_is_refused(flags, said, tmp_path):
  assert said in run(tmp_path / 'no', *flags, fine=False).stderr


def test_quotas_add_up():
  mix = {'output': 0.4, 'input': 0.27, 'coverage': 0.06, 'path': 0.06}
  for size in (1, 7, 100, 17_332):
    found = select.quotas(size, mix)
    assert sum(found.values()) == size
    assert abs(found['coverage YES'] - found['coverage NO']) <= 1


def test_every_row_is_verified(built, smoke_data):
  """The command a user runs, over all rows of both kinds of datasets."""
  for path in (built, smoke_data):
    done = subprocess.run(
      [sys.executable, '-m', 'data_pipeline.verify', path, '--workers=1'],
      cwd=ROOT,
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stdout
    (found,) = re.findall(r'verify: (\{.*\})', done.stdout)
    found, size = (
      json.loads(found),
      sum(
        len(datasets.Dataset.from_parquet(str(file)))
        for file in path.glob('*.parquet')
      ),
    )
    assert found['rows'] == found['answers'] == size
    assert found['values'] > 2 * found['chains'] > 0


def numbered(line, rng):
  """The line with one number one larger, None without a number."""
  found = list(re.finditer(r'(?<![\w`])\d+', line))
  if not found:
    return None
  one = rng.choice(found)
  return f'{line[: one.start()]}{int(one[0]) + 1}{line[one.end() :]}'


def test_another_number_anywhere_in_a_chain_is_found(rows):
  """Values, numbers of lines and of rounds; in every line of every chain."""
  some, rng, tried = rows['sft_train'], random.Random(0), 0
  with Pool(1) as pool:
    jobs = [
      Job(v['code'], v['entry'], v['args'], trace=True)
      for v in (row['verify'] for row in some)
    ]
    results = pool.run(jobs)
    seen = instrument.seen(jobs, [verify.told(r) for r in some], pool)
  for row, result, parts in zip(some, results, seen, strict=True):
    assert verify.chain(row, result.trace, parts) > 0
    text = verify.told(row)
    lines = text.split('\n')
    for i, line in enumerate(lines):
      if (wrong := numbered(line, rng)) is None:
        continue
      changed = '\n'.join([*lines[:i], wrong, *lines[i + 1 :]])
      said = row['messages'][-1]['content'].replace(text, changed)
      turns = [*row['messages'][:-1], {'role': 'assistant', 'content': said}]
      tried += 1
      with pytest.raises(replay.Wrong):
        verify.chain(row | {'messages': turns}, result.trace, parts)
  assert tried > 1000


@pytest.mark.parametrize(
  ('field', 'value', 'said'),
  [
    ('output', '"other"', 'returns'),
    ('args', '"no", "such", "arguments", "here"', 'ends with'),
    ('gold', ['17'], 'the answer to'),
    ('code', 'def nothing():\n    pass', 'ends with'),
  ],
)
def test_a_wrong_row_is_found(rows, field, value, said):
  good = next(r for r in rows['rl_train'] if r['kind'] == 'path')
  bad = good | {'verify': good['verify'] | {field: value}}
  report = verify.Report()
  with Pool(1) as pool:
    verify.compare([good], pool, report)
    assert not report.failures
    verify.compare([bad], pool, report)
  assert said in report.failures[0]
