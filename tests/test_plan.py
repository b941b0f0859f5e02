import dataclasses
import functools
import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import datasets
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from crjax import (
  aot,
  hf,
  hlo,
  losses,
  model,
  optim,
  plan,
  programs,
  roofline,
  topology,
  train,
  xent,
)
from crjax.sharding import make_mesh
from tests.test_configs import load

ROOT = pathlib.Path(__file__).parents[1]
CFG = model.Config(V=512, L=3, D=64, F=128, N=4, K=2, H=16)
SHAPE = {'V': 512, 'L': 3, 'D': 64, 'F': 128, 'N': 4, 'K': 2, 'H': 16}


def tiny(name, **changes) -> ConfigDict:
  """The smoke config of a task, on a model that compiles in seconds."""
  c = load(name)
  c.shape = SHAPE
  c.model = ''
  c.mesh = (1, 4, 2)
  c.optimizer = 'adamw'
  c.remat = 'full'
  for key, value in changes.items():
    setattr(c, key, value)
  return c


@functools.cache
def planned(task):
  """(config, report) of a tiny run on eight CPU devices."""
  c = tiny(f'{task}_smoke')
  if task == 'grpo':
    c.questions, c.groups, c.rollouts, c.slots = 8, 8, 2, 8
  target, cfg, held, compiled = plan.plan(c, 'cpu8')
  return c, plan.judge(c, target, cfg, held, compiled)


def test_flops_of_a_trained_token_are_three_times_those_of_a_forward():
  # By hand, for the shape of Qwen2.5-7B at 4,096 tokens: 44.9 GFLOP a token.
  cfg = model.Config(V=152064, L=28, D=3584, F=18944, N=28, K=4, H=128)
  assert roofline.matmul_params(cfg) == 28 * 233_046_016 + 544_997_376
  assert roofline.train_flops(cfg, 4096) == pytest.approx(44.9e9, rel=2e-3)
  assert roofline.cache_bytes(cfg, 2) == 57_344


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_counted_flops_are_those_of_the_arithmetic(remat):
  B, T = 2, 32
  tokens_BT = jax.ShapeDtypeStruct((B, T), jnp.int32)

  def loss(params, tokens_BT):
    valid_BT = jnp.ones_like(tokens_BT, bool)
    x_BTD = model.forward(
      CFG, params, tokens_BT, valid_BT, dtype=jnp.float32, remat=remat
    )
    return model.logits(params, x_BTD).sum()

  params = hf.abstract(CFG)
  forward = roofline.count_flops(jax.jit(loss).trace(params, tokens_BT).jaxpr)
  # Attention without a kernel looks at all T keys.
  assert forward == B * T * roofline.forward_flops(CFG, T)
  both = jax.jit(jax.grad(loss)).trace(params, tokens_BT).jaxpr
  head = 2 * B * T * CFG.V * CFG.D
  # The last product of a layer is not needed again: only its sum is.
  last = CFG.L * 2 * B * T * CFG.F * CFG.D
  again = forward - head - last if remat == 'full' else 0
  assert roofline.count_flops(both) == pytest.approx(3 * forward + again)


def test_a_loop_counts_as_often_as_it_runs():
  def turns(x, w_LDD):
    return jax.lax.scan(lambda x, w: (x @ w, None), x, w_LDD)[0]

  x, w = jnp.ones((8, 64)), jnp.ones((5, 64, 64))
  program = aot.compile('loop', turns, x, w)
  assert program.flops == 5 * 2 * 8 * 64 * 64
  # A scan cuts each weight out of the stack, which reads and writes it, and
  # reads it again. XLA's own analysis would count one of the five.
  assert 3 * w.nbytes < program.traffic < 4 * w.nbytes


def test_a_fused_loss_takes_three_products_and_one_without_a_gradient():
  """Of a head and all tokens: also those of a loop that ends by the mask."""
  B, T, D, V = 4, 16, 32, 64
  x_BTD, w_VD = jnp.ones((B, T, D)), jnp.ones((V, D))
  targets_BT = jnp.zeros((B, T), jnp.int32)

  def fused(x_BTD, w_VD):
    loss = lambda logp, entropy, mask: (losses.masked_sum(logp, mask), {})
    mask_BT = targets_BT == 0
    return xent.fused_loss(loss, x_BTD, w_VD, targets_BT, mask_BT, chunk=8)[0]

  def by_rows(x_BTD, w_VD):
    return xent.token_logp(x_BTD, w_VD, targets_BT, chunk=16)[0].sum()

  one = 2 * B * T * D * V
  for f, forward, both in ((fused, 1, 3), (by_rows, 1, 4)):
    program = aot.compile('loss', f, x_BTD, w_VD)
    assert program.flops == forward * one
    grad = aot.compile('loss', jax.grad(f, (0, 1)), x_BTD, w_VD)
    assert grad.flops == both * one
  # What XLA compiled reads the head in each of the 8 turns.
  turns = aot.compile('loss', jax.grad(fused, (0, 1)), x_BTD, w_VD)
  assert turns.traffic > 8 * 2 * w_VD.nbytes


