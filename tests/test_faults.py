"""A GRPO run whose sandbox and disk fail it: it goes on, and says so."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading

import datasets
import jax
import numpy as np
import pytest

from crjax import checkpoint, hf, model, tokenizer
from tests.test_train import ROOT, command, finish, start, steps_logged

SHAPE = model.Config(V=512, L=2, D=64, F=96, N=4, K=2, H=16, tied=True)
STEPS, QUESTIONS, R = 12, 8, 8
LOST = 26  # Of 256 checks: one in ten.
# Slow enough that a worker is hit at work.
CODE = """def f(x):
  for i in range(400000):
    pass
  return (x * {a} + {b}) % 3"""
FORM = '<reasoning>\nx\n</reasoning>\n<answer>\nf({})\n</answer>'
# The command line of training with a sandbox that loses one check in ten.
FAULTY = f"""
import hashlib, sys
sys.path.insert(0, {str(ROOT)!r})
from absl import app
from crjax import execution, train

class Pool(execution.Pool):
  def run(self, jobs, progress=None):
    found = super().run(jobs, progress)
    return [one(*pair) for pair in zip(jobs, found, strict=True)]

def one(job, result):
  said = hashlib.sha256(f'{{job.code}} {{job.args}}'.encode()).digest()[0]
  lost = execution.Result('infra', detail='injected')
  return lost if said < {LOST} else result

execution.Pool = Pool
train.define_flags()
app.run(train.main, flags_parser=train.parse_flags)
"""


def value(a, b, x):
  return (x * a + b) % 3


def questions():
  """(a, b, x, code, messages) of small programs, and calls to find."""
  for a in range(1, 9):
    for b in range(8):
      x = (3 * a + b) % 10
      code = CODE.format(a=a, b=b)
      output = repr(value(a, b, x))
      asked = tokenizer.messages('input', code, 'f', str(x), output)
      yield a, b, x, code, output, asked


@pytest.fixture(scope='module')
def policy(smoke_data, tmp_path_factory):
  """(model that answers such questions in form, their file)."""
  out = tmp_path_factory.mktemp('taught')
  lessons, asked = [], []
  for a, b, x, code, output, chat in questions():
    said = {'role': 'assistant', 'content': FORM.format(x)}
    lessons.append({'messages': [*chat, said]})
    verify = {'code': code, 'entry': 'f', 'args': str(x), 'output': output}
    row = {'id': f'{a}-{b}', 'kind': 'input', 'prompt': chat, 'verify': verify}
    asked.append(row)
  for name, rows in (('sft', lessons), ('rl', asked)):
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (out / f'{name}.jsonl').write_text(text)
  values = {
    'data': out / 'sft.jsonl',
    'tokenizer': smoke_data / 'tokenizer',
    'workdir': out / 'sft',
    'length': 256,
    'epochs': 60,
    'save_every': 1000,
  }
  shape = [f'--config.shape.{k}={getattr(SHAPE, k)}' for k in 'LDFNKH']
  code, output = finish(command('sft_smoke', **values) + shape)
  assert code == 0, output
  _, params = checkpoint.restore_params(out / 'sft')
  config = json.loads((out / 'sft' / 'config.json').read_text())['shape']
  cfg = model.Config(**{k: v for k, v in config.items() if k != 'lora'})
  hf.save(
    out / 'hf',
    cfg,
    jax.device_get(params),
    source_dir=smoke_data / 'tokenizer',
  )
  return out / 'hf', out / 'rl.jsonl'


@pytest.fixture
def disk(tmp_path):
  """A file system of 2 MiB, on which one checkpoint has room and two not."""
  path = tmp_path / 'run' / 'checkpoints'
  path.mkdir(parents=True)
  made = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', str(path)],
    capture_output=True,
    text=True,
    check=False,
  )
  if made.returncode:
    pytest.skip(f'no file system of its own: {made.stderr.strip()}')
  yield path
  subprocess.run(['umount', str(path)], check=True)


def workers(pid):
  """Process ids of the sandbox workers of a process."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*'):
    with contextlib.suppress(OSError):  # It may have ended.
      parent = int((path / 'stat').read_text().rpartition(')')[2].split()[1])
      if parent == pid and 'worker.py' in (path / 'cmdline').read_text():
        found.append(int(path.name))
  return sorted(found)


