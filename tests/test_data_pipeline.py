import ast
import collections
import hashlib
import json
import re
import subprocess
import sys

import datasets
from ml_collections import ConfigDict
import pytest

from crjax import rewards
from crjax.execution import Job, Pool
from data_pipeline import build, built, chains, grammar
from tests.conftest import ROOT

LEVEL = {
  'types': {'int': 1, 'str': 1, 'list': 1, 'dict': 1},
  'statements': {'1': 1, '2': 1, '3': 1},
  'hardest': 3,
  'letters': 13,
  'branch': 0.2,
  'loop': 0.2,
  'largest_int': 9,
  'lengths': (2, 4),
}


@pytest.fixture(scope='module')
def rows(smoke_data):
  return {
    split: datasets.Dataset.from_parquet(
      str(smoke_data / f'{split}.parquet')
    ).to_list()
    for split in build.SPLITS
  }


@pytest.fixture(scope='module')
def traced():
  programs = [grammar.program(f't{i}', LEVEL) for i in range(300)]
  jobs = [Job(p.code, 'f', p.args, trace=True) for p in programs]
  with Pool(2) as pool:
    results = pool.run(jobs)
  return [
    (p, r) for p, r in zip(programs, results, strict=True) if r.verdict == 'ok'
  ]


def test_a_seed_is_a_program():
  assert grammar.program('7', LEVEL) == grammar.program('7', LEVEL)
  assert grammar.program('7', LEVEL) != grammar.program('8', LEVEL)


def test_nearly_every_program_runs_and_all_statements_occur(traced):
  assert len(traced) > 270
  code = '\n'.join(p.code for p, _ in traced)
  for part in ('if ', 'else:', 'for ', '.append(', '.replace(', '.get('):
    assert part in code


def test_a_chain_ends_in_what_it_derives(traced):
  for program, result in traced:
    told = chains.forward(program.code, result.steps, result.value)
    name = ast.parse(program.code).body[0].args.args[0].arg
    assert told.startswith(f'{name} = {program.args}\n')
    assert result.value in told
    undone = chains.backward(program.code, result.steps, result.value)
    assert undone.endswith(f'\n{name} = {program.args}')


def test_a_returned_expression_is_told():
  code = 'def f(x):\n    return x + 1'
  with Pool(1) as pool:
    (result,) = pool.run([Job(code, 'f', '2', trace=True)])
  told = chains.forward(code, result.steps, result.value)
  assert told == 'x = 2\nreturn x + 1 # 3'


def test_every_line_of_a_chain_is_true():
  code = (
    'def f(x):\n    y = 0\n    for c in x:\n        if c == "b":\n'
    '            y += 1\n    x = y\n    return x'
  )
  with Pool(1) as pool:
    (result,) = pool.run([Job(code, 'f', "'ab'", trace=True)])
  assert chains.forward(code, result.steps, result.value).split('\n') == [
    "x = 'ab'",
    'y = 0 # 0',
    "for c in x: # 'a'",
    'if c == "b": # False',
    "for c in x: # 'b'",
    'if c == "b": # True',
    'y += 1 # 1',
    'for c in x: # done',
    'x = y # 1',
  ]
  assert chains.backward(code, result.steps, result.value).split('\n') == [
    "x = y # 'ab'",
    'for c in x: # done',
    'y += 1 # 0',
    'if c == "b": # True',
    "for c in x: # 'b'",
    'if c == "b": # False',
    "for c in x: # 'a'",
    'y = 0 # new',
    "x = 'ab'",
  ]


def test_splits_share_no_program(rows):
  pids = [{row['pid'] for row in rows[split]} for split in build.SPLITS]
  codes = [
    {build.program_id(row['verify']['code']) for row in rows[split]}
    for split in ('heldout', 'rl_train')
  ]
  assert not pids[0] & pids[1] and not pids[0] & pids[2]
  assert not pids[1] & pids[2]
  assert codes == pids[:2]


