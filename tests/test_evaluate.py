import json
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow.parquet
import pytest

from crjax import completing, evaluate, files, hf, model
from crjax.evals import pairs, show, stats, summary
from crjax.execution import Pool
from tests.conftest import ROOT

CFG = model.Config(V=512, L=1, D=16, F=24, N=2, K=1, H=8, tied=True)


@pytest.fixture(scope='module')
def small(tmp_path_factory, smoke_data):
  path = tmp_path_factory.mktemp('model') / 'hf'
  params = jax.device_get(model.init(CFG, jax.random.key(0)))
  hf.save(path, CFG, params, source_dir=smoke_data / 'tokenizer')
  return path


def arguments(small, *flags):
  return [
    sys.executable,
    '-m',
    'crjax.evaluate',
    f'--config={ROOT / "configs" / "eval_smoke.py"}',
    f'--model={small}',
    '--config.completion_length=8',
    '--config.samples=2',
    *flags,
  ]


def command(small, *flags):
  return subprocess.run(
    arguments(small, *flags),
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def answer(text):
  return f'<reasoning>r</reasoning><answer>{text}</answer>'


TASKS = [
  {
    'id': f'{i}-{kind}',
    'kind': kind,
    'code': 'def f(x):\n  return x + 1',
    'entry': 'f',
    'args': str(i),
    'output': str(i + 1),
  }
  for i in range(10)
  for kind in ('output', 'input')
]


def test_numbers_are_what_the_completions_deserve():
  """A stand-in for the model: what it writes is known, so is its score."""

  def complete(prompts, temperature, rollouts):
    texts = []
    for task in TASKS:
      right = answer(task['output' if task['kind'] == 'output' else 'args'])
      wrong = answer("'no'")
      unformed = right.removeprefix('<reasoning>r</reasoning>')
      if not temperature:
        texts.append(right if int(task['args']) < 5 else wrong)
      else:
        texts += [right, unformed, wrong, wrong]
    return texts, np.zeros(len(texts), bool)

  with Pool(2) as pool:
    rows = evaluate.run(TASKS, complete, [pool], samples=4)
  report = evaluate.summarize(rows)
  for kind in ('output', 'input'):
    assert report[kind]['n'] == 10
    greedy, sampled = report[kind]['greedy'], report[kind]['sampled']
    assert greedy['strict'] == greedy['typed'] == 0.5
    assert greedy['format_rate'] == 1.0
    # Quantiles of ten fair coins.
    assert greedy['ci95'] == pytest.approx([0.2, 0.8])
    assert sampled['strict'] == 0.5  # An unformed right answer is right,
    assert sampled['format_rate'] == 0.75  # and its form is counted here.
    assert sampled['samples'] == 4
    assert sampled['ci95'] == [0.5, 0.5]  # Every item alike.


def test_a_prompt_that_does_not_fit_is_wrong_and_counted():
  with Pool(1) as pool:
    rows = evaluate.run(
      TASKS[:2],
      lambda p, t, n: ([None] * 2 * n, [False] * 2 * n),
      [pool],
      samples=1,
    )
  report = evaluate.summarize(rows)
  assert report['output']['greedy']['too_long'] == 1
  assert report['output']['greedy']['strict'] == 0.0


def test_what_we_failed_to_judge_is_left_out_and_counted():
  rows = [
    {
      'id': str(i),
      'kind': 'output',
      'code': 'def f(x):\n  return x',
      'mode': mode,
      'sample': 0,
      'verdict': 'infra' if i == 0 else 'pass',
      'right': i > 0,
      'typed': i > 0,
      'format_ok': True,
      'truncated': False,
      'fits': True,
    }
    for i in range(4)
    for mode in ('greedy', 'sampled')
  ]
  greedy = evaluate.summarize(rows)['output']['greedy']
  assert greedy['strict'] == 1.0 and greedy['infra'] == 1


def test_wilson_is_the_published_formula():
  low, high = stats.wilson(np.array([1] * 8 + [0] * 2))
  assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
  assert stats.wilson(np.zeros(10))[0] == 0.0
  assert stats.wilson(np.array([])) is None


def test_where_a_model_is_right_and_what_a_constant_would_be():
  loop = 'def f(x):\n  for i in range(x):\n    pass\n  return i'
  rows = [
    task
    | {'mode': 'greedy', 'sample': 0, 'verdict': 'wrong', 'right': i % 2 == 0}
    | {'code': loop if i < 4 else 'def f(x):\n  return [y for y in x]'}
    | {'output': '7' if i < 6 else str(i), 'difficulty': 'easy'}
    for i, task in enumerate(TASKS)
  ]
  by = summary.breakdowns(rows)
  assert by['construct'] == {
    'comprehension': {'n': 16, 'strict': 0.5},
    'for': {'n': 4, 'strict': 0.5},
  }
  assert by['lines'] == {' 1+': {'n': 20, 'strict': 0.5}}
  assert by['difficulty']['easy']['n'] == 20
  output = [row for row in rows if row['kind'] == 'output']
  assert summary.constant(output) == {'answer': '7', 'strict': 0.3}
  assert summary.constant([r for r in rows if r['kind'] == 'input']) is None


def test_steps_stand_beside_the_final_answer():
  task = {
    'id': 'm',
    'kind': 'mixed',
    'code': 'def f(x):\n  y = x + 1\n  return y',
    'entry': 'f',
    'args': '1',
    'output': '2',
    'gold': [],
    'questions': [
      {'kind': 'path', 'line': 2, 'occ': 1, 'var': '', 'gold': ['3']},
      {'kind': 'path', 'line': 3, 'occ': 1, 'var': '', 'gold': ['-1']},
    ],
  }
  texts = iter([answer('2\nQ1: 3\nQ2: 2'), answer('2\nQ1: 3\nQ2: -1')])
  complete = lambda prompts, heat, n: ([next(texts)], np.zeros(1, bool))
  with Pool(1) as pool:
    rows = evaluate.run([task], complete, [pool], samples=1)
  numbers = evaluate.summarize(rows)['mixed']
  assert numbers['greedy']['steps'] == 0.5 and numbers['greedy']['final'] == 1
  assert numbers['sampled']['steps'] == 1 and numbers['greedy']['strict'] == 0


def test_the_heldout_split_from_the_command_line(small, smoke_data, tmp_path):
  data = smoke_data / 'test.parquet'
  done = command(small, f'--data={data}', f'--out={tmp_path}')
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'report.json').read_text())
  assert report['settings']['data'] == str(data)
  assert report['kinds']['output']['n'] == 10
  assert (tmp_path / 'items.parquet').exists()


