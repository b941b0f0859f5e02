"""Checkpoints on disk, in a bucket and on the hub: whole, damaged, killed."""

import functools
import hashlib
import http.server
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from crjax import checkpoint, export, files, hf, model, tokenizer
from crjax.hf import tensors
from crjax.sharding import gather, make_mesh
from tests.conftest import ROOT, load

CONFIG = {
  'vocab_size': 512,
  'num_hidden_layers': 3,
  'hidden_size': 64,
  'intermediate_size': 96,
  'num_attention_heads': 8,
  'num_key_value_heads': 2,
  'rope_theta': 1e6,
  'sliding_window': 4096,
  'use_sliding_window': False,
  'initializer_range': 0.03,
}
BF16 = ml_dtypes.bfloat16


@pytest.fixture(scope='module')
def source(tmp_path_factory, smoke_data):
  """By Transformers: sharded, bfloat16, with tokenizer, generation config."""
  path = tmp_path_factory.mktemp('source') / 'hf'
  torch.manual_seed(0)
  net = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**CONFIG))
  net = net.to(torch.bfloat16)
  net.generation_config = transformers.GenerationConfig(
    eos_token_id=[0, 2], temperature=0.7, do_sample=True
  )
  net.save_pretrained(path, max_shard_size='150KB')
  tokenizer.copy(smoke_data / 'tokenizer', path)
  assert len(list(path.glob('*.safetensors'))) > 2
  return path


@pytest.fixture
def broken(source, tmp_path):
  """A copy to damage."""
  shutil.copytree(source, tmp_path / 'm')
  return tmp_path / 'm'


def run_of(source, path):
  """A run directory whose first checkpoint holds the weights of `source`."""
  found = hf.inspect(source)
  hf.remember(found, path / 'source')
  config = {'lora': {'rank': 0}, 'model': str(source)}
  checkpoint.write_json(path / 'config.json', config)
  with checkpoint.open_manager(path, keep=None) as manager:
    params = hf.load(found, make_mesh((2, 2, 2)))
    checkpoint.save(manager, 1, {'params': params}, {})
  return path


def rewrite(path, name, change):
  """Replaces one tensor of a sharded checkpoint; returns its file."""
  where = json.loads((path / tensors.INDEX).read_text())['weight_map']
  file = path / where[name]
  found = safetensors.numpy.load_file(file)
  found[name] = change(found[name])
  safetensors.numpy.save_file(found, file)
  return file.name


@pytest.mark.parametrize('mesh', [(1, 8, 1), (1, 2, 4)])
def test_a_round_trip_is_byte_identical(source, tmp_path, mesh):
  run = run_of(source, tmp_path / 'run')
  out = tmp_path / 'out'
  export.export(run, out, mesh=make_mesh(mesh))
  assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()}
  for path in source.iterdir():
    if path.name == tensors.INDEX:  # Theirs also counts parameters.
      read = lambda p: json.loads(p.read_text())['weight_map']
      assert read(path) == read(out / path.name)
    else:
      assert path.read_bytes() == (out / path.name).read_bytes(), path.name


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_an_export_in_another_dtype_is_rounded_once(source, tmp_path, dtype):
  run = run_of(source, tmp_path / 'run')
  out = tmp_path / 'out'
  export.export(run, out, mesh=make_mesh((1, 8, 1)), dtype=dtype)
  config = json.loads((out / 'config.json').read_text())
  assert config['dtype'] == dtype
  assert config['initializer_range'] == CONFIG['initializer_range']
  want = load(source)[1]
  half = hf.DTYPES[dtype]
  jax.tree.map(
    lambda x, y: np.testing.assert_array_equal(
      x.astype(half).astype(np.float32), y
    ),
    want,
    load(out)[1],
  )


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_every_mesh_loads_the_same_values(source, dtype):
  whole = load(source)[1]
  for mesh in ((1, 1, 1), (8, 1, 1), (1, 8, 1), (1, 4, 2), (1, 2, 4)):
    devices = jax.devices()[: int(np.prod(mesh))]
    params = hf.load(hf.inspect(source), make_mesh(mesh, devices), dtype=dtype)
    jax.tree.map(
      lambda x, y: np.testing.assert_array_equal(x.astype(y.dtype), y),
      whole,
      gather(params),
    )


