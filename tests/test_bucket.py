"""A run directory in a bucket: the real clients, a server on this machine."""

import json
import shutil
import subprocess
import sys

import pytest

from tests import fakegcs
from tests.conftest import ROOT

pytest.importorskip(
  'google.cloud.storage', reason='google-cloud-storage is not installed'
)
if not shutil.which('openssl'):
  pytest.skip('openssl makes the certificate', allow_module_level=True)


@pytest.fixture(scope='module')
def bucket(tmp_path_factory):
  with fakegcs.serve(tmp_path_factory.mktemp('tls')) as served:
    yield served


def run(bucket, *args, code=0):
  """The output of a python process that uses the bucket."""
  process = subprocess.run(
    [sys.executable, *map(str, args)],
    cwd=ROOT,
    env=bucket[1] | {'COLUMNS': '200'},
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    timeout=400,
  )
  assert process.returncode == code, process.stdout
  return process.stdout


SAVE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from crjax import checkpoint, files
workdir = sys.argv[1]
state = {'params': {'w_DF': jnp.arange(20_000.0).reshape(100, 200)}}
state |= {'step': jnp.int32(0)}
abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)
later = lambda n: jax.tree.map(lambda x: x + n, state)
with checkpoint.open_manager(workdir, keep=2, best='reward') as manager:
  assert checkpoint.restore(manager, abstract) is None
  for step, reward in ((1, 0.9), (2, 0.1), (3, 0.2), (4, 0.3)):
    numbers = {'reward': reward}
    checkpoint.save(manager, step, later(step), {'next': step}, numbers)
with checkpoint.open_manager(workdir, keep=2) as manager:
  assert sorted(manager.all_steps()) == [1, 3, 4]
  found, position = checkpoint.restore(manager, abstract)
jax.tree.map(np.testing.assert_array_equal, found, later(4))
assert position == {'next': 4}
step, params = checkpoint.restore_params(workdir, 3)
np.testing.assert_array_equal(params['w_DF'], later(3)['params']['w_DF'])
# A write that ends before its last object is none.
half = f'{workdir}/checkpoints/5'
for name in files.walk(f'{workdir}/checkpoints/4'):
  if name != 'commit_success.txt':
    files.copy(f'{workdir}/checkpoints/4/{name}', f'{half}/{name}')
# One that is there and is damaged is set aside.
(part,) = [k for k in files.walk(f'{workdir}/checkpoints/4') if '/d/' in k][:1]
files.remove(f'{workdir}/checkpoints/4/{part}')
with checkpoint.open_manager(workdir, keep=2) as manager:
  found, position = checkpoint.restore(manager, abstract)
  assert position == {'next': 3}
  checkpoint.save(manager, 5, later(5), {'next': 5})
with checkpoint.open_manager(workdir, keep=2) as manager:
  found, position = checkpoint.restore(manager, abstract)
  assert position == {'next': 5}