def test_memory_and_collectives_are_those_of_the_compiled_program():
  mesh = make_mesh((1, 8, 1), jax.devices()[:8])
  cfg = dataclasses.replace(CFG, tied=True)
  params = aot.placed(hf.abstract(cfg), mesh)
  tokens = aot.rows(jax.ShapeDtypeStruct((16, 32), jnp.int32), mesh)

  def f(params, tokens_BT):
    valid_BT = jnp.ones_like(tokens_BT, bool)
    return model.forward(cfg, params, tokens_BT, valid_BT, dtype=jnp.float32)

  with jax.set_mesh(mesh):
    program = aot.compile('forward', f, params, tokens)
    compiled = jax.jit(f).lower(params, tokens).compile()
  m = compiled.memory_analysis()
  assert program.memory['scratch'] == m.temp_size_in_bytes
  assert program.memory['arguments'] == m.argument_size_in_bytes
  local = aot.held(params) + aot.held(tokens)
  assert program.memory['arguments'] == pytest.approx(local, rel=0.01)
  # FSDP gathers every matrix of every layer once in a forward pass.
  gathered = sum(
    c.bytes * c.count for c in program.collectives if c.kind == 'all-gather'
  )
  matrices = sum(
    4 * x.size
    for path, x in jax.tree.leaves_with_path(params['layers'])
    if optim.decays(path[-1].key)
  )
  embedding = 4 * CFG.V * CFG.D
  assert matrices <= gathered <= 1.1 * (matrices + embedding)
  assert {c.group for c in program.collectives} == {8}


def test_a_ring_moves_what_its_arithmetic_says():
  ring = lambda kind: hlo.wire(hlo.Collective(kind, 800, 8, 1))
  assert ring('all-gather') == ring('reduce-scatter') == 700
  assert ring('all-reduce') == 1400


@pytest.mark.parametrize('task', ['sft', 'grpo'])
def test_a_plan_holds_the_state_and_compiles_what_train_runs(task):
  c, report = planned(task)
  assert report['fits'] and report['devices'] == 8
  mesh = make_mesh(c.mesh, jax.devices()[:8])
  optimizer, _ = train.make_optimizer(c, updates=10)
  _, state = train.abstract_state(c, programs.shape(c), optimizer, mesh)
  held = report['held']
  assert held['parameters'] + held['optimizer'] == aot.held(state)
  # Two moments of every parameter, and scalars.
  assert held['optimizer'] == pytest.approx(2 * held['parameters'], abs=256)
  update = report['programs']['update']
  # The state is donated: it comes back in its own place.
  assert update['memory']['results'] < 0.01 * update['memory']['arguments']
  assert report['needs']['update'] >= aot.held(state)
  assert 0 < report['mfu'] <= 1
  best, usual = report['step_seconds']
  assert 0 < best < usual


def test_a_grpo_plan_names_all_programs_and_what_lies_beside_them():
  _, report = planned('grpo')
  found = report['programs']
  assert set(found) == {'decode copy', 'prefill', 'decode', 'update'}
  held = sum(report['held'].values())
  decode = found['decode']
  assert report['needs']['decode'] == decode['memory']['peak'] + held
  assert report['rollout_seconds'][0] < report['step_seconds'][0]


def test_what_does_not_fit_gets_suggestions_that_name_options():
  c, report = planned('grpo')
  small = dict(report, capacity=min(report['held'].values()))
  text = ' '.join(plan.suggest(c, small))
  for option in ('--config.lora.rank', '--config.mesh', '--config.slots=4'):
    assert option in text
  assert plan.suggest(c, report) == []


