"""Processes that share four devices do what one process of four does."""

import collections
import dataclasses
import json
import os
import re
import subprocess
import sys

import datasets
import jax
import numpy as np
import pytest

from crjax import checkpoint, hf, model
from tests.conftest import ROOT

SHAPE = model.Config(V=512, L=1, D=32, F=48, N=2, K=1, H=16, tied=True)
STEPS, QUESTIONS, ROLLOUTS = 4, 4, 4
EPOCHS = 0.7  # As many steps of SFT.
# An entry point that writes down what it judges.
COUNTED = """
import os, runpy, sys
from crjax import rewards
score = rewards.score
def counted(tasks, *args, **kwargs):
  with open(os.environ['JUDGED'], 'a') as file:
    file.write(''.join(task['id'] + '\\n' for task in tasks))
  return score(tasks, *args, **kwargs)
rewards.score = counted
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
"""


def together(args, *, processes: int, judged=os.devnull):
  """Outputs of the processes of one run over four devices.

  They find each other as the tasks of a Slurm job step do. `args` follow
  `python`; the ids of what they judge go to the file `judged`.
  """
  devices = 4 // processes
  env = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    'SLURM_JOB_ID': str(os.getpid()),  # Chooses the port.
    'SLURM_STEP_NODELIST': 'localhost',
    'SLURM_NTASKS': str(processes),
    'JUDGED': str(judged),
  }
  if processes > 1:
    args = [*args, '--distributed']
  running = [
    subprocess.Popen(
      [sys.executable, *map(str, args)],
      cwd=ROOT,
      env=env | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    for i in range(processes)
  ]
  try:
    outputs = [process.communicate(timeout=600)[0] for process in running]
  finally:
    for process in running:
      process.kill()
  for process, output in zip(running, outputs, strict=True):
    assert process.returncode == 0, output
  return outputs


@pytest.fixture(scope='module')
def policy(tmp_path_factory, smoke_data):
  path = tmp_path_factory.mktemp('policy') / 'hf'
  params = jax.device_get(model.init(SHAPE, jax.random.key(0)))
  hf.save(path, SHAPE, params, source_dir=smoke_data / 'tokenizer')
  return path


def train(task, smoke_data, policy, workdir, processes, judged, **values):
  """Trains on so many processes; the ids of what was judged, counted."""
  common = {
    'model': policy,
    'tokenizer': '',
    'workdir': workdir,
    'mesh': (2, 2, 1),
    'save_every': 2,
    'schedule': 'constant',  # Whatever the number of steps to come.
  }
  of_task = {
    'sft': {
      'data': smoke_data / 'sft_train.parquet',
      'epochs': EPOCHS,
      'batch': 8,
      'packed': True,
      'length': 400,
      'micro': 2,
    },
    'grpo': {
      'data': smoke_data / 'rl_train.parquet',
      'steps': STEPS,
      'questions': QUESTIONS,
      'groups': QUESTIONS,
      'rollouts': ROLLOUTS,
      'completion_length': 16,
      'samples_every': 2,
    },
  }
  values = common | of_task[task] | values
  flags = [f'--config.{k}={v}' for k, v in values.items()]
  config = f'--config={ROOT / "configs" / f"{task}_smoke.py"}'
  args = ['-c', COUNTED, 'crjax.train', config, *flags]
  outputs = together(args, processes=processes, judged=judged)
  ids = judged.read_text().splitlines() if judged.exists() else []
  return outputs, collections.Counter(ids)


def numbers(workdir):
  """The lines of metrics.jsonl, without the clock."""
  lines = map(json.loads, (workdir / 'metrics.jsonl').open())
  kept = lambda k: not k.startswith(('time', 'perf'))
  return [{k: v for k, v in line.items() if kept(k)} for line in lines]


def assert_same_run(one, other):
  """The steps once each, and everything equal up to rounding."""
  (step, params), (_, others) = map(checkpoint.restore_params, (one, other))
  assert step == STEPS
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  jax.tree.map(close, params, others)
  a, b = numbers(one), numbers(other)
  assert [line['step'] for line in b] == list(range(1, step + 1))
  for x, y in zip(a, b, strict=True):
    assert y == pytest.approx(x, rel=1e-4, abs=1e-5)
  for path in one.glob('samples/*'):
    files = map(str, (path, other / 'samples' / path.name))
    x, y = (list(datasets.Dataset.from_parquet(p)['text']) for p in files)
    assert x == y


@pytest.mark.parametrize('task', ['sft', 'grpo'])
def test_two_processes_train_what_one_trains(
  task, smoke_data, policy, tmp_path
):
  counts = []
  for n in (1, 2):
    judged = tmp_path / f'judged-{n}'
    outputs, ids = train(task, smoke_data, policy, tmp_path / str(n), n, judged)
    assert 'a fresh run' in outputs[0]
    counts.append(ids)
  assert_same_run(tmp_path / '1', tmp_path / '2')
  assert counts[0] == counts[1]
  asked = STEPS * QUESTIONS * ROLLOUTS if task == 'grpo' else 0
  assert counts[1].total() == asked


@pytest.mark.slow
@pytest.mark.parametrize('task', ['sft', 'grpo'])
def test_a_run_goes_on_with_another_number_of_processes(
  task, smoke_data, policy, tmp_path
):
  straight, moved = tmp_path / 'straight', tmp_path / 'moved'
  _, whole = train(task, smoke_data, policy, straight, 1, tmp_path / 'a')
  for processes, step in ((4, 2), (1, 3), (2, STEPS)):
    until = {'steps': step}
    if task == 'sft':
      until = {'epochs': EPOCHS * step / STEPS}
    outputs, ids = train(
      task, smoke_data, policy, moved, processes, tmp_path / 'b', **until
    )
  assert 'resumed at step 3' in outputs[0]
  assert_same_run(straight, moved)
  assert ids == whole


COMMANDS = {
  'export': ['crjax.export', '--workdir={run}', '--out={out}/hf'],
  'generate': [
    'crjax.generate',
    '--model={run}',
    '--prompts={prompts}',
    '--out={out}/generated.jsonl',
    '--max_new_tokens=12',
  ],
  'evaluate': [
    'crjax.evaluate',
    '--config=configs/eval_smoke.py',
    '--model={policy}',
    '--data={data}',
    '--out={out}',
    '--config.completion_length=16',
    '--config.batch=16',
    '--config.samples=2',
  ],
}


@pytest.fixture(scope='module')
def trained(smoke_data, policy, tmp_path_factory):
  path = tmp_path_factory.mktemp('trained')
  train('sft', smoke_data, policy, path / 'run', 1, path / 'judged')
  return path / 'run'


@pytest.mark.slow
@pytest.mark.parametrize('name', COMMANDS)
def test_two_processes_write_what_one_writes(
  name, smoke_data, policy, tmp_path, request
):
  prompts = tmp_path / 'prompts.jsonl'
  lines = [{'prompt': f'def f({x}):'} for x in 'abcdefg']
  prompts.write_text(''.join(json.dumps(x) + '\n' for x in lines))
  given = {'policy': policy, 'data': smoke_data / 'test.parquet'}
  given |= {'prompts': prompts}
  if name != 'evaluate':
    given |= {'run': request.getfixturevalue('trained')}
  counts = []
  for n in (1, 2):
    out, judged = tmp_path / str(n), tmp_path / f'judged-{n}'
    out.mkdir()
    args = [x.format(out=out, **given) for x in COMMANDS[name]]
    together(['-c', COUNTED, *args], processes=n, judged=judged)
    ids = judged.read_text().split() if judged.exists() else []
    counts.append(collections.Counter(ids))
  assert counts[0] == counts[1]
  assert bool(counts[0]) == (name == 'evaluate')
  written = [contents(tmp_path / str(n)) for n in (1, 2)]
  assert written[0] == written[1]


def contents(folder):
  """{name: what a file holds}, without the clock and the command."""
  found = {}
  for path in folder.rglob('*'):
    if path.name == 'report.json':
      report = json.loads(path.read_text())
      found[path.name] = report['kinds']
    elif path.suffix == '.parquet':
      found[path.name] = datasets.Dataset.from_parquet(str(path)).to_list()
    elif path.suffix == '.jsonl':  # Log-probs are rounded in their own way.
      lines = map(json.loads, path.open())
      found[path.name] = [line | {'logp': len(line['logp'])} for line in lines]
    elif path.is_file():
      found[path.name] = path.read_bytes()
  return found


LOAD_AND_SAVE = """
import re, sys
import jax
from crjax import hf
from crjax.sharding import make_mesh
source, out = sys.argv[1:3]
if '--distributed' in sys.argv:
  jax.distributed.initialize()
mesh = make_mesh((1, 2, 2))
found = hf.inspect(source)
read = lambda: int(re.search(r'rchar: (\\d+)', open('/proc/self/io').read())[1])
before = read()
params = hf.load(found, mesh)
jax.block_until_ready(params)
print('read', read() - before)
with jax.set_mesh(mesh):
  hf.save(out, found.cfg, params, dtype='bfloat16')
"""


def test_each_process_reads_its_share_and_the_first_one_writes(tmp_path):
  cfg = dataclasses.replace(SHAPE, V=16384, D=256, L=2, tied=False)
  params = jax.device_get(model.init(cfg, jax.random.key(0)))
  source = tmp_path / 'source'
  hf.save(source, cfg, params, dtype='bfloat16')
  size = sum(p.stat().st_size for p in source.glob('*.safetensors'))
  for processes in (1, 2):
    out = tmp_path / str(processes)
    args = ['-c', LOAD_AND_SAVE, source, out]
    outputs = together(args, processes=processes)
    found = [int(re.search(r'read (\d+)', output)[1]) for output in outputs]
    # All read norm scales, headers, and modules that jax imports late.
    assert max(found) < 1.15 * size / processes
    assert sum(found) > 0.95 * size
    assert {p.name for p in tmp_path.iterdir()} <= {'source', '1', '2'}
    for path in source.iterdir():
      assert path.read_bytes() == (out / path.name).read_bytes()
