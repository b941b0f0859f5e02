import hashlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from crjax import checkpoint, files, model, optim
from crjax.checkpoint import __main__ as people_copy
from crjax.sharding import make_mesh, tree_shardings
from tests.conftest import ROOT

CFG = model.Config(V=16, L=2, D=16, F=24, N=4, K=2, H=8)


def state_and_abstract(cfg=CFG, mesh=(2, 2, 2)):
  rate = optim.schedule(1e-3, name='constant', warmup=0, steps=1)
  optimizer = optim.make(
    'adamw', rate, betas=(0.9, 0.95), weight_decay=0.1, max_norm=1.0
  )
  init = lambda: optim.init_state(
    optimizer, model.init(cfg, jax.random.key(0)), 7
  )
  shape = jax.eval_shape(init)
  shardings = tree_shardings(shape, make_mesh(mesh))
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shape,
    shardings,
  )
  return jax.jit(init, out_shardings=shardings)(), abstract


def equal(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_everything_comes_back_on_another_mesh(tmp_path):
  state, _ = state_and_abstract()
  position = {'next': 3, 'nested': {'epoch': 1}}
  with checkpoint.open_manager(tmp_path, keep=2) as manager:
    assert checkpoint.restore(manager, state) is None
    checkpoint.save(manager, 5, state, position)
  _, abstract = state_and_abstract(mesh=(1, 8, 1))
  with checkpoint.open_manager(tmp_path, keep=2) as manager:
    found, where = checkpoint.restore(manager, abstract)
  equal(found, state)
  assert where == position
  key = found['params']['embed_VD']
  assert key.sharding == abstract['params']['embed_VD'].sharding


@pytest.mark.parametrize('kept', ['low', 'ema'])
def test_split_masters_and_means_are_read_whole(tmp_path, kept):
  params = model.init(CFG, jax.random.key(0))
  state = optim.init_state(
    optax.sgd(1.0), params, 0, split=kept == 'low', ema=kept == 'ema'
  )
  if kept == 'ema':
    params = jax.tree.map(lambda x: 2 * x, params)
    state |= {'ema': params}
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 3, state, {})
  shardings = tree_shardings(params, make_mesh((2, 2, 2)))
  for where in (None, shardings):
    step, found = checkpoint.restore_params(tmp_path, shardings=where)
    assert step == 3
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-7)
    jax.tree.map(close, found, params)
  assert found['embed_VD'].sharding == shardings['embed_VD']


def test_only_the_newest_are_kept(tmp_path):
  state, _ = state_and_abstract()
  with checkpoint.open_manager(tmp_path, keep=2) as manager:
    for step in (1, 2, 3):
      checkpoint.save(manager, step, state, {})
    manager.wait_until_finished()
    assert sorted(manager.all_steps()) == [2, 3]


def test_params_alone_are_read_as_numpy(tmp_path):
  state, _ = state_and_abstract()
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 1, state, {})
    checkpoint.save(manager, 2, jax.tree.map(jnp.copy, state), {})
  step, params = checkpoint.restore_params(tmp_path)
  assert step == 2
  assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(params))
  equal(params, state['params'])
  assert checkpoint.restore_params(tmp_path, 1)[0] == 1


def test_what_is_not_there_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match='--workdir'):
    checkpoint.restore_params(tmp_path / 'nothing')
  state, _ = state_and_abstract()
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 4, state, {})
  with pytest.raises(FileNotFoundError, match=r'no checkpoint 9 .*\[4\]'):
    checkpoint.restore_params(tmp_path, 9)