jax.tree.map(np.testing.assert_array_equal, found, later(5))
files.write_text(f'{workdir}/config.json', '{"task": "sft"}')
"""


def test_checkpoints_in_a_bucket(bucket, tmp_path):
  url = 'gs://crjax/saved'
  said = run(bucket, '-c', SAVE, url)
  assert 'state/' in said and 'is missing' in said
  assert 'Going on from step 3 instead of 4' in said
  names = [name for name in bucket[0].objects if name.startswith('saved/')]
  assert any(name.startswith('saved/damaged/4/state/') for name in names)
  assert not any(name.startswith('saved/checkpoints/4/') for name in names)


@pytest.mark.slow
def test_people_copy_into_and_out_of_a_bucket(bucket, tmp_path):
  url = 'gs://crjax/saved'
  if not any(name.startswith('saved/') for name in bucket[0].objects):
    run(bucket, '-c', SAVE, url)
  people = ('-m', 'crjax.checkpoint')
  said = run(bucket, *people, 'verify', url)
  assert said.count('whole, by arrays') == 2
  run(bucket, *people, 'copy', url, tmp_path / 'here')
  run(bucket, *people, 'copy', tmp_path / 'here', 'gs://crjax/there')
  said = run(bucket, *people, 'ls', 'gs://crjax/there')
  assert [x.split()[0] for x in said.splitlines() if 'right' in x] == ['5']
  there = 'there/checkpoints/5/'
  for name, (data, _) in list(bucket[0].objects.items()):
    # An empty name stands for a directory.
    if name.startswith('saved/checkpoints/5/') and not name.endswith('/'):
      copied = bucket[0].objects[there + name.split('/5/', 1)[1]][0]
      assert copied == data
  # The bucket answers, but not for the last object: no copy is there.
  last = 'late/checkpoints/5/commit_success.txt'
  bucket[0].fail = lambda method, name: 403 if name == last else None
  said = run(bucket, *people, 'copy', url, 'gs://crjax/late', code=1)
  assert last in said and '403' in said and 'Traceback' not in said
  bucket[0].fail = lambda method, name: None
  said = run(bucket, *people, 'ls', 'gs://crjax/late', code=1)
  assert 'holds no checkpoints' in said
  before = len(bucket[0].requests)
  run(bucket, *people, 'copy', url, 'gs://crjax/late')
  sent = [x for x in bucket[0].requests[before:] if x[0] == 'POST']
  assert [name for _, name in sent if '/checkpoints/' in name] == [last]


REFUSED = """
import sys
import jax.numpy as jnp
from crjax import checkpoint
try:
  with checkpoint.open_manager(sys.argv[1], keep=2) as manager:
    checkpoint.save(manager, 7, {'x': jnp.arange(1000.0)}, {})
except checkpoint.Unwritten as error:
  print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize('what', ['7/', '7/state/'])
def test_a_bucket_that_refuses_is_named(bucket, what):
  url, start = 'gs://crjax/refused', f'refused/checkpoints/{what}'
  refuse = lambda method, name: method == 'POST' and name.startswith(start)
  bucket[0].fail = lambda *asked: 403 if refuse(*asked) else None
  said = run(bucket, '-c', REFUSED, url).splitlines()
  bucket[0].fail = lambda method, name: None
  (line,) = [x for x in said if x.startswith(f'{url}/checkpoints: a checkp')]
  assert 'cannot be written: ' in line and '403' in line
  assert said[-1].endswith('the same command continues from the newest')


@pytest.mark.slow
def test_a_run_in_a_bucket_resumes_and_is_exported(
  bucket, smoke_data, tmp_path
):
  url = 'gs://crjax/runs/sft'

  def train(epochs):
    values = {
      'data': smoke_data / 'sft_train.parquet',
      'tokenizer': smoke_data / 'tokenizer',
      'workdir': url,
      'batch': 8,
      'length': 256,
      'schedule': 'constant',
      'save_every': 2,
      'epochs': epochs,
      'keep_best': '-loss',
    }
    flags = [f'--config.{k}={v}' for k, v in values.items()]
    config = f'--config={ROOT / "configs" / "sft_smoke.py"}'
    return run(bucket, '-m', 'crjax.train', config, *flags)

  train(4.5 * 8 / 120)
  said = train(8.5 * 8 / 120)
  assert 'resumed at step 4 in gs://crjax/runs/sft' in said
  objects = bucket[0].objects
  lines = objects['runs/sft/metrics.jsonl'][0].decode().splitlines()
  lines = [json.loads(line) for line in lines]
  assert [line['step'] for line in lines] == list(range(1, 9))
  # Saves after the steps 2, 4 and 6 held up the steps after them.
  waited = [line['step'] for line in lines if 'time/save_s' in line]
  assert waited == [1, 3, 5, 7]
  assert any('/events.' in name for name in objects)
  assert not any('/processes/' in name for name in objects)
  out = tmp_path / 'export'
  run(bucket, '-m', 'crjax.export', f'--workdir={url}', f'--out={out}')
  assert (out / 'config.json').exists()
  page = tmp_path / 'page.html'
  run(bucket, '-m', 'crjax.report', url, f'--out={page}')
  assert json.dumps([8, lines[-1]['loss']]) in page.read_text()
  said = run(bucket, '-m', 'crjax.checkpoint', 'ls', url)
  assert said.count('loss ') >= 2
