"""Runs of `python -m crjax.train` as a user starts, kills and resumes them."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

from absl import flags
import datasets
import jax
from ml_collections import config_flags
import numpy as np
import pytest

from crjax import checkpoint, cluster, data, hf, inputs, model, tokenizer

ROOT = pathlib.Path(__file__).parents[1]
SHAPE = model.Config(V=512, L=1, D=32, F=48, N=2, K=1, H=16, tied=True)
TINY = [f'--config.shape.{k}={getattr(SHAPE, k)}' for k in 'LDFNKH']
TWO_DEVICES = {'XLA_FLAGS': '--xla_force_host_platform_device_count=2'}


def command(config, **values):
  flags = [f'--config.{k}={v}' for k, v in values.items()]
  path = ROOT / 'configs' / f'{config}.py'
  if isinstance(config, pathlib.Path):
    path = config
  return [sys.executable, '-m', 'crjax.train', f'--config={path}', *flags]


def start(args, **kwargs):
  env = os.environ | TWO_DEVICES | {'JAX_PLATFORMS': 'cpu'}
  return subprocess.Popen(
    args,
    cwd=ROOT,
    env=env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    **kwargs,
  )


def finish(args):
  process = start(args)
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


def steps_logged(workdir):
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  return [json.loads(x) for x in lines if x.endswith('\n')]


def kill_after(args, workdir, step, pause=0.0):
  """SIGKILLs the run once it has logged `step` and written a checkpoint.

  `pause`: for so many steps more it goes on.

  Checkpoints are written behind the run's back; without one, a fresh start
  would be the right way to go on.
  """
  process = start(args)
  written = pathlib.Path(workdir) / 'checkpoints'
  deadline = time.time() + 300
  while time.time() < deadline and process.poll() is None:
    saved = {path.name for path in written.glob('[1-9]*')}
    far = any(line['step'] >= step for line in steps_logged(workdir))
    if far and any(name.isdigit() for name in saved):
      time.sleep(pause * steps_logged(workdir)[-1]['time/step_s'])
      process.send_signal(signal.SIGKILL)
      process.communicate()
      assert process.returncode == -signal.SIGKILL
      return
    time.sleep(0.02)
  raise AssertionError(f'never logged step {step}:\n{process.communicate()[0]}')


def without_clock(lines):
  """What must be equal: everything but wall-clock readings."""
  return [
    {
      k: v
      for k, v in line.items()
      if not k.startswith(('time', 'tokens_per', 'perf'))
    }
    for line in lines
  ]


def assert_same_run(a, b):
  (step_a, params_a), (step_b, params_b) = map(
    checkpoint.restore_params, (a, b)
  )
  assert step_a == step_b
  jax.tree.map(np.testing.assert_array_equal, params_a, params_b)
  assert without_clock(steps_logged(a)) == without_clock(steps_logged(b))


@pytest.fixture(scope='module')
def policy(tmp_path_factory, smoke_data):
  """A random model in the Hugging Face format, to start GRPO from."""
  path = tmp_path_factory.mktemp('policy') / 'hf'
  params = jax.device_get(model.init(SHAPE, jax.random.key(0)))
  hf.save(path, SHAPE, params, source_dir=smoke_data / 'tokenizer')
  return path


MIXTURE = """
import importlib.util

def get_config():
  spec = importlib.util.spec_from_file_location('smoke', {smoke!r})
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  c = module.get_config()
  with c.ignore_type():
    c.data = (({few!r}, 2.0), ({many!r}, 1.0))
  return c