@pytest.mark.parametrize('sealed', [True, False])
def test_a_state_of_another_shape_is_refused_with_the_way_out(tmp_path, sealed):
  state, _ = state_and_abstract()
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 1, state, {})
  if not sealed:
    (tmp_path / 'checkpoints' / '1' / 'checksums.json').unlink()
  wider = model.Config(V=16, L=2, D=32, F=24, N=4, K=2, H=8)
  _, abstract = state_and_abstract(wider)
  with (
    checkpoint.open_manager(tmp_path, keep=None) as manager,
    pytest.raises(ValueError, match=r'config\.workdir'),
  ):
    checkpoint.restore(manager, abstract)
  assert (tmp_path / 'checkpoints' / '1').is_dir()


def step_dir(workdir, step):
  return workdir / 'checkpoints' / str(step)


def largest(path):
  """The file that most of a checkpoint's arrays are in."""
  # Small arrays: all of them are in the part that processes share.
  return max((path / 'state/d').iterdir(), key=lambda p: p.stat().st_size)


def flip(path):
  """Changes one byte and no size."""
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


DAMAGES = {
  'cut short': lambda path: os.truncate(largest(path), 1),
  'another byte': lambda path: flip(largest(path)),
  'a file gone': lambda path: largest(path).unlink(),
  'all arrays gone': lambda path: shutil.rmtree(path / 'state'),
  'no position': lambda path: (path / 'data' / 'metadata').unlink(),
}


@pytest.fixture(scope='module')
def two_saves(tmp_path_factory):
  """A run directory with the steps 10 and 20, and what they hold."""
  path = tmp_path_factory.mktemp('saved')
  state, abstract = state_and_abstract()
  later = jax.tree.map(lambda x: x + 1, state)
  with checkpoint.open_manager(path, keep=None) as manager:
    checkpoint.save(manager, 10, state, {'next': 1})
    checkpoint.save(manager, 20, later, {'next': 2})
  return path, abstract, jax.device_get((state, later))


def copied(two_saves, tmp_path, sealed=True):
  shutil.copytree(two_saves[0], tmp_path / 'run')
  if not sealed:
    for path in (tmp_path / 'run').glob('checkpoints/*/checksums.json'):
      path.unlink()
  return tmp_path / 'run'


@pytest.mark.parametrize(
  ('name', 'sealed'),
  [(name, True) for name in DAMAGES]
  # Without a manifest bytes are believed where they decode.
  + [(name, False) for name in DAMAGES if name != 'another byte'],
)
def test_damage_falls_back_to_the_step_before_and_keeps_what_is_there(
  two_saves, tmp_path, capsys, name, sealed
):
  run = copied(two_saves, tmp_path, sealed)
  DAMAGES[name](step_dir(run, 20))
  left = sorted(p.name for p in step_dir(run, 20).rglob('*'))
  with checkpoint.open_manager(run, keep=2) as manager:
    state, position = checkpoint.restore(manager, two_saves[1])
    assert manager.latest_step() == 10
    equal(state, two_saves[2][0])
    assert position == {'next': 1}
    checkpoint.save(manager, 20, state, {'next': 3})
  said = capsys.readouterr().out
  assert 'step 20: ' in said
  assert 'from step 10 instead of 20: 10 steps are trained again' in said
  aside = run / 'damaged' / '20'
  assert sorted(p.name for p in aside.rglob('*')) == left
  assert not checkpoint.damage(step_dir(run, 20))
  with checkpoint.open_manager(run, keep=2) as manager:
    assert checkpoint.restore(manager, two_saves[1])[1] == {'next': 3}


def test_where_nothing_is_whole_nothing_is_moved(two_saves, tmp_path):
  run = copied(two_saves, tmp_path)
  for step in (10, 20):
    DAMAGES['another byte'](step_dir(run, step))
  with (
    checkpoint.open_manager(run, keep=2) as manager,
    pytest.raises(ValueError, match=r'(?s)step 10: .*SHA-256.*step 20: .*copy'),
  ):
    checkpoint.restore(manager, two_saves[1])
  assert step_dir(run, 10).is_dir() and step_dir(run, 20).is_dir()
  assert not (run / 'damaged').exists()