def test_what_a_compiler_refuses_is_part_of_the_plan(capsys):
  c = tiny('sft_smoke', remat='none')
  target = topology.Topology('v5e:2x4', topology.CHIPS['v5e'], range(8))
  held = {'parameters': 8 << 30, 'optimizer': 4 << 30, 'frozen': 0}
  refused = {'update': aot.TooLarge('update', 20 << 30)}
  report = plan.judge(c, target, CFG, held, refused)
  assert not report['fits'] and report['refused'] == ['update']
  assert report['needs'] == {'update': 20 << 30}
  assert plan.hours(c, report, 1000) is None
  plan.show(c, json.loads(json.dumps(report)))
  shown = capsys.readouterr().out
  for part in (
    'refused by the compiler, 20.00',
    'DOES NOT FIT',
    'config.moments',
    '--config.remat=full',
    '--config.micro=2',
  ):
    assert part in shown


def test_hours_are_those_of_the_packed_rows(smoke_data):
  c = tiny('sft_smoke', packed=True, length=400)
  c.tokenizer = str(smoke_data / 'tokenizer')
  c.data = str(smoke_data / 'sft_train.parquet')
  examples = len(datasets.Dataset.from_parquet(c.data))
  packed = plan.count_rows(c)
  assert 0 < packed < 0.7 * examples
  c.packed = False
  assert plan.count_rows(c) == examples
  with c.ignore_type():
    c.data = ((c.data, 1.0), (c.data, 2.0))
  assert plan.count_rows(c) == 2 * examples
  c.tokenizer = 'owner/name'
  assert plan.count_rows(c) == 0
  report = {'step_seconds': [1.0, 3.0]}
  c.epochs, c.batch = 2, 4
  assert plan.hours(c, report, packed) == [
    packed // 2 / 3600,
    packed // 2 * 3 / 3600,
  ]


def test_a_program_is_compiled_once_for_a_target(tmp_path):
  f = lambda x: jnp.tanh(x @ x)
  x = jnp.ones((64, 64))
  one = aot.compile('f', f, x, kept=tmp_path / 'a')
  assert one._replace(seconds=0) == aot.compile('f', f, x)._replace(seconds=0)
  assert one == aot.compile('f', f, x, kept=tmp_path / 'a')  # Same seconds.
  assert aot.compile('f', f, x, kept=tmp_path / 'b').seconds != one.seconds
  aot.compile('f', lambda x: x @ x, x, kept=tmp_path / 'a')
  assert len(list((tmp_path / 'a').iterdir())) == 2


@pytest.mark.parametrize(
  'name', ['v5e', 'v9:2x2', 'h200x', 'v5e:4', 'cpu-8', 'tpu', '']
)
def test_an_unknown_topology_gets_a_list_of_what_there_is(name):
  with pytest.raises(ValueError, match='v5p:2x2x1'):
    topology.parse(name)


def test_names_of_topologies():
  assert topology.parse('v5p:2x2x1') == ('v5p', (2, 2, 1))
  assert topology.parse('v5e:4x4') == ('v5e', (4, 4))
  assert topology.parse('h200x8') == ('h200', (8,))
  assert topology.parse('cpu') == ('cpu', (1,))


@pytest.mark.parametrize('name', ['v5e:4x4', 'h200'])
def test_a_missing_compiler_is_named_with_its_command(name, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: None)
  with pytest.raises(ImportError, match='pip install --no-deps --target'):
    topology.open(name)


def test_the_command_prints_a_table_and_json(tmp_path):
  config = tmp_path / 'c.py'
  config.write_text(
    'from configs.sft_smoke import get_config as base\n'
    'def get_config():\n'
    f'  c = base(); c.shape = {SHAPE}; c.mesh = (1, 4, 2)\n'
    "  c.model, c.epochs = '', 1.6; return c\n"
  )
  command = [
    sys.executable,
    '-m',
    'crjax.plan',
    f'--config={config}',
    '--topology=cpu8',
    '--rows=1600',
    '--price=2',
    '--json',
  ]
  done = subprocess.run(
    command, cwd=ROOT, capture_output=True, text=True, check=True
  )
  report = json.loads(done.stdout)
  assert report['fits'] and report['steps'] == 160
  hours, cost = np.array(report['hours']), np.array(report['cost'])
  np.testing.assert_allclose(cost, hours * 2 * 8)
  np.testing.assert_allclose(
    hours, np.array(report['step_seconds']) * 160 / 3600
  )


def accelerator(name):
  """The topology, or a skip with the command that would install it."""
  try:
    return topology.open(name)
  except topology.MissingCompiler as error:
    pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['v5e:2x4', 'v6e:2x4', 'h200x8'])