"""


@pytest.fixture(scope='module')
def mixture(smoke_data, tmp_path_factory):
  """A config of two data sets, in two kinds of files."""
  out = tmp_path_factory.mktemp('mixture')
  rows = data.read(smoke_data / 'sft_train.parquet', {'messages'})
  rows = [{'messages': row['messages']} for row in rows]
  few, many = out / 'few.jsonl', out / 'many.parquet'
  few.write_text(''.join(json.dumps(row) + '\n' for row in rows[:40]))
  datasets.Dataset.from_list(rows[40:]).to_parquet(str(many))
  path = out / 'mixture.py'
  smoke = str(ROOT / 'configs' / 'sft_smoke.py')
  path.write_text(MIXTURE.format(smoke=smoke, few=str(few), many=str(many)))
  return path


def sft_args(smoke_data, workdir):
  values = {
    'data': smoke_data / 'sft_train.parquet',
    'tokenizer': smoke_data / 'tokenizer',
    'workdir': workdir,
    'batch': 4,
    'save_every': 5,
  }
  return command('sft_smoke', **values) + TINY


def grpo_args(smoke_data, policy, workdir, **more):
  values = {
    'data': smoke_data / 'rl_train.parquet',
    'model': policy,
    'workdir': workdir,
    'steps': 16,
    'questions': 4,
    'groups': 4,
    'rollouts': 2,
    'completion_length': 16,
    'save_every': 3,
    'samples_every': 2,
  }
  return command('grpo_smoke', **values | more)


@pytest.mark.parametrize('kills', [2, pytest.param(8, marks=pytest.mark.slow)])
def test_a_killed_sft_run_resumes_bit_for_bit(
  smoke_data, mixture, tmp_path, kills
):
  """Of a mixture, packed, each step in two slices, its moments in bfloat16."""

  def args(workdir):
    values = {
      'tokenizer': smoke_data / 'tokenizer',
      'workdir': workdir,
      'batch': 4,
      'micro': 2,
      'packed': True,
      'length': 400,
      'epochs': 1.5 * kills,
      'save_every': 3,
      'optimizer': 'adamw',
      'moments': "('bfloat16', 'bfloat16')",
      'masters': 'split',
      'dtype': 'bfloat16',
    }
    return command(mixture, **values) + TINY

  whole, cut = args(tmp_path / 'whole'), args(tmp_path / 'cut')
  code, output = finish(whole)
  assert code == 0, output
  last = steps_logged(tmp_path / 'whole')[-1]['step']
  rng = np.random.default_rng(kills)
  for i in range(kills):
    # Anywhere in a step or a save.
    step = 4 + int((i + rng.uniform()) * (last - 16) / kills)
    kill_after(cut, tmp_path / 'cut', step, pause=rng.uniform(0, 2))
  code, output = finish(cut)
  assert code == 0, output
  assert 'resumed at step' in output
  assert_same_run(tmp_path / 'whole', tmp_path / 'cut')


# Everything of GRPO that a checkpoint has to hold: what was asked and how it
# went, an old policy and a first one, a bonus that follows the entropy.
WHOLE_STATE = {
  'groups': 2,
  'pools': True,
  'rounds': 2,
  'minibatches': 2,
  'kl_coef': 0.01,
  'entropy_target': 9.0,
}


@pytest.mark.parametrize('kills', [2, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_grpo_run_resumes_bit_for_bit(
  smoke_data, policy, tmp_path, kills
):
  more = WHOLE_STATE | {'steps': 8 * kills, 'save_every': 3}
  whole = grpo_args(smoke_data, policy, tmp_path / 'whole', **more)
  cut = grpo_args(smoke_data, policy, tmp_path / 'cut', **more)
  code, output = finish(whole)
  assert code == 0, output
  rng = np.random.default_rng(kills)
  for i in range(kills):
    # Anywhere in a step: sampling, judging, the update or a save.
    kill_after(cut, tmp_path / 'cut', 8 * i + 4, pause=rng.uniform(0, 2))
  code, output = finish(cut)
  assert code == 0, output
  assert 'resumed at step' in output
  assert_same_run(tmp_path / 'whole', tmp_path / 'cut')
  for line in steps_logged(tmp_path / 'whole'):
    shares = [x for k, x in line.items() if k.startswith('verdict/')]
    assert sum(shares) == pytest.approx(1)
  report = json.loads((tmp_path / 'whole/sandbox.json').read_text())
  assert f'isolation level {report["level"]}' in output
  for run in ('whole', 'cut'):
    names = {p.name for p in (tmp_path / run / 'samples').iterdir()}
    assert f'step_{8 * kills:06d}.parquet' in names


def test_a_finished_run_started_again_changes_nothing(
  smoke_data, policy, tmp_path
):
  args = grpo_args(smoke_data, policy, tmp_path / 'run', steps=2)
  assert finish(args)[0] == 0
  before = steps_logged(tmp_path / 'run')
  code, output = finish(args)
  assert code == 0, output
  assert steps_logged(tmp_path / 'run') == before


def test_another_config_in_the_same_directory_is_refused(
  smoke_data, policy, tmp_path
):
  args = grpo_args(smoke_data, policy, tmp_path / 'run', steps=1, lr=0.25)
  assert finish(args)[0] == 0
  code, output = finish([*args, '--config.lr=0.5'])
  assert code == cluster.WRONG_INPUT
  assert 'lr: 0.25 before, 0.5 now' in output


@pytest.mark.parametrize('config', ['sft_7b', 'grpo_7b'])
def test_missing_inputs_are_named_with_the_way_to_get_them(config, tmp_path):
  code, output = finish(command(config, workdir=tmp_path / 'run'))
  assert code == cluster.WRONG_INPUT
  assert 'config.model' in output
  assert 'config.data' in output
  assert 'python -m data_pipeline.build' in output
  assert 'Traceback' not in output
  assert not (tmp_path / 'run').exists()


def test_a_typo_in_a_field_is_named(tmp_path):
  code, output = finish(command('sft_smoke', bacth=4))
  assert code == cluster.WRONG_INPUT
  assert 'Did you mean "batch" instead of "bacth"?' in output
  assert 'Traceback' not in output


@pytest.mark.parametrize(
  ('text', 'args', 'says'),
  [
    (None, [], 'no such file|Failed loading config file'),
    ('def get_config(', [], 'does not run'),
    ('1 / 0', [], 'does not run'),
    ('', ['--config.batch=x'], 'invalid literal|batch=x'),
    ('', ['--cofnig.batch=2'], 'cofnig'),
    ('', ['--config.bacth=2'], 'Did you mean "batch"'),
  ],
)
def test_what_a_command_line_gets_wrong_is_final(
  text, args, says, tmp_path, monkeypatch, capsys
):
  path, found = tmp_path / 'config.py', flags.FlagValues()
  if text is not None:
    good = (
      'from ml_collections import ConfigDict\n'
      'get_config = lambda: ConfigDict({"batch": 1})\n'
    )
    path.write_text(text or good)
  config_flags.DEFINE_config_file('config', flag_values=found)
  monkeypatch.setattr(inputs.flags, 'FLAGS', found)
  argv = ['train', f'--config={path}', *args]
  monkeypatch.setattr(sys, 'argv', argv)  # ml_collections looks there too.
  with pytest.raises(SystemExit) as end:
    inputs.parse_flags(argv)
  assert end.value.code == cluster.WRONG_INPUT
  assert re.search(says, capsys.readouterr().err)


def test_bad_rows_end_a_run_with_their_place(smoke_data, tmp_path):
  bad = tmp_path / 'bad.jsonl'
  bad.write_text('{"messages": [{"role": "usr", "content": "x"}]}\n')
  args = [*sft_args(smoke_data, tmp_path / 'run'), f'--config.data={bad}']
  code, output = finish(args)
  assert code == cluster.WRONG_INPUT
  assert "bad.jsonl row 0: messages[0].role is 'usr'" in output
  assert 'Traceback' not in output


def test_the_vocabulary_must_hold_the_tokenizer(smoke_data, tmp_path):
  args = [*sft_args(smoke_data, tmp_path / 'run'), '--config.shape.V=16']
  code, output = finish(args)
  assert code == cluster.WRONG_INPUT
  assert 'config.shape.V has 16 rows' in output
  size = len(tokenizer.load(smoke_data / 'tokenizer'))
  assert f'{size} ids' in output
  assert 'Traceback' not in output
  assert not (tmp_path / 'run').exists()