def killing(process, done):
  """Kills a worker a second, in turns, until `done`; their process ids."""
  killed = []

  def work():
    while not done.wait(1.0) and process.poll() is None:
      if alive := workers(process.pid):
        victim = alive[len(killed) % len(alive)]
        os.kill(victim, signal.SIGKILL)
        killed.append(victim)

  thread = threading.Thread(target=work)
  thread.start()
  return killed, thread


def suffer(args):
  """(status, output, process ids of the workers killed) of a command."""
  done, process = threading.Event(), start(args)
  killed, thread = killing(process, done)
  try:
    output, _ = process.communicate(timeout=900)
  finally:
    process.kill()
    done.set()
    thread.join()
  return process.returncode, output, killed


def lost(code, args):
  said = hashlib.sha256(f'{code} {args}'.encode()).digest()[0]
  return said < LOST


@pytest.mark.slow
def test_a_run_outlives_its_sandbox_and_its_disk(policy, tmp_path, disk):
  """A worker dies a second, one check in ten is lost, a save finds no room."""
  weights, asked = policy
  run = tmp_path / 'run'
  (tmp_path / 'faulty.py').write_text(FAULTY)
  values = {
    'data': asked,
    'model': weights,
    'workdir': run,
    'steps': STEPS,
    'questions': QUESTIONS,
    'groups': QUESTIONS,
    'rollouts': R,
    'prompt_length': 160,
    'completion_length': 48,
    'slots': QUESTIONS * R,
    'save_every': 3,
  }
  _, _, _, *args = command('grpo_smoke', **values)
  args = [sys.executable, str(tmp_path / 'faulty.py'), *args]
  code, output, killed = suffer(args)
  assert code != 0, output
  assert re.search('No space left|disk is full', output), output
  subprocess.run(['mount', '-o', 'remount,size=64m', str(disk)], check=True)
  code, output, more = suffer(args)
  assert code == 0, output
  assert 'resumed at step 3' in output
  assert 'ALARM infra: infra is' in output
  assert len(set(killed + more)) >= 5

  # Nothing is lost: every step is there, with every completion once.
  lines = steps_logged(run)
  assert [line['step'] for line in lines] == list(range(1, STEPS + 1))
  rows = []
  for step in range(1, STEPS + 1):
    path = run / 'samples' / f'step_{step:06d}.parquet'
    some = datasets.Dataset.from_parquet(str(path)).to_list()
    assert [row['row'] for row in some] == list(range(QUESTIONS * R))
    rows += some
    infra = np.mean([row['verdict'] == 'infra' for row in some])
    assert lines[step - 1]['infra'] == pytest.approx(infra)
    assert ('alarm/infra' in lines[step - 1]) == (infra > 0.01)
  assert (checkpoint.restore_params(run))[0] == STEPS
  judged_only_by_their_answers(rows)


def judged_only_by_their_answers(rows):
  """No verdict is a fault's: it is that of the answer, or there is none."""
  tried = [row for row in rows if row['format_ok'] and row['answer']]
  assert len(tried) > len(rows) / 2
  unjudged = 0
  for row in tried:
    call = re.fullmatch(r'f\((\d+)\)', row['answer'])
    if call is None:
      continue
    if row['verdict'] == 'infra':
      unjudged += 1
      assert row['advantage'] == 0 and np.isnan(row['reward'])
      continue
    assert not lost(row['code'], call[1])
    a, b = map(int, row['id'].split('-'))
    right = repr(value(a, b, int(call[1]))) == row['output']
    assert row['verdict'] == ('pass' if right else 'wrong'), row
  assert 0.02 < unjudged / len(tried) < 0.5