def test_files_of_mixed_dtypes_keep_theirs(broken, tmp_path):
  names = ('model.norm.weight', 'model.layers.1.mlp.up_proj.weight')
  for name in names:
    rewrite(broken, name, lambda x: x.astype(np.float32) + 2**-20)
  wide = load(broken)[1]
  assert wide['final_norm']['scale'][0] == np.float32(1 + 2**-20)
  run = run_of(broken, tmp_path / 'run')
  export.export(run, tmp_path / 'out', mesh=make_mesh((1, 8, 1)))
  for file in broken.glob('*.safetensors'):
    a, b = (
      safetensors.numpy.load_file(directory / file.name)
      for directory in (broken, tmp_path / 'out')
    )
    assert a.keys() == b.keys()
    for name, x in a.items():
      assert x.dtype == b[name].dtype == (np.float32 if name in names else BF16)
      assert x.tobytes() == b[name].tobytes()
  config = 'config.json'  # What it says of the dtype was and is a summary.
  assert (broken / config).read_bytes() == (
    tmp_path / 'out' / config
  ).read_bytes()


def test_one_file_with_an_index_stays_so(broken, tmp_path):
  found = {}
  for file in sorted(broken.glob('*.safetensors')):
    found |= safetensors.numpy.load_file(file)
    file.unlink()
  only = 'model-00001-of-00001.safetensors'
  safetensors.numpy.save_file(found, broken / only, {'format': 'pt'})
  where = {'weight_map': dict.fromkeys(found, only)}
  (broken / tensors.INDEX).write_text(json.dumps(where))
  run = run_of(broken, tmp_path / 'run')
  export.export(run, tmp_path / 'out', mesh=make_mesh((1, 8, 1)))
  assert (broken / only).read_bytes() == (tmp_path / 'out' / only).read_bytes()


def test_files_up_to_a_size(source, tmp_path):
  run, out = run_of(source, tmp_path / 'run'), tmp_path / 'out'
  export.export(run, out, mesh=make_mesh((1, 8, 1)), limit=60_000)
  sizes = [p.stat().st_size for p in out.glob('*.safetensors')]
  most = max(t.nbytes for t in hf.inspect(source).tensors.values())
  assert len(sizes) > 4 and max(sizes) < max(60_000, most) + 2000
  a, b = (
    transformers.AutoModelForCausalLM.from_pretrained(path).state_dict()
    for path in (source, out)
  )
  assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_tied_head_that_is_stored_must_be_the_embedding(tmp_path):
  cfg = model.Config(V=64, L=1, D=16, F=24, N=2, K=1, H=8, tied=True)
  params = jax.device_get(model.init(cfg, jax.random.key(0)))
  hf.save(tmp_path / 'm', cfg, params)
  file = tmp_path / 'm/model.safetensors'
  found = safetensors.numpy.load_file(file)
  head = {'lm_head.weight': found['model.embed_tokens.weight']}
  safetensors.numpy.save_file(found | head, file)
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / 'm')[1], params)
  head = {'lm_head.weight': head['lm_head.weight'] + 1}
  safetensors.numpy.save_file(found | head, file)
  with pytest.raises(ValueError, match=r'lm_head\.weight in .* differs from'):
    load(tmp_path / 'm')
  head = {'lm_head.weight': np.zeros((3, 7), np.float32)}
  safetensors.numpy.save_file(found | head, file)
  with pytest.raises(ValueError, match=r'lm_head\.weight in .*shape \(3, 7\)'):
    hf.inspect(tmp_path / 'm')


def test_tensors_that_share_bytes_are_damage(broken):
  file = sorted(broken.glob('*.safetensors'))[0]
  data = file.read_bytes()
  n = int.from_bytes(data[:8], 'little')
  entries = json.loads(data[8 : 8 + n])
  same = [k for k, x in entries.items() if x.get('shape') == [96, 64]][:2]
  entries[same[1]]['data_offsets'] = entries[same[0]]['data_offsets']
  raw = json.dumps(entries).encode()
  file.write_bytes(len(raw).to_bytes(8, 'little') + raw + data[8 + n :])
  with pytest.raises(
    ValueError, match=rf'{file.name} is damaged: .* starts at'
  ):
    hf.inspect(broken)


def test_another_tokenizer_replaces_all_of_the_old_one(source, tmp_path):
  found = hf.inspect(source)
  (tmp_path / 'tok').mkdir()
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    shutil.copy(source / name, tmp_path / 'tok' / name)
  hf.remember(found, tmp_path / 'run', tmp_path / 'tok')
  kept = {p.name for p in (tmp_path / 'run').iterdir()}
  assert 'chat_template.jinja' not in kept and 'tokenizer.json' in kept