def test_a_cruxeval_file_from_the_command_line(small, tmp_path):
  item = {'code': 'def f(x):\n  return x', 'input': '1', 'output': '1'}
  path = tmp_path / 'crux.jsonl'
  lines = [json.dumps(item | {'id': f's{i}'}) for i in range(3)]
  path.write_text('\n'.join(lines))
  done = command(
    small,
    '--benchmark=cruxeval',
    '--prompt=direct',
    f'--data={path}',
    f'--out={tmp_path / "out"}',
  )
  assert done.returncode == 0, done.stderr
  report = json.loads((tmp_path / 'out' / 'report.json').read_text())
  assert report['kinds']['output']['greedy']['official'] == 0.0
  assert '--benchmark=cruxeval' in report['command']
  assert report['versions']['jax'] == jax.__version__
  assert {k: v['n'] for k, v in report['kinds'].items()} == {
    'input': 3,
    'output': 3,
  }


def test_missing_inputs_are_named(small, tmp_path):
  done = command(small, f'--data={tmp_path / "no.parquet"}')
  assert done.returncode != 0
  assert 'no.parquet does not exist' in done.stderr


@pytest.mark.slow
def test_killed_half_way_it_samples_the_rest_alone(small, tmp_path):
  """The report is that of a run that went through, and nothing is redone."""
  item = {'code': 'def f(x):\n  return x', 'input': '1', 'output': '1'}
  data = tmp_path / 'crux.jsonl'
  rows = [
    item | {'id': f's{i}', 'input': str(i), 'output': str(i)} for i in range(12)
  ]
  data.write_text('\n'.join(map(json.dumps, rows)))
  flags = ['--benchmark=cruxeval', '--prompt=zero_shot', '--config.batch=2']
  flags += [f'--data={data}', '--config.completion_length=24']
  whole, cut = tmp_path / 'whole', tmp_path / 'cut'
  kept = cut / 'answers.jsonl'
  process = subprocess.Popen(
    arguments(small, *flags, f'--out={cut}'),
    cwd=ROOT,
    stdout=subprocess.DEVNULL,
  )
  while process.poll() is None and not (kept.exists() and kept.stat().st_size):
    time.sleep(0.02)
  process.kill()
  process.wait()
  before = len(kept.read_bytes().split(b'\n')) - 1
  assert 0 < before < 72
  with kept.open('a') as file:
    file.write('{"key": "torn')
  for out in (whole, cut):
    done = command(small, *flags, f'--out={out}')
    assert done.returncode == 0, done.stderr
  assert f'{min(before, 24)} are in {kept}' in done.stdout
  lines = [json.loads(x) for x in kept.read_text().splitlines()]
  assert len({x['key'] for x in lines}) == len(lines) == 72
  found = [
    pyarrow.parquet.read_table(out / 'items.parquet').to_pylist()
    for out in (whole, cut)
  ]
  assert found[0] == found[1] and len(found[0]) == 72