def test_a_renamed_program_is_the_same_program():
  codes = (
    "def f(x):\n    y = ''\n    for c in x:\n        y = c + y\n    return y",
    "def f(s):\n  b = ''\n  for i in s: b = i + b\n  return b",
    "def f(y):\n    x = ''\n    for c in y:\n        x = c + x\n    return x",
  )
  others = (
    codes[0].replace('c + y', 'y + c'),
    codes[0].replace("''", "'c'"),
    codes[0].replace('return y', 'return x'),
  )
  assert len({build.program_id(code) for code in codes}) == 1
  assert len({build.program_id(code) for code in (codes[0], *others)}) == 4


def test_names_are_the_only_thing_that_a_hash_leaves_out(traced):
  """Renaming by text, the parameter alone, keeps the id and no more does."""
  rename = lambda code, new: re.sub(rf"(?<!')\b{code[6]}\b", new, code)
  ids = collections.defaultdict(set)
  for program, _ in traced:
    renamed = rename(program.code, 'zz')
    assert build.program_id(renamed) == build.program_id(program.code)
    ids[build.program_id(program.code)].add(renamed)
  assert all(len(same) == 1 for same in ids.values())


def test_every_answer_of_the_chains_is_right(rows):
  """The completions of the SFT split would earn the full reward."""
  tasks, texts = [], []
  for row in rows['sft_train']:
    question, completion = row['messages'][1:]
    code, known = question['content'].split('\nassert f(')
    args, output = known.split(') == ')
    tasks.append(
      {
        'kind': row['kind'],
        'code': code,
        'entry': 'f',
        'args': args,
        'output': output,
      }
    )
    texts.append(completion['content'])
  for task, _text in zip(tasks, texts, strict=True):
    if task['kind'] == 'output':  # The question hides it: run the program.
      with Pool(1) as pool:
        task['output'] = pool.run([Job(task['code'], 'f', task['args'])])[
          0
        ].value
    else:
      task['args'] = '()'
  with Pool(2) as pool:
    rewards_B, _ = rewards.score(tasks, texts, [False] * len(tasks), pool)
  assert (rewards_B == 1).all()


def test_the_manifest_tells_what_there_is(rows, smoke_data):
  manifest = json.loads((smoke_data / 'manifest.json').read_text())
  assert manifest['rows'] == {k: len(v) for k, v in rows.items()}
  for name, digest in manifest['sha256'].items():
    data = (smoke_data / name).read_bytes()
    assert hashlib.sha256(data).hexdigest() == digest
  for split, some in rows.items():
    kinds = collections.Counter(row['kind'] for row in some)
    assert manifest['kinds'][split] == kinds
  heldout = [r['verify'] for r in rows['heldout'] if r['kind'] == 'output']
  best = collections.Counter(v['output'] for v in heldout).most_common(1)[0][1]
  assert manifest['constant_baseline']['output'] == best / len(heldout)


def command(out, *flags):
  return subprocess.run(
    [
      sys.executable,
      '-m',
      'data_pipeline.build',
      f'--config={ROOT / "configs" / "data_smoke.py"}',
      f'--config.out={out}',
      '--config.rl_input_share=1',
      '--config.programs.sft_train=60',
      '--config.programs.rl_train=20',
      '--config.programs.heldout=10',
      *flags,
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_the_same_config_builds_the_same_bytes(smoke_data, tmp_path):
  assert command(tmp_path / 'again').returncode == 0
  read = lambda d: json.loads((d / 'manifest.json').read_text())['sha256']
  assert read(tmp_path / 'again') == read(smoke_data)


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


def test_a_share_of_input_questions_is_kept_by_program():
  pids = [f'{i:016x}' for i in range(1000)]
  ask = lambda kind, share: [
    pid for pid in pids if build.is_kept({'kind': kind, 'pid': pid}, share)
  ]
  assert ask('output', 0.0) == ask('input', 1.0) == pids
  assert ask('input', 0.0) == []
  assert len(ask('input', 0.43)) == 430


def test_where_data_lies_and_how_many_build_it_is_not_what_it_is():
  config = ConfigDict({'seed': 1, 'out': 'a', 'workers': 2})
  same = ConfigDict({'seed': 1, 'out': '/elsewhere/a', 'workers': 1})
  other = ConfigDict({'seed': 2, 'out': 'a', 'workers': 2})
  assert built.deciding(config) == built.deciding(same)
  assert built.deciding(config) != built.deciding(other)