def test_a_checkpoint_replaced_under_a_run_is_noticed(broken, tmp_path):
  hf.remember(hf.inspect(broken), tmp_path / 'run/source')
  hf.remember(hf.inspect(broken), tmp_path / 'run/source')
  for file in broken.glob('*.safetensors'):
    moved = {
      k: (x * BF16(1.01)).astype(x.dtype)
      for k, x in safetensors.numpy.load_file(file).items()
    }
    safetensors.numpy.save_file(moved, file)
  with pytest.raises(ValueError, match='holds other weights than those that'):
    hf.remember(hf.inspect(broken), tmp_path / 'run/source')


def test_a_missing_shard_is_named(broken):
  file = sorted(broken.glob('*.safetensors'))[1]
  file.unlink()
  with pytest.raises(FileNotFoundError, match=rf'{file.name} does not exist'):
    hf.inspect(broken)


def test_a_truncated_file_is_named_with_a_tensor_it_lost(broken):
  file = sorted(broken.glob('*.safetensors'))[0]
  data = file.read_bytes()
  last = max(tensors.header(file).values(), key=lambda t: t.start)
  for n in (len(data) - 1, len(data) // 2):
    file.write_bytes(data[:n])
    with pytest.raises(ValueError, match=rf'{file.name} is damaged.*truncated'):
      hf.inspect(broken)
  file.write_bytes(data[:-1])
  with pytest.raises(ValueError, match=last.name):
    hf.inspect(broken)
  for n in (100, 5, 0):
    file.write_bytes(data[:n])
    with pytest.raises(ValueError, match=rf'{file.name} is damaged'):
      hf.inspect(broken)
  file.write_bytes(b'\x10' + b'\0' * 7 + b'{"a": 1 no json.' + data)
  with pytest.raises(ValueError, match=rf'{file.name} is damaged.*header'):
    hf.inspect(broken)


def test_a_wrong_shape_is_named(broken):
  name = 'model.layers.2.mlp.up_proj.weight'
  file = rewrite(broken, name, lambda x: x[:5])
  with pytest.raises(
    ValueError, match=rf'{name} in .*{file}: shape \(5, 64\).*\(96, 64\)'
  ):
    hf.inspect(broken)


def test_extra_and_missing_tensors_are_named(broken):
  index = broken / tensors.INDEX
  whole = json.loads(index.read_text())
  where = whole['weight_map']
  file = where['model.norm.weight']
  found = safetensors.numpy.load_file(broken / file)
  extra = found | {'odd.weight': np.zeros(1, np.float32)}
  safetensors.numpy.save_file(extra, broken / file)
  with pytest.raises(ValueError, match=rf'{file} holds odd.weight, which'):
    hf.inspect(broken)
  index.write_text(json.dumps({'weight_map': where | {'odd.weight': file}}))
  with pytest.raises(
    ValueError, match=rf"{file} holds unexpected tensors: \['odd.weight'\]"
  ):
    hf.inspect(broken)
  del found['model.norm.weight']
  safetensors.numpy.save_file(found, broken / file)
  index.write_text(json.dumps(whole))
  with pytest.raises(ValueError, match=rf'{file} lacks model.norm.weight'):
    hf.inspect(broken)
  del where['model.norm.weight']
  index.write_text(json.dumps({'weight_map': where}))
  with pytest.raises(ValueError, match=r"lacks 1 tensors.*'model.norm.weight'"):
    hf.inspect(broken)


def poison(x):
  x = x.copy()
  x.flat[-1] = np.nan
  return x


def test_a_nan_is_named(broken):
  name = 'model.layers.1.self_attn.k_proj.weight'
  file = rewrite(broken, name, poison)
  found = hf.inspect(broken)
  with pytest.raises(ValueError, match=rf'{name} in .*{file} holds a NaN'):
    hf.load(found, make_mesh((1, 8, 1)))


@pytest.mark.parametrize(
  'dtype', [np.int8, np.float64, ml_dtypes.float8_e4m3fn]
)
def test_a_wrong_dtype_is_named(broken, dtype):
  name = 'model.layers.0.mlp.down_proj.weight'
  file = rewrite(broken, name, lambda x: x.astype(np.float32).astype(dtype))
  with pytest.raises(
    ValueError, match=rf'{name} in .*{file}: dtype \w+ is not supported'
  ):
    hf.inspect(broken)


def test_a_header_that_lies_about_a_dtype_is_damage(broken):
  file = sorted(broken.glob('*.safetensors'))[0]
  file.write_bytes(file.read_bytes().replace(b'"BF16"', b'"F32" ', 1))
  with pytest.raises(ValueError, match=rf'{file.name} is damaged.*bytes'):
    hf.inspect(broken)


def test_damaged_and_missing_json_is_named(broken, tmp_path):
  (broken / tensors.INDEX).write_text('{}')
  with pytest.raises(ValueError, match='lacks the field "weight_map"'):
    hf.inspect(broken)
  (broken / tensors.INDEX).write_text('[')
  with pytest.raises(ValueError, match=rf'{tensors.INDEX} is damaged'):
    hf.inspect(broken)
  (broken / tensors.INDEX).unlink()
  with pytest.raises(FileNotFoundError, match=r'model\.safetensors does not'):
    hf.inspect(broken)
  (broken / 'config.json').write_text('{')
  with pytest.raises(ValueError, match=r'config\.json is not JSON'):
    hf.inspect(broken)
  (broken / 'config.json').write_text('[]')
  with pytest.raises(ValueError, match=r'config\.json holds no JSON object'):
    hf.inspect(broken)
  (broken / 'config.json').write_text('{"model_type": "mixtral"}')
  with pytest.raises(ValueError, match=r"config\.json: model_type 'mixtral'"):
    hf.inspect(broken)
  with pytest.raises(FileNotFoundError, match='not a model directory'):
    hf.inspect(tmp_path / 'nothing')


def test_a_full_disk_leaves_what_was_there(source, tmp_path):
  """A file-size limit: the write itself fails, as on a full disk."""
  out = tmp_path / 'out'
  shutil.copytree(source, out)
  run = run_of(source, tmp_path / 'run')
  script = 'ulimit -f 100; trap "" XFSZ; exec "$@"'  # KiB
  done = subprocess.run(
    ['bash', '-c', script, '-', *export_command(run, out)],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode != 0
  assert 'export: ' in done.stderr and 'Traceback' not in done.stderr
  assert not list(tmp_path.glob('.out*'))
  for path in source.iterdir():
    assert path.read_bytes() == (out / path.name).read_bytes()


def export_command(run, out, *more):
  return [
    *(sys.executable, '-m', 'crjax.export'),
    *(f'--workdir={run}', f'--out={out}', *more),
  ]


def test_a_killed_export_leaves_nothing_that_looks_whole(tmp_path, smoke_data):
  cfg = model.Config(V=20_000, L=2, D=256, F=512, N=4, K=2, H=64, tied=True)
  run = tmp_path / 'run'
  hf.remember_new(cfg, run / 'source', smoke_data / 'tokenizer')
  checkpoint.write_json(run / 'config.json', {'lora': {'rank': 0}})
  with checkpoint.open_manager(run, keep=None) as manager:
    params = jax.jit(model.init, static_argnums=0)(cfg, jax.random.key(0))
    checkpoint.save(manager, 1, {'params': params}, {})
  out = tmp_path / 'out'
  process = subprocess.Popen(export_command(run, out), cwd=ROOT)
  deadline = time.time() + 120
  while time.time() < deadline and process.poll() is None:
    if any(
      p.stat().st_size for p in tmp_path.glob('.out.crjax-draft/*.safetensors')
    ):
      break
    time.sleep(0.001)
  process.send_signal(signal.SIGKILL)
  process.wait()
  assert process.returncode == -signal.SIGKILL
  assert not out.exists()
  with pytest.raises((FileNotFoundError, ValueError)):
    hf.inspect(tmp_path / '.out.crjax-draft')
  subprocess.run(export_command(run, out), cwd=ROOT, check=True)
  jax.tree.map(np.testing.assert_array_equal, load(out)[1], params)
  assert not (tmp_path / '.out.crjax-draft').exists()


def test_a_bucket_is_read_and_written_by_ranges(source, tmp_path):
  """TensorFlow's own memory file system stands where gs:// would."""
  run = run_of(source, tmp_path / 'run')
  url = f'ram://bucket-{os.getpid()}/model'
  assert files.listdir(url) == []
  with pytest.raises(FileNotFoundError, match=f'{url} does not exist'):
    hf.inspect(url)
  mesh = make_mesh((1, 4, 2))
  export.export(run, url, mesh=mesh)
  assert set(files.listdir(url)) == {p.name for p in source.iterdir()}
  want = load(source)[1]
  got = gather(hf.load(hf.inspect(url), mesh))
  jax.tree.map(np.testing.assert_array_equal, want, got)
  found = hf.inspect(url)
  assert not list(found.place.path.glob('*.safetensors'))  # Small files only.
  tok = tokenizer.load(found.place.path)
  assert tok.chat_template == tokenizer.load(source).chat_template
  export.export(run, url, mesh=mesh, dtype='float32')  # Replaces it.
  assert files.listdir(url).count('model.safetensors') == 1
  assert load(url)[0] == load(source)[0]


def etag_of(path) -> str:
  return hashlib.sha1(path.name.encode()).hexdigest()


def test_damage_in_a_bucket_is_named_and_a_failed_export_does_not_load(
  source, tmp_path, monkeypatch
):
  run = run_of(source, tmp_path / 'run')
  url = f'ram://broken-{os.getpid()}/model'
  mesh = make_mesh((1, 8, 1))
  export.export(run, url, mesh=mesh)
  shard = next(n for n in files.listdir(url) if n.endswith('.safetensors'))
  data = files.read_bytes(f'{url}/{shard}')
  files.remove(f'{url}/{shard}')
  with files.writer(f'{url}/{shard}') as file:
    file.write(data[:-7])
  with pytest.raises(ValueError, match=rf'{shard} is damaged.*truncated'):
    hf.inspect(url)
  files.remove(f'{url}/{shard}')
  with pytest.raises(FileNotFoundError, match=rf'{shard} does not exist'):
    hf.inspect(url)

  def fail(*_, **__):
    raise OSError('the line is down')

  monkeypatch.setattr(export, 'compare', fail)
  with pytest.raises(OSError, match='the line is down'):
    export.export(run, url, mesh=mesh)
  assert shard in files.listdir(url)
  with pytest.raises(FileNotFoundError, match=r'config\.json'):
    hf.inspect(url)


class Hub(http.server.BaseHTTPRequestHandler):
  """As much of the hub's protocol as a snapshot download asks for."""

  root: pathlib.Path
  served: list

  def do_GET(self):
    path = self.path.split('?')[0]
    here = sorted(self.root.iterdir())
    if '/tree/' in path:
      entry = lambda p: {
        'type': 'file',
        'path': p.name,
        'size': p.stat().st_size,
        'oid': etag_of(p),
      }
      return self.reply(json.dumps(list(map(entry, here))).encode())
    if path.startswith('/api/models/'):
      names = [{'rfilename': p.name} for p in here]
      body = {'id': 'some/model', 'sha': 'a' * 40, 'siblings': names}
      return self.reply(json.dumps(body).encode())
    file = self.root / path.rsplit('/', 1)[1]
    if not file.exists():
      return self.reply(b'', status=404)
    self.served.append((self.command, file.name))
    return self.reply(file.read_bytes(), etag=f'"{etag_of(file)}"')

  do_HEAD = do_GET

  def reply(self, body, status=200, etag=None):
    self.send_response(status)
    self.send_header('Content-Length', str(len(body)))
    if status == 404:
      self.send_header('X-Error-Code', 'EntryNotFound')
    if etag:
      self.send_header('ETag', etag)
      self.send_header('X-Repo-Commit', 'a' * 40)
    self.end_headers()
    if self.command == 'GET':
      self.wfile.write(body)

  def log_message(self, *_):
    pass


def test_a_hub_name_is_downloaded_once_a_host(source, tmp_path):
  served = []
  handler = type('Handler', (Hub,), {'root': source, 'served': served})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  env = os.environ | {
    'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}',
    'HF_HOME': str(tmp_path / 'cache'),
    'HF_HUB_OFFLINE': '0',
    'HF_HUB_DISABLE_TELEMETRY': '1',
  }
  code = (
    'import jax; from crjax import hf; from crjax.sharding import make_mesh; '
    'found = hf.inspect("some/model"); '
    'hf.load(found, make_mesh((1, 8, 1))); print(found.place.path)'
  )
  start = functools.partial(
    subprocess.Popen,
    [sys.executable, '-c', code],
    cwd=ROOT,
    env=env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  try:
    both = [start(), start()]
    outputs = [process.communicate(timeout=120) for process in both]
  finally:
    server.shutdown()
  for process, (_, errors) in zip(both, outputs, strict=True):
    assert process.returncode == 0, errors
  downloads = [name for verb, name in served if verb == 'GET']
  weights = [name for name in downloads if name.endswith('.safetensors')]
  assert sorted(weights) == sorted(p.name for p in source.glob('*.safetensors'))
  # The cache serves later runs without a network.
  gone = start(env=env | {'HF_HUB_OFFLINE': '1'})
  assert gone.wait(120) == 0


def test_a_mistyped_path_is_no_hub_name(tmp_path, monkeypatch):
  (tmp_path / 'checkpoints').mkdir()
  monkeypatch.chdir(tmp_path)
  with pytest.raises(FileNotFoundError, match='mine does not exist: not a'):
    hf.inspect('checkpoints/mine')


def test_an_unknown_hub_name_says_what_was_tried():
  with pytest.raises(
    FileNotFoundError, match='no/such-model is neither a directory here nor'
  ):
    hf.inspect('no/such-model')