def test_tpu_and_gpu_programs_compile_without_the_device(name):
  target = accelerator(name)
  mesh = make_mesh((1, 4, 2), target.devices)
  cfg = model.Config(V=2048, L=3, D=512, F=1024, N=4, K=2, H=128)
  c = tiny('sft_smoke', dtype='bfloat16', batch=8, length=256, micro=2)
  c.shape = {k: getattr(cfg, k) for k in SHAPE}
  optimizer, rate = train.make_optimizer(c, updates=10)
  _, state = train.abstract_state(c, cfg, optimizer, mesh)
  todo = programs.of_sft(c, cfg, mesh, optimizer, rate, state, None)
  todo |= programs.of_rollout(
    cfg, mesh, slots=64, length=4096, prompt=256, dtype=jnp.bfloat16
  )
  with jax.set_mesh(mesh):
    update, decode = (
      aot.compile(k, todo[k][0], *todo[k][1:]) for k in ('update', 'decode')
    )
  assert update.memory['arguments'] >= aot.held(state)
  assert update.memory['results'] < 0.01 * update.memory['arguments']
  kernel = '__cudnn$fmha' if name == 'h200x8' else 'tpu_custom_call'
  assert any(found.startswith(kernel) for found in update.kernels)
  # Layers are scanned: what moves for one moves for each.
  assert any(x.count >= cfg.L for x in update.collectives)
  # The caches are updated in place, and no layer's keys are ever copied.
  cache = aot.held(todo['decode'][2])
  assert decode.memory['results'] < cache / 4
  assert decode.largest < cache / (2 * cfg.L)


@pytest.mark.slow
def test_what_does_not_fit_a_tpu_is_refused_with_its_size(tmp_path):
  mesh = make_mesh((1, 1, 1), accelerator('v5e:1x1').devices)
  x = aot.laid(
    jax.ShapeDtypeStruct((1 << 16, 1 << 16), jnp.float32), '--', mesh
  )
  for _ in range(2):  # Compiled, and remembered.
    with jax.set_mesh(mesh), pytest.raises(aot.TooLarge, match='GiB') as error:
      aot.compile('square', lambda x: x @ x, x, kept=tmp_path)
    assert 31 < error.value.used / 2**30 < 50


ON_CPU = """
import ctypes, gc, json, pathlib
import jax, jax.numpy as jnp
from crjax import aot, plan, programs, topology, train
from crjax.sharding import make_mesh
from tests.test_plan import tiny

shape = {'V': 8192, 'L': 8, 'D': 512, 'F': 2048, 'N': 8, 'K': 4, 'H': 64}
c = tiny('sft_smoke', mesh=(1, 1, 1), length=512, batch=8, chunk=256)
c.shape = shape
report = plan.judge(c, *plan.plan(c, 'cpu'))
mesh = make_mesh(c.mesh)
cfg = programs.shape(c)
optimizer, rate = train.make_optimizer(c, updates=1000)
_, state = train.abstract_state(c, cfg, optimizer, mesh)
todo = programs.of_sft(c, cfg, mesh, optimizer, rate, state, None)
step, *args = todo['update']
with jax.set_mesh(mesh):
  compiled = step.lower(*args).compile()
  ones = lambda x: jax.device_put(jnp.ones(x.shape, x.dtype), x.sharding)
  args = jax.block_until_ready(jax.tree.map(ones, args))
  new, _ = jax.block_until_ready(compiled(*args))  # Loads code as well.
  args = [new, *args[1:]]
  del new
gc.collect()
ctypes.CDLL(None).malloc_trim(0)  # What compiling and the step left.
found = pathlib.Path('/proc/self/status')
status = lambda key: 1024 * int(found.read_text().split(key)[1].split()[1])
size = sum(x.nbytes for x in jax.tree.leaves(args))
pathlib.Path('/proc/self/clear_refs').write_text('5')  # The peak starts anew.
before = status('VmRSS')
jax.block_until_ready(compiled(*args))
measured = status('VmHWM') - before + size
print(json.dumps({'planned': report['needs']['update'], 'measured': measured}))
"""


@pytest.mark.slow
def test_the_memory_of_a_plan_is_what_a_device_uses():
  """On the device that is here: of a step of about 1 GB, by its own peak."""
  if not pathlib.Path('/proc/self/clear_refs').exists():
    pytest.skip('needs the peak memory of a process, as Linux tells it')
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''}
  done = subprocess.run(
    [sys.executable, '-c', ON_CPU],
    cwd=ROOT,
    env=env,
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  print(found)
  assert found['planned'] == pytest.approx(found['measured'], rel=0.1)
