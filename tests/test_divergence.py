"""A run that goes wrong stops, keeps the batch, and can be looked into."""

import json
import math
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from crjax import checkpoint, cluster, data, divergence, replay
from tests.conftest import ROOT

BATCH = data.Examples(*(np.arange(6).reshape(2, 3) for _ in range(3)))


def feed(check, losses, first=1):
  for step, loss in enumerate(losses, first):
    check(step, {'loss': loss, 'grad_norm': 1.0}, BATCH)


@pytest.mark.parametrize(
  'numbers',
  [{'loss': math.nan, 'grad_norm': 1.0}, {'loss': 1.0, 'grad_norm': math.inf}],
)
def test_what_is_not_finite_ends_a_run_and_keeps_its_batch(
  numbers, tmp_path, capsys
):
  check = divergence.make_check(tmp_path, by_loss=False)
  feed(check, [2.0, 1e9])
  with pytest.raises(SystemExit) as end:
    check(3, numbers, BATCH)
  assert end.value.code == cluster.DIVERGED
  assert f'crjax.replay {tmp_path}' in capsys.readouterr().err
  step, why, batch = divergence.kept(tmp_path, None, data.Examples)
  assert step == 3 and 'not finite' in why
  jax.tree.map(np.testing.assert_array_equal, batch, BATCH)
  with pytest.raises(FileNotFoundError, match=r'step 5; found \[3\]'):
    divergence.kept(tmp_path, 5, data.Examples)


def test_only_a_loss_that_stays_high_ends_a_run(tmp_path):
  rng = np.random.default_rng(0)
  noisy = 0.3 + rng.exponential(1.0, 500)
  check = divergence.make_check(tmp_path, by_loss=True)
  feed(check, [*np.linspace(11, 0.3, 50), *noisy])
  feed(check, 19 * [8.0] + [0.5] + 19 * [8.0])
  with pytest.raises(SystemExit):
    feed(check, [8.0])
  assert 'a loss above 8' in divergence.kept(tmp_path, None, data.Examples)[1]


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, capsys):
  fine = {'a_D': np.ones(3, np.float32), 'b_D': np.ones(2, np.float32)}
  divergence.check_state(tmp_path, 4, fine)
  with pytest.raises(SystemExit):
    divergence.check_state(tmp_path, 4, fine | {'a_D': np.float32([1, np.inf])})
  assert 'are not saved' in capsys.readouterr().err


@pytest.fixture(scope='module')
def diverged(smoke_data, tmp_path_factory):
  """(run directory, output, exit status) of a real run at a mad rate."""
  workdir = tmp_path_factory.mktemp('diverged') / 'run'
  values = {
    'workdir': workdir,
    'data': smoke_data / 'sft_train.parquet',
    'tokenizer': smoke_data / 'tokenizer',
    'batch': 8,
    'lr': 1e30,
    'optimizer': 'adamw',
    'schedule': 'constant',
    'warmup': 0,
    'save_every': 1,
    'shape.L': 1,
    'shape.tied': False,
    'mesh': (1, 1, 1),
  }
  args = [f'--config.{k}={v}' for k, v in values.items()]
  config = f'--config={ROOT / "configs" / "sft_smoke.py"}'
  done = subprocess.run(
    [sys.executable, '-m', 'crjax.train', config, *args],
    cwd=ROOT,
    env=os.environ | {'XLA_FLAGS': '', 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
  )
  return workdir, done.stdout + done.stderr, done.returncode


def test_a_diverged_run_is_final_and_its_checkpoints_are_finite(diverged):
  workdir, output, code = diverged
  assert code == cluster.DIVERGED, output
  step, why, batch = divergence.kept(workdir, None, data.Examples)
  assert f'diverged: step {step} has {why}' in output
  assert 'Traceback' not in output
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  assert json.loads(lines[-1])['step'] == step
  assert None in [json.loads(lines[-1])[name] for name in divergence.FIRST]
  last, params = checkpoint.restore_params(workdir)
  assert last < step
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))
  assert len(batch.tokens_BT) == 8


def test_a_replay_tells_the_batch_from_the_state(
  diverged, monkeypatch, tmp_path, capsys
):
  workdir, *_ = diverged
  one = jax.devices()[:1]
  monkeypatch.setattr(replay.jax, 'devices', lambda: one)
  step, *_ = divergence.kept(workdir, None, data.Examples)
  assert replay.run(workdir) == list(range(8))  # By a state that is ruined.
  assert 'row 0 is not finite by itself' in capsys.readouterr().out
  # By the random state of step 0 nothing is wrong with the batch.
  for name in os.listdir(workdir / 'checkpoints'):
    if name.isdigit() and int(name):
      (workdir / 'checkpoints' / name).rename(tmp_path / name)
  assert replay.run(workdir, step) == []
  assert 'the batch is finite' in capsys.readouterr().out
