"""The order of the house: a module imports only from rows above its own."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
ROWS = [
  {
    'sharding',
    'losses',
    'xent',
    'advantages',
    'tokenizer',
    'runtime',
    'execution',
    'files',
    'lora',
    'int8',
    'branches',
    'topology',
    'hlo',
    'roofline',
  },
  {
    'attention',
    'flash',
    'masters',
    'metrics',
    'rewards',
    'examples',
    'data',
    'evals',
    'api',
    'objectives',
    'aot',
  },
  {'model', 'optim', 'curriculum', 'watch'},
  {'hf', 'sampling', 'decoding', 'engine', 'checkpoint', 'cluster'},
  {'sft', 'grpo', 'policy', 'divergence', 'completing'},
  {
    'train',
    'inputs',
    'outputs',
    'evaluate',
    'export',
    'generate',
    'serve',
    'report',
  },
  {'programs', 'replay'},
  {'plan'},
]
ROW = {name: i for i, names in enumerate(ROWS) for name in names}
# Neighbours in a row that may meet, as DESIGN allows.
WITHIN = {
  ('evals', 'rewards'),
  ('evals', 'metrics'),
  ('data', 'examples'),
  ('decoding', 'sampling'),
  ('engine', 'decoding'),
  ('train', 'inputs'),
  ('train', 'outputs'),
  ('evaluate', 'inputs'),
  ('export', 'inputs'),
  ('generate', 'inputs'),
  ('generate', 'export'),
  ('serve', 'generate'),
}
FILES = sorted((ROOT / 'crjax').rglob('*.py'))
PIPELINE = sorted((ROOT / 'data_pipeline').rglob('*.py'))
HOST_ONLY = {'execution', 'rewards'}
PURE = {'losses', 'xent', 'objectives', 'advantages', 'branches', 'model'}


def imports(path):
  """Every dotted name that a file imports, wherever in it."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}:{node.lineno}: import by absolute name'
      yield node.module
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def module(path):
  """`crjax/rewards/judge.py` -> rewards."""
  return path.relative_to(ROOT / 'crjax').parts[0].removesuffix('.py')


def internal(path):
  """The modules of crjax that a file imports, other than its own."""
  parts = (name.split('.') for name in imports(path))
  found = {p[1] for p in parts if p[0] == 'crjax' and len(p) > 1}
  return found - {module(path)}


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.name))
def test_a_module_imports_only_from_rows_above(path):
  name = module(path)
  if name == '__init__':
    assert not internal(path)
    return
  assert name in ROW, (
    f'{path}: {name!r} has no row. Add it to ROWS in {__file__}: one row below '
    f'the lowest of those it imports, {sorted(internal(path))}'
  )
  for other in internal(path):
    assert other in ROW, f'{path} imports crjax.{other}, which has no row'
    above = ROW[other] < ROW[name] or (name, other) in WITHIN
    assert above, f'{path}: row {ROW[name]} imports {other} of {ROW[other]}'


@pytest.mark.parametrize('path', PIPELINE, ids=lambda p: str(p.name))
def test_the_pipeline_uses_three_modules_of_crjax(path):
  names = (name.split('.') for name in imports(path))
  used = {p[1] for p in names if p[0] == 'crjax' and len(p) > 1}
  assert used <= {'execution', 'rewards', 'tokenizer'}


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.name))
def test_workers_and_pure_modules_know_no_device_flag_or_file(path):
  found = {name.split('.')[0] for name in imports(path)}
  if module(path) in HOST_ONLY:
    assert not found & {'jax', 'flax', 'optax', 'tensorflow'}
  if module(path) in PURE:
    assert not found & {'ml_collections', 'absl', 'os', 'pathlib', 'json'}
  if ROW.get(module(path), 0) < 5:  # No entry point: no reader of flags.
    assert not found & {'ml_collections', 'absl'}


@pytest.mark.parametrize('name', ['crjax.execution', 'crjax.rewards'])
def test_what_workers_import_never_brings_jax_along(name):
  code = f'import sys, {name}; sys.exit("jax" in sys.modules)'
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


@pytest.mark.parametrize('name', ['sft', 'grpo'])
def test_a_loop_is_read_on_one_screen(name):
  tree = ast.parse((ROOT / 'crjax' / f'{name}.py').read_text())
  (run,) = [n for n in tree.body if getattr(n, 'name', '') == 'run']
  assert run.end_lineno - run.lineno < 40