def test_weights_are_told_apart(small, tmp_path):
  params = jax.device_get(model.init(CFG, jax.random.key(1)))
  hf.save(tmp_path / 'b', CFG, params, source_dir=small)
  names = [
    completing.fingerprint(files.locate(path))
    for path in (small, small, tmp_path / 'b')
  ]
  assert names[0] == names[1] != names[2]


def test_nothing_that_is_printed_is_cut(capsys):
  """On a pipe, with every kind and more digits than usual."""
  numbers = {
    'strict': 0.123,
    'ci95': [0.111, 0.999],
    'official': 1.0,
    'typed': 0.5,
    'format_rate': 1.0,
    'truncated': 1.0,
    'tokens': 4096.0,
    'final': 0.856,
    'steps': 0.635,
    'pass_at_k': {1: 0.5, 10: 0.9},
    'samples': 10,
    'infra': 12,
    'unlabelled': 0,
    'too_long': 12345,
  }
  by = {'construct': {'comprehension': {'n': 12345, 'strict': 1.0}}}
  kinds = {
    kind: {
      'n': 12345,
      'by': by,
      'constant': {'answer': '[a]', 'strict': 0.25},
      'greedy': numbers | {'samples': 1},
      'sampled': numbers,
    }
    for kind in evaluate.KINDS
  }
  pair = {'kind': 'output', 'n': 12345, 'a': 1.0, 'b': 0.5, 'difference': 0.5}
  pair |= {'ci95': [0.4, 0.6], 'only_a': 999, 'only_b': 99, 'p': 1.2e-9}
  told = {
    'settings': {'model': 'm' * 90, 'data': 'd' * 90},
    'kinds': kinds,
    'against': {'path': 'x', 'pairs': [pair | {'test': 'McNemar'}]},
  }
  show.report(told)
  text = capsys.readouterr().out
  assert '…' not in text
  assert text.count('12.3 [11.1, 99.9]') == 12
  for said in ('100.0 /12345', 'pass@10 90.0', '63.5 of the steps', '4096'):
    assert text.count(said) >= 6, said
  assert '+50.0 [40.0, 60.0]' in text and '1.2e-09' in text
  assert 'm' * 90 in text


def test_two_models_on_the_same_questions(tmp_path):
  rows = lambda ok: [
    task | {'mode': 'greedy', 'verdict': 'x', 'right': int(task['args']) < ok}
    for task in TASKS
  ]
  a, b = pairs.of_rows(rows(9)), pairs.of_rows(rows(2))
  found = {x['kind']: x for x in pairs.compare(a, b)}
  assert found['output']['difference'] == pytest.approx(0.7)
  assert (found['input']['only_a'], found['input']['only_b']) == (7, 0)
  assert found['input']['p'] == pytest.approx(2 * 0.5**7)
  # The ids are those of another benchmark: nothing is shared.
  other = [row | {'code': 'def g(x):\n  return x'} for row in rows(2)]
  with pytest.raises(ValueError, match='answers none of these questions'):
    pairs.check(pairs.of_rows(other), TASKS, 'x')
  pairs.check(a, TASKS, 'x')
  with pytest.raises(ValueError, match='is no result of'):
    path = tmp_path / 'x.json'
    path.write_text('{}')
    pairs.read(path)
