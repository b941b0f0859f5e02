"""Adapters: what is trained, what is saved, and that peft reads it."""

import dataclasses
import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import peft
import pytest
import torch
import transformers

from crjax import checkpoint, data, hf, lora, model, optim, sampling, sft
from crjax.sharding import gather, make_mesh, put, tree_shardings
from tests.conftest import ROOT, load
from tests.test_train import command, finish, kill_after, steps_logged

RNG = np.random.default_rng(0)
BASE = model.Config(
  V=512, L=2, D=32, F=48, N=4, K=2, H=8, qkv_bias=False, qk_norm=True, tied=True
)
ALL = dataclasses.replace(BASE, lora=lora.Lora(4, 8.0))
SOME = dataclasses.replace(BASE, lora=lora.Lora(4, 8.0, ('q', 'o', 'down')))


def weights(cfg):
  """Random adapters too: a fresh second matrix is zero."""
  params = jax.jit(model.init, static_argnums=0)(cfg, jax.random.key(0))
  frozen, trained = lora.split(jax.device_get(params))
  noise = lambda x: RNG.normal(size=x.shape, scale=0.3).astype(np.float32)
  return frozen, jax.tree.map(noise, trained)


def tokens(B=2, T=11):
  return RNG.integers(0, BASE.V, (B, T)).astype(np.int32)


@functools.partial(jax.jit, static_argnums=0)
def logits(cfg, params, tokens_BT):
  valid_BT = jnp.ones_like(tokens_BT, bool)
  x_BTD = model.forward(cfg, params, tokens_BT, valid_BT, dtype=jnp.float32)
  return model.logits(params, x_BTD)


def close(a, b, tolerance=1e-4):
  np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def test_a_fresh_adapter_changes_nothing_and_split_joins_back():
  params = jax.jit(model.init, static_argnums=0)(ALL, jax.random.key(1))
  frozen, trained = lora.split(params)
  assert jax.tree.structure(lora.join(frozen, trained)) == (
    jax.tree.structure(params)
  )
  names = hf.flatten(trained)
  assert len(names) == 2 * len(lora.TARGETS)
  assert all(lora.MARK in name for name in names)
  tokens_BT = tokens()
  close(logits(ALL, params, tokens_BT), logits(BASE, frozen, tokens_BT), 1e-5)
  a = names['layers/attn/o_lora_a_NHA']
  assert np.abs(a).max() <= (BASE.N * BASE.H) ** -0.5
  assert not np.any(names['layers/mlp/up_lora_b_AF'])


@pytest.mark.parametrize('cfg', [ALL, SOME], ids=['all', 'some'])
def test_merged_weights_and_the_decode_copy_compute_the_same(cfg):
  frozen, trained = weights(cfg)
  params, tokens_BT = lora.join(frozen, trained), tokens()
  want = logits(cfg, params, tokens_BT)
  assert np.abs(want - logits(BASE, frozen, tokens_BT)).max() > 0.1
  close(logits(BASE, lora.merge(params, cfg.lora), tokens_BT), want)
  mesh = make_mesh((1, 4, 2))
  with jax.set_mesh(mesh):
    copy = sampling.make_decode_copy(cfg, mesh, jnp.float32)(trained, frozen)
    prefill = jax.jit(model.prefill, static_argnums=0)
    x_BTD, _ = prefill(cfg.base, copy, tokens_BT)
    close(gather(jax.jit(model.logits)(copy, x_BTD)), want)


def test_only_adapters_are_trained_and_have_moments():
  mesh = make_mesh((2, 2, 2))
  rate = optim.schedule(1e-2, name='constant', warmup=0, steps=1)
  optimizer = optax.adam(rate)
  frozen, trained = weights(ALL)
  state = optim.init_state(optimizer, trained, 0)
  shardings = tree_shardings(state, mesh)
  mask_BT = np.ones((8, 11), bool)
  batch = data.Examples(tokens(8), mask_BT, mask_BT.astype(np.int32))
  with jax.set_mesh(mesh):
    state = jax.tree.map(jax.device_put, state, shardings)
    beside = jax.tree.map(jax.device_put, frozen, tree_shardings(frozen, mesh))
    update = sft.make_update(
      ALL,
      optimizer,
      rate,
      frozen=beside,
      micro=2,
      dtype=jnp.float32,
      remat='full',
    )
    losses = []
    for _ in range(20):
      state, metrics = update(state, put(mesh, batch))
      losses.append(float(gather(metrics)['loss']))
  assert losses[-1] < 0.8 * losses[0]
  moments = jax.tree.leaves(state['opt'])
  assert sum(x.size for x in moments) < 2.1 * model.count(trained)
  changed = jax.tree.map(
    lambda x, y: float(np.abs(x - y).max()), trained, gather(state['params'])
  )
  assert min(jax.tree.leaves(changed)) > 0


@pytest.mark.parametrize(
  ('bad', 'message'),
  [
    ({'rank': 0}, 'rank = 0'),
    ({'targets': ('q', 'head')}, r"targets = \('q', 'head'\)"),
    ({'targets': ()}, 'at least one'),
  ],
)
def test_impossible_adapters_are_named(bad, message):
  with pytest.raises(ValueError, match=message):
    lora.Lora(**{'rank': 4, 'alpha': 8.0} | bad)


QWEN2 = dataclasses.replace(
  SOME, qkv_bias=True, qk_norm=False, tied=False, N=6, K=3
)


