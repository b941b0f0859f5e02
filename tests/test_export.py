import json
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from crjax import (
  checkpoint,
  engine,
  export,
  generate,
  hf,
  model,
  sampling,
  tokenizer,
)
from crjax.sharding import make_mesh
from tests.conftest import ROOT, load

CFG = model.Config(V=512, L=2, D=32, F=48, N=4, K=2, H=8, tied=True)


def weights(step):
  return jax.jit(model.init, static_argnums=0)(CFG, jax.random.key(step))


@pytest.fixture(scope='module')
def run_dir(tmp_path_factory, smoke_data):
  """A run directory with checkpoints 0 and 3, as train.py leaves it."""
  path = tmp_path_factory.mktemp('run')
  hf.remember_new(CFG, path / 'source', smoke_data / 'tokenizer')
  checkpoint.write_json(path / 'config.json', {'lora': {'rank': 0}})
  with checkpoint.open_manager(path, keep=None) as manager:
    for step in (0, 3):
      params = weights(step)
      checkpoint.save(manager, step, {'params': params}, {})
  return path


def write(run, out, **kwargs):
  return export.export(run, out, mesh=make_mesh((1, -1, 1)), **kwargs)


def command(*flags):
  return subprocess.run(
    [sys.executable, '-m', 'crjax.export', *flags],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )


def test_an_export_is_what_transformers_continues_greedily(run_dir, tmp_path):
  out = tmp_path / 'hf'
  done = command(f'--workdir={run_dir}', f'--out={out}')
  assert done.returncode == 0, done.stderr
  assert 'step 3' in done.stdout
  net = transformers.AutoModelForCausalLM.from_pretrained(out)
  theirs = transformers.AutoTokenizer.from_pretrained(out)
  ours, (cfg, params) = tokenizer.load(out), load(out)
  texts = [f'def f(x):\n    return x + {i}\n' * (1 + i % 3) for i in range(20)]
  ids = [theirs(text)['input_ids'] for text in texts]
  assert ids == [ours(text)['input_ids'] for text in texts]
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  made = engine.make(
    cfg, mesh, slots=8, length=512, stop_ids=tokenizer.stop_ids(ours)
  )
  knobs, found = engine.Knobs(temperature=0.0), {}
  asked = [engine.Request(x, i, 0, knobs, most=12) for i, x in enumerate(ids)]
  with jax.set_mesh(mesh):
    copy = sampling.make_decode_copy(cfg, mesh, jnp.float32)(params)
    pieces = engine.stream(made, copy, asked, key=jax.random.key(0))
    for done in engine.completions(pieces):
      found[done.request.question] = done.tokens
  for i in range(20):
    with torch.no_grad():
      want = net.generate(
        torch.tensor([ids[i]]), do_sample=False, max_new_tokens=12
      )[0, len(ids[i]) :]
    assert found[i] == want.tolist()


def test_any_step_and_precision(run_dir, tmp_path):
  for step, dtype in ((0, 'float32'), (3, 'bfloat16')):
    out = tmp_path / f'{step}'
    assert write(run_dir, out, step=step, dtype=dtype) == step
    want = weights(step)
    half = hf.DTYPES[dtype]
    jax.tree.map(
      lambda x, y, half=half: np.testing.assert_array_equal(
        np.asarray(x).astype(half).astype(np.float32), y
      ),
      want,
      load(out)[1],
    )


def test_a_difference_fails_and_keeps_what_was_there(
  run_dir, tmp_path, monkeypatch
):
  out = tmp_path / 'hf'
  write(run_dir, out, step=0)
  save = hf.save

  def damage(path, cfg, params, **kwargs):
    params = params | {'embed_VD': params['embed_VD'] + 1e-3}
    save(path, cfg, params, **kwargs)

  monkeypatch.setattr(hf, 'save', damage)
  with pytest.raises(ValueError, match='embed_VD reads back differently'):
    write(run_dir, out)
  assert [p.name for p in tmp_path.iterdir()] == ['hf']
  want = weights(0)
  np.testing.assert_array_equal(load(out)[1]['embed_VD'], want['embed_VD'])


def test_what_cannot_be_read_back_leaves_nothing(
  run_dir, tmp_path, monkeypatch
):
  compare = export.compare

  def tear(path, *args, **kwargs):
    pathlib.Path(path, 'model.safetensors').write_bytes(b'torn')
    return compare(path, *args, **kwargs)

  monkeypatch.setattr(export, 'compare', tear)
  with pytest.raises(ValueError, match='is damaged'):
    write(run_dir, tmp_path / 'hf')
  assert not list(tmp_path.iterdir())


def test_what_is_not_an_export_is_not_replaced(run_dir, tmp_path):
  def refused(out):
    with pytest.raises(ValueError, match='is not an export'):
      write(run_dir, out)

  file = tmp_path / 'mine.txt'
  file.write_text('keep')
  before = sorted(run_dir.rglob('*'))
  refused(tmp_path)
  refused(file)
  refused(run_dir)  # It has a config.json too.
  assert file.read_text() == 'keep'
  assert sorted(run_dir.rglob('*')) == before
  refused(run_dir / 'checkpoints')
  assert export.not_exported(tmp_path / 'new') == []


def test_what_is_no_run_is_refused(run_dir, tmp_path):
  shutil.copytree(run_dir, tmp_path / 'run')
  checkpoint.write_json(tmp_path / 'run/config.json', {'config': {}})
  with pytest.raises(ValueError, match='lacks the field "lora"'):
    write(tmp_path / 'run', tmp_path / 'hf')


def test_missing_runs_and_steps_are_named(run_dir, tmp_path):
  done = command(f'--workdir={tmp_path}', f'--out={tmp_path / "o"}')
  assert done.returncode != 0
  assert 'does not exist' in done.stderr and 'Traceback' not in done.stderr
  done = command(f'--workdir={run_dir}', f'--out={tmp_path / "o"}', '--step=2')
  assert 'found [0, 3]' in done.stderr


def test_generation_config_names_the_end(run_dir, tmp_path):
  write(run_dir, tmp_path / 'hf')
  tok = tokenizer.load(tmp_path / 'hf')
  found = json.loads((tmp_path / 'hf/generation_config.json').read_text())
  assert found['eos_token_id'] == list(tokenizer.stop_ids(tok))
  assert generate.end_ids(tmp_path / 'hf') == tokenizer.stop_ids(tok)