def test_a_reader_of_parameters_is_told_of_damage(two_saves, tmp_path):
  run = copied(two_saves, tmp_path)
  DAMAGES['cut short'](step_dir(run, 20))
  with pytest.raises(ValueError, match=r'(?s)20 .* damaged: state/.*--step'):
    checkpoint.restore_params(run)
  assert checkpoint.restore_params(run, 10)[0] == 10


def test_a_manifest_names_every_file(two_saves):
  path = step_dir(two_saves[0], 20)
  found = json.loads((path / 'checksums.json').read_text())['files']
  there = {
    p.relative_to(path).as_posix(): p for p in path.rglob('*') if p.is_file()
  }
  del there['checksums.json']
  assert found == {
    name: {
      'size': p.stat().st_size,
      'sha256': hashlib.sha256(p.read_bytes()).hexdigest(),
    }
    for name, p in there.items()
  }
  # Several processes read a share each, and together all.
  wrong = len(there)
  for name in there:
    found[name]['sha256'] = ''
  broken = {'time': 0.0, 'files': found}
  before = (path / 'checksums.json').read_text()
  (path / 'checksums.json').write_text(json.dumps(broken))
  shares = [checkpoint.damage(path, share=(i, 3)) for i in range(3)]
  assert sorted(itertools.chain(*shares)) == checkpoint.damage(path)
  assert sum(map(len, shares)) == wrong
  (path / 'checksums.json').write_text(before)


@pytest.mark.parametrize(('best', 'kept'), [('reward', 2), ('-reward', 3)])
def test_the_best_is_kept_beside_the_newest(tmp_path, best, kept):
  state = {'step': jnp.zeros(())}
  rewards = {1: 0.2, 2: 0.9, 3: 0.1, 4: math.nan, 5: 0.5, 6: 0.4}
  for steps in ((1, 2, 3), (4, 5, 6)):  # A run that resumes in between.
    with checkpoint.open_manager(tmp_path, keep=2, best=best) as manager:
      for step in steps:
        numbers = {'reward': rewards[step]}
        checkpoint.save(manager, step, state, {}, numbers)
  assert sorted(manager.all_steps()) == [kept, 5, 6]


def people(*args, **kwargs):
  """A run of python -m crjax.checkpoint: (status, output)."""
  process = subprocess.run(
    [sys.executable, '-m', 'crjax.checkpoint', *map(str, args)],
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    env=os.environ | {'COLUMNS': '200'},
    **kwargs,
  )
  return process.returncode, process.stdout


def a_run(two_saves, tmp_path):
  run = copied(two_saves, tmp_path)
  (run / 'source').mkdir()
  (run / 'source' / 'config.json').write_text('{"hidden_size": 16}')
  (run / 'config.json').write_text('{"task": "sft", "seed": 1}')
  return run


def test_people_list_and_verify_checkpoints(two_saves, tmp_path):
  run = a_run(two_saves, tmp_path)
  code, said = people('ls', run)
  assert code == 0, said
  lines = [line.split() for line in said.splitlines()]
  assert [line[0] for line in lines if line[-1:] == ['right']] == ['10', '20']
  code, said = people('verify', run)
  assert code == 0 and said.count('whole, by arrays and its hashes') == 2, said
  flip(largest(step_dir(run, 20)))
  code, said = people('verify', run)
  assert code == 1
  name = largest(step_dir(run, 20)).name
  assert f'step 20: state/d/{name} has another SHA-256' in said
  assert 'step 10: whole' in said
  assert 'key cannot be read' not in said.split('step 20')[0]
  os.truncate(largest(step_dir(run, 20)), 1)
  code, said = people('verify', run, '--step=20')
  assert code == 1 and 'state cannot be read' in said
  assert 'Traceback' not in said
  assert people('verify', run, '--step=10')[0] == 0
  assert 'DAMAGED' in people('ls', run)[1]
  code, said = people('ls', tmp_path / 'nothing')
  assert code == 1 and 'nothing' in said and 'Traceback' not in said