@pytest.mark.parametrize(
  'cfg', [ALL, SOME, QWEN2], ids=['all', 'some', 'qwen2 untied']
)
def test_peft_computes_what_we_compute(cfg, tmp_path, smoke_data):
  frozen, trained = weights(cfg)
  source = smoke_data / 'tokenizer'
  hf.save(tmp_path / 'base', cfg.base, frozen, source_dir=source)
  params = lora.join(frozen, trained)
  hf.save_adapter(
    tmp_path / 'adapter',
    cfg,
    params,
    base=str(tmp_path / 'base'),
    source_dir=source,
  )
  net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'base')
  net = peft.PeftModel.from_pretrained(net, tmp_path / 'adapter').eval()
  tokens_BT = tokens()
  with torch.no_grad():
    want = net(torch.tensor(tokens_BT).long()).logits.numpy()
  close(logits(cfg, params, tokens_BT), want)
  read = hf.read_adapter(tmp_path / 'adapter', cfg)
  for name, x in hf.flatten(trained).items():
    np.testing.assert_array_equal(read[name], x)
  names = {p.name for p in (tmp_path / 'adapter').iterdir()}
  assert 'config.json' not in names and 'tokenizer.json' in names
  with pytest.raises(ValueError, match='holds adapters alone; export'):
    hf.inspect(tmp_path / 'adapter')


def test_a_damaged_adapter_is_named(tmp_path, smoke_data):
  frozen, trained = weights(SOME)
  save = lambda cfg: hf.save_adapter(
    tmp_path / 'a',
    cfg,
    lora.join(frozen, trained),
    base='x',
    source_dir=smoke_data / 'tokenizer',
  )
  save(SOME)
  with pytest.raises(ValueError, match=r'k_proj\.lora_A\.weight should be'):
    hf.read_adapter(tmp_path / 'a', ALL)
  wider = dataclasses.replace(SOME, lora=lora.Lora(8, 8.0, SOME.lora.targets))
  with pytest.raises(ValueError, match=r'should be \(8, 32\), found \(4, 32\)'):
    hf.read_adapter(tmp_path / 'a', wider)


@pytest.fixture(scope='module')
def policy(tmp_path_factory, smoke_data):
  path = tmp_path_factory.mktemp('policy') / 'hf'
  hf.save(path, BASE, weights(BASE)[0], source_dir=smoke_data / 'tokenizer')
  return path


def lora_args(task, smoke_data, policy, workdir):
  values = {
    'model': policy,
    'workdir': workdir,
    'lora.rank': 4,
    'lora.alpha': 8.0,
    'optimizer': 'adamw',
    'lr': 1e-2,
    'save_every': 3,
  }
  if task == 'sft':
    more = {
      'data': smoke_data / 'sft_train.parquet',
      'tokenizer': '',
      'batch': 8,
    }
  else:
    more = {
      'data': smoke_data / 'rl_train.parquet',
      'steps': 8,
      'questions': 4,
      'groups': 4,
      'rollouts': 2,
      'completion_length': 16,
      'samples_every': 4,
      'kl_coef': 0.01,  # The reference is the base under untrained adapters.
    }
  return command(f'{task}_smoke', **values | more)


def export(run, out, *flags):
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'crjax.export'),
      *(f'--workdir={run}', f'--out={out}', *flags),
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('task', ['sft', 'grpo'])
def test_a_run_trains_resumes_and_exports(task, smoke_data, policy, tmp_path):
  run = tmp_path / 'run'
  args = lora_args(task, smoke_data, policy, run)
  code, output = finish(args)
  assert code == 0, output
  trained = model.count(lora.split(hf.abstract(ALL))[1])
  assert f'{trained:,} trained parameters' in output
  adapters = checkpoint.restore_params(run)[1]
  assert all(lora.MARK in name for name in hf.flatten(adapters))
  if task == 'sft':
    lines = steps_logged(run)
    assert lines[-1]['loss'] < lines[0]['loss']
    cut = lora_args(task, smoke_data, policy, tmp_path / 'cut')
    kill_after(cut, tmp_path / 'cut', 5)
    code, output = finish(cut)
    assert code == 0 and 'resumed at step' in output, output
    again = checkpoint.restore_params(tmp_path / 'cut')[1]
    jax.tree.map(np.testing.assert_array_equal, adapters, again)
  export(run, tmp_path / 'merged')
  export(run, tmp_path / 'adapter', '--adapter')
  described = json.loads((tmp_path / 'adapter/adapter_config.json').read_text())
  assert described['base_model_name_or_path'] == str(policy)
  tokens_BT, base = tokens(), load(policy)[1]
  want = logits(ALL, lora.join(base, adapters), tokens_BT)
  assert np.abs(want - logits(BASE, base, tokens_BT)).max() > 1e-3
  net = transformers.AutoModelForCausalLM.from_pretrained(policy)
  net = peft.PeftModel.from_pretrained(net, tmp_path / 'adapter').eval()
  merged = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path / 'merged'
  )
  with torch.no_grad():
    for theirs in (net, merged):
      got = theirs(torch.tensor(tokens_BT).long()).logits.numpy()
      close(got, want)


def test_adapters_need_a_base(smoke_data, policy, tmp_path):
  args = lora_args('sft', smoke_data, policy, tmp_path / 'run')
  code, output = finish(
    [
      *args,
      '--config.model=',
      f'--config.tokenizer={smoke_data / "tokenizer"}',
    ]
  )
  assert code != 0
  assert 'config.lora needs a config.model to adapt' in output
