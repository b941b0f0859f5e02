import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs.grpo_presets import PRESETS
from crjax import hf, inputs, model, optim
from crjax.advantages import ADVANTAGES
from crjax.branches import AGGREGATIONS
from crjax.objectives import CORRECTIONS, KLS, OBJECTIVES
from crjax.sharding import DECODE_WEIGHTS, make_mesh, tree_shardings

ROOT = pathlib.Path(__file__).parents[1]
SIZES = ['1_5b', '7b', '14b', 'qwen3_8b']
TRAINING = [
  f'{task}_{size}' for task in ('sft', 'grpo') for size in ('smoke', *SIZES)
]


def load(name, *args):
  path = ROOT / 'configs' / f'{name}.py'
  spec = importlib.util.spec_from_file_location(name, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*args)


RUNS = [
  path
  for path in sorted((ROOT / 'configs').glob('*.py'))
  if path.stem not in ('grpo_presets', 'shapes')
]


@pytest.mark.parametrize('path', RUNS)
def test_every_config_parses_and_says_how_to_run_it(path):
  assert load(path.stem).to_dict()
  docstring = path.read_text().split('"""')[1]
  assert f'--config=configs/{path.name}' in docstring


@pytest.mark.parametrize('name', [n for n in TRAINING if 'sft' in n])
def test_rows_split_into_slices(name):
  c = load(name)
  assert c.batch % c.micro == 0


@pytest.mark.parametrize('name', [n for n in TRAINING if 'grpo' in n])
@pytest.mark.parametrize('preset', PRESETS)
def test_every_preset_fits_every_recipe(name, preset):
  c = load(name, preset)
  assert c.groups % c.minibatches == 0
  assert c.groups <= c.questions
  assert c.slots <= c.questions * c.rollouts
  assert c.row >= c.prompt_length + c.completion_length
  assert c.advantage in ADVANTAGES
  assert c.aggregation in AGGREGATIONS
  assert c.objective in OBJECTIVES
  assert c.correction in CORRECTIONS
  assert c.kl in KLS
  assert c.kl_in in ('loss', 'reward')
  # Every slice and all slots fill 8 devices.
  if not name.endswith('smoke'):
    assert c.rows % 8 == 0
    assert c.slots % 8 == 0


@pytest.mark.parametrize(
  'size, model_dir',
  [
    ('1_5b', 'Qwen2.5-1.5B-Instruct'),
    ('7b', 'Qwen2.5-7B-Instruct'),
    ('14b', 'Qwen2.5-14B-Instruct'),
    ('qwen3_8b', 'Qwen3-8B'),
  ],
)
def test_a_shape_is_that_of_the_checkpoint_it_names(
  size, model_dir, assets, capsys
):
  found = hf.read_config(assets / 'configs' / model_dir / 'config.json')
  for task in ('sft', 'grpo'):
    c = load(f'{task}_{size}')
    inputs.compare_shape(c, found)
    assert c.workdir.endswith(f'{task}_{size}')
    assert not capsys.readouterr().out
    c.shape.L += 1
    inputs.compare_shape(c, found)
    assert 'config.shape' in capsys.readouterr().out


def test_an_unknown_preset_is_named():
  with pytest.raises(ValueError, match="'ppo' is not one of"):
    load('grpo_smoke', 'ppo')


@pytest.mark.parametrize('mesh', [(1, 8, 1), (1, 4, 2), (2, 1, 4)])
def test_7b_state_shards_on_8_devices(assets, mesh):
  directory = assets / 'configs' / 'Qwen2.5-7B-Instruct'
  cfg = hf.read_config(directory / 'config.json')
  c = load('grpo_7b')
  rate = optim.schedule(c.lr, name=c.schedule, warmup=10, steps=c.steps)
  optimizer = optim.make(
    c.optimizer,
    rate,
    betas=c.betas,
    weight_decay=c.weight_decay,
    max_norm=c.max_norm,
  )
  state = jax.eval_shape(
    lambda key: optim.init_state(optimizer, model.init(cfg, key), 0),
    jax.random.key(0),
  )
  assert model.count(state['params']) == 7_615_616_512
  mesh = make_mesh(mesh)
  shardings = tree_shardings(state, mesh)
  local = sum(
    jnp.dtype(x.dtype).itemsize * jnp.prod(jnp.array(s.shard_shape(x.shape)))
    for x, s in zip(
      jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True
    )
  )
  # 12 bytes a parameter, split over the weight axes of the mesh.
  ways = mesh.shape['fsdp'] * mesh.shape['tensor']
  assert local == pytest.approx(12 * 7_615_616_512 / ways, rel=1e-3)
  decode = jax.eval_shape(
    lambda p: model.unstack(p, jnp.bfloat16), state['params']
  )
  tree_shardings(decode, mesh, DECODE_WEIGHTS)
  assert len(decode['layers']) == cfg.L