def test_a_copy_goes_on_where_it_was_stopped(two_saves, tmp_path, monkeypatch):
  run, to = a_run(two_saves, tmp_path), tmp_path / 'to'
  copies = []

  def cut(path, where):
    copies.append(where)
    if len(copies) == 5:
      raise KeyboardInterrupt
    whole(path, where)

  whole = files.copy
  monkeypatch.setattr(files, 'copy', cut)
  with pytest.raises(KeyboardInterrupt):
    people_copy.copy(run, to)
  assert not step_dir(to, 20).exists()
  with checkpoint.open_manager(to, keep=2) as manager:
    assert manager.latest_step() is None
  assert people_copy.copy(run, to) == 20
  assert len(set(copies)) == len(copies) - 1
  monkeypatch.undo()
  left, right = (
    {p.relative_to(r): p.read_bytes() for p in r.rglob('*') if p.is_file()}
    for r in (step_dir(run, 20), step_dir(to, 20))
  )
  assert left == right
  assert (to / 'source' / 'config.json').exists()
  with checkpoint.open_manager(to, keep=2) as manager:
    state, _ = checkpoint.restore(manager, two_saves[1])
  equal(state, two_saves[2][1])
  assert people_copy.copy(run, to, 10) == 10
  (run / 'config.json').write_text('{"task": "grpo", "seed": 1}')
  with pytest.raises(ValueError, match=r'config\.json .*another run'):
    people_copy.copy(run, to)
  flip(largest(step_dir(run, 20)))
  with pytest.raises(ValueError, match=r'20 is damaged: .*SHA-256'):
    people_copy.copy(run, tmp_path / 'other')


def test_an_array_that_cannot_be_read_is_named(tmp_path):
  rng = np.random.default_rng(0)
  state = {'one': rng.normal(size=(300, 300)), 'two': rng.normal(size=300)}
  state = jax.tree.map(jnp.asarray, state)
  with checkpoint.open_manager(tmp_path, keep=None) as manager:
    checkpoint.save(manager, 1, state, {})
  path = step_dir(tmp_path, 1)
  assert checkpoint.unreadable(path) == []
  parts = (path / 'state' / 'ocdbt.process_0' / 'd').iterdir()
  os.truncate(max(parts, key=lambda p: p.stat().st_size), 100)
  (found,) = checkpoint.unreadable(path)
  assert found.startswith('one cannot be read: ')


FULL = """
import resource, sys
import jax.numpy as jnp
import numpy as np
from crjax import checkpoint
rng = np.random.default_rng(0)
state = {'x': jnp.asarray(rng.normal(size=100_000))}
try:
  with checkpoint.open_manager(sys.argv[1], keep=2) as manager:
    checkpoint.save(manager, 1, state, {'next': 1})
    manager.wait_until_finished()
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    checkpoint.save(manager, 2, state, {'next': 2})
    manager.wait_until_finished()
except checkpoint.Unwritten as error:
  print(error)
"""


def test_a_save_without_room_is_named_and_harms_nothing(tmp_path):
  process = subprocess.run(
    [sys.executable, '-c', FULL, str(tmp_path)],
    cwd=ROOT,
    text=True,
    capture_output=True,
    check=True,
  )
  said = process.stdout.splitlines()[-1]
  assert said.startswith(f'{tmp_path}/checkpoints: ')
  assert 'is full, ' in said and 'Make room' in said
  abstract = {'x': jax.ShapeDtypeStruct((100_000,), np.float32)}
  with checkpoint.open_manager(tmp_path, keep=2) as manager:
    state, position = checkpoint.restore(manager, abstract)
    assert position == {'next': 1}
    checkpoint.save(manager, 2, state, {'next': 2})
  left = [p.name for p in (tmp_path / 'checkpoints').iterdir()]
  assert sorted(left) == ['1', '2']  # What was half written is gone.
