"""Hugging Face directories in and out: one table, read in both directions."""

import json
import os
import pathlib
import shutil

import einops
import jax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from crjax import tokenizer
from crjax.model import Config

# Ours -> (theirs, 'their axes -> our axes'). `{}` is the layer.
LAYER = 'model.layers.{}.'
TABLE = {
  'embed_VD': ('model.embed_tokens.weight', 'V D -> V D'),
  'lm_head_VD': ('lm_head.weight', 'V D -> V D'),
  'final_norm/scale': ('model.norm.weight', 'D -> D'),
  'layers/pre_attn/scale': (LAYER + 'input_layernorm.weight', 'D -> D'),
  'layers/pre_mlp/scale': (
    LAYER + 'post_attention_layernorm.weight',
    'D -> D',
  ),
  'layers/attn/q_DNH': (
    LAYER + 'self_attn.q_proj.weight',
    '(N H) D -> D N H',
  ),
  'layers/attn/k_DKH': (
    LAYER + 'self_attn.k_proj.weight',
    '(K H) D -> D K H',
  ),
  'layers/attn/v_DKH': (
    LAYER + 'self_attn.v_proj.weight',
    '(K H) D -> D K H',
  ),
  'layers/attn/o_NHD': (
    LAYER + 'self_attn.o_proj.weight',
    'D (N H) -> N H D',
  ),
  'layers/attn/qb_NH': (LAYER + 'self_attn.q_proj.bias', '(N H) -> N H'),
  'layers/attn/kb_KH': (LAYER + 'self_attn.k_proj.bias', '(K H) -> K H'),
  'layers/attn/vb_KH': (LAYER + 'self_attn.v_proj.bias', '(K H) -> K H'),
  'layers/attn/q_norm/scale': (LAYER + 'self_attn.q_norm.weight', 'H -> H'),
  'layers/attn/k_norm/scale': (LAYER + 'self_attn.k_norm.weight', 'H -> H'),
  'layers/mlp/gate_DF': (LAYER + 'mlp.gate_proj.weight', 'F D -> D F'),
  'layers/mlp/up_DF': (LAYER + 'mlp.up_proj.weight', 'F D -> D F'),
  'layers/mlp/down_FD': (LAYER + 'mlp.down_proj.weight', 'D F -> F D'),
}
DTYPES = {'float32': np.float32, 'bfloat16': ml_dtypes.bfloat16}
SHARD_BYTES = 5 << 30


def config_from_hf(hf: dict) -> Config:
  """The Config of a config.json of Qwen2, Qwen2.5 or dense Qwen3.

  Raises ValueError naming the field that is missing or not supported.
  """
  kind = hf.get('model_type')
  if kind not in ('qwen2', 'qwen3'):
    raise ValueError(
      f'model_type {kind!r} is not supported; have qwen2 (Qwen2, Qwen2.5) '
      'and qwen3 (dense)'
    )
  _refuse_unsupported(hf)
  rope = _rope(hf)

  def size(field):
    if type(n := hf.get(field)) is not int or n < 1:
      raise ValueError(f'{field} = {n!r} must be a positive whole number')
    return n

  D, N = size('hidden_size'), size('num_attention_heads')
  one_each = hf.get('num_key_value_heads', 0) is None  # null, as Transformers
  return Config(
    V=size('vocab_size'),
    L=size('num_hidden_layers'),
    D=D,
    F=size('intermediate_size'),
    N=N,
    K=N if one_each else size('num_key_value_heads'),
    H=hf.get('head_dim') or (D // N if kind == 'qwen2' else 128),
    rope_theta=float(rope.get('rope_theta', hf.get('rope_theta', 1e4))),
    norm_eps=hf.get('rms_norm_eps', 1e-6),
    qkv_bias=kind == 'qwen2',
    qk_norm=kind == 'qwen3',
    tied=hf.get('tie_word_embeddings', False),
  )


def _rope(hf: dict) -> dict:
  """Transformers 5 moved the rotary fields into `rope_parameters`."""
  return (hf.get('rope_parameters') or {}) | (hf.get('rope_scaling') or {})


def _refuse_unsupported(hf: dict):
  """Raises ValueError for a field that changes what the model computes."""
  rope, layers = _rope(hf), hf.get('layer_types') or []
  name = 'rope_scaling' if hf.get('rope_scaling') else 'rope_parameters'
  plain = rope.get('rope_type', rope.get('type', 'default')) == 'default'
  full = set(layers) <= {'full_attention'}
  rows = [  # field, what was found, whether that will do, what is supported
    (name, rope, plain, "rope_type 'default'"),
    ('layer_types', layers, full, "'full_attention' everywhere"),
  ]
  only = {
    'use_sliding_window': False,
    'quantization_config': None,
    'hidden_act': 'silu',
  } | ({'attention_bias': False} if hf['model_type'] == 'qwen3' else {})
  for field, value in only.items():
    found = hf.get(field) or value  # A null is a default.
    rows.append((field, found, found == value, repr(value)))
  for field, found, supported, have in rows:
    if not supported:
      raise ValueError(f'{field} = {found!r} is not supported; have {have}')


def config_to_hf(cfg: Config) -> dict:
  """A config.json that Transformers and vLLM read; the inverse of the above."""
  kinds = {(True, False): 'qwen2', (False, True): 'qwen3'}
  kind = kinds.get((cfg.qkv_bias, cfg.qk_norm))
  if kind is None:
    raise ValueError(
      f'qkv_bias={cfg.qkv_bias} with qk_norm={cfg.qk_norm} is neither Qwen2 '
      'nor Qwen3 and has no Hugging Face form'
    )
  return {
    'architectures': [f'{kind.capitalize()}ForCausalLM'],
    'model_type': kind,
    'vocab_size': cfg.V,
    'num_hidden_layers': cfg.L,
    'hidden_size': cfg.D,
    'intermediate_size': cfg.F,
    'num_attention_heads': cfg.N,
    'num_key_value_heads': cfg.K,
    'head_dim': cfg.H,
    'hidden_act': 'silu',
    'rope_theta': cfg.rope_theta,
    'rms_norm_eps': cfg.norm_eps,
    'tie_word_embeddings': cfg.tied,
    'max_position_embeddings': 32768,
    'use_sliding_window': False,
    'attention_dropout': 0.0,
    'initializer_range': 0.02,
    'use_cache': True,
  } | ({'attention_bias': False} if kind == 'qwen3' else {})


def load(path):
  """(Config, float32 numpy parameters) of a directory of safetensors.

  Raises FileNotFoundError or ValueError that names the file and the tensor.
  """
  path = pathlib.Path(path)
  cfg = config_from_hf(read_json(path / 'config.json'))
  files = tensor_files(path)
  expected = {
    name for ours in table(cfg) for name in names(TABLE[ours][0], cfg.L)
  }
  if missing := sorted(expected - files.keys()):
    raise ValueError(f'{path} lacks {len(missing)} tensors: {missing[:5]}')
  # A tied head may be stored all the same; rotary tables once were.
  ignored = {'lm_head.weight'} if cfg.tied else set()
  inert = lambda name: name in ignored or name.endswith('rotary_emb.inv_freq')
  unknown = [n for n in sorted(files.keys() - expected) if not inert(n)]
  if unknown:
    raise ValueError(f'{path} holds unexpected tensors: {unknown[:5]}')
  flat = {ours: _read(ours, cfg, files) for ours in table(cfg)}
  return cfg, unflatten(flat)


def save(path, cfg, params, *, tokenizer_dir, dtype='float32'):
  """Writes a directory that Transformers and vLLM load; whole or not at all.

  Args:
    path: replaced if it exists.
    params: numpy or jax arrays, layers stacked.
    tokenizer_dir: where the tokenizer files are; None for none.
    dtype: a key of DTYPES, the precision of the stored weights.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir()
  try:
    config, ids, ends = config_to_hf(cfg) | {'dtype': dtype}, {}, {}
    if tokenizer_dir is not None:
      tokenizer.copy(tokenizer_dir, temporary)
      ids, ends = token_ids(tokenizer_dir)
    _write_json(temporary / 'config.json', config | ids)
    _write_json(temporary / 'generation_config.json', ids | ends)
    _write_tensors(temporary, to_hf(cfg, params, DTYPES[dtype]))
    replace(temporary, path)
  finally:
    shutil.rmtree(temporary, ignore_errors=True)  # There if something failed.


def replace(new, path):
  """Renames directory `new` to `path`; what was there goes away after it."""
  old = path.with_name(f'{path.name}.old')
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    os.replace(path, old)
  os.replace(new, path)
  shutil.rmtree(old, ignore_errors=True)


def to_hf(cfg, params, dtype):
  """Yields (name, numpy array in `dtype`), one layer at a time."""
  flat = flatten(params)
  if flat.keys() != set(table(cfg)):
    raise ValueError(f'parameters {sorted(flat)} do not fit {cfg}')
  for ours, x in flat.items():
    theirs, axes = TABLE[ours]
    back = ' -> '.join(reversed(axes.split(' -> ')))
    layers = x if '{}' in theirs else [x]
    for name, w in zip(names(theirs, cfg.L), layers, strict=True):
      w = einops.rearrange(np.asarray(w), back)
      yield name, np.ascontiguousarray(w.astype(dtype))


def table(cfg) -> list[str]:
  """The rows of TABLE that a config has."""
  absent = [
    (cfg.tied, 'lm_head_VD'),
    (not cfg.qkv_bias, 'b_'),
    (not cfg.qk_norm, '_norm/scale'),
  ]
  has = lambda ours: (
    not any(
      off and part in ours.removeprefix('final_norm/') for off, part in absent
    )
  )
  return [ours for ours in TABLE if has(ours)]


def names(theirs: str, L: int) -> list[str]:
  return [theirs.format(i) for i in range(L)] if '{}' in theirs else [theirs]


def tensor_files(path) -> dict:
  """Tensor name -> the safetensors file that holds it."""
  index = path / 'model.safetensors.index.json'
  if index.exists():
    found = read_json(index).get('weight_map')
    if not isinstance(found, dict):
      raise ValueError(f'{index} lacks the field "weight_map"')
    return {name: path / file for name, file in found.items()}
  single = path / 'model.safetensors'
  if not single.exists():
    raise FileNotFoundError(f'{path} holds no model.safetensors[.index.json]')
  with _open(single) as file:
    return dict.fromkeys(file.keys(), single)


def token_ids(tokenizer_dir):
  """(bos, eos and pad ids, all end ids) as fields, from the tokenizer.

  Generation ends at the end of a turn or of the text, as training samples do.
  """
  tok = tokenizer.load(tokenizer_dir)
  ids = {
    'bos_token_id': tok.bos_token_id,
    'eos_token_id': tok.eos_token_id,
    'pad_token_id': tok.pad_token_id,
  }
  ends = list(tokenizer.stop_ids(tok))
  ids = {k: v for k, v in ids.items() if v is not None}
  return ids, {'eos_token_id': ends} if ends else {}


def read_json(path) -> dict:
  """The object in a JSON file; errors name it."""
  try:
    found = json.loads(pathlib.Path(path).read_text('utf-8'))
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{path} does not exist: not a Hugging Face model directory'
    ) from error
  except ValueError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error
  if not isinstance(found, dict):
    raise ValueError(f'{path} holds no JSON object')
  return found


def flatten(params) -> dict:
  leaves, _ = jax.tree.flatten_with_path(params)
  return {'/'.join(k.key for k in path): x for path, x in leaves}


def unflatten(flat) -> dict:
  tree = {}
  for path, x in flat.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = x
  return tree


def _read(ours, cfg, files):
  """One parameter in float32, its layers stacked."""
  theirs, axes = TABLE[ours]
  sizes = {k: v for k, v in vars(cfg).items() if k in axes.replace('->', '')}

  def one(name):
    w = _tensor(files[name], name)
    try:
      return einops.rearrange(w, axes, **sizes).astype(np.float32)
    except einops.EinopsError as error:
      raise ValueError(
        f'{name} in {files[name]}: shape {w.shape} does not fit {axes!r} '
        f'with {sizes}'
      ) from error

  layers = [one(name) for name in names(theirs, cfg.L)]
  return np.stack(layers) if '{}' in theirs else layers[0]


def _tensor(path, name):
  with _open(path) as file:
    try:
      return file.get_tensor(name)
    except safetensors.SafetensorError as error:
      raise ValueError(f'{path} lacks {name}: {error}') from error


def _open(path):
  try:
    return safetensors.safe_open(path, framework='numpy')
  except FileNotFoundError:
    raise
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(f'{path} is damaged: {error}') from error


def _write_json(path, value):
  path.write_text(json.dumps(value, indent=2) + '\n', 'utf-8')


def _write_tensors(directory, tensors):
  """model.safetensors, or shards of SHARD_BYTES and their index."""
  shards, size = [{}], 0
  for name, w in tensors:
    if shards[-1] and size + w.nbytes > SHARD_BYTES:
      shards.append({})
      size = 0
    shards[-1][name] = w
    size += w.nbytes
  files = (
    ['model.safetensors']
    if len(shards) == 1
    else [
      f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
      for i in range(len(shards))
    ]
  )
  for file, shard in zip(files, shards, strict=True):
    safetensors.numpy.save_file(shard, directory / file, {'format': 'pt'})
  if len(shards) > 1:
    total = sum(w.nbytes for shard in shards for w in shard.values())
    _write_json(
      directory / 'model.safetensors.index.json',
      {
        'metadata': {'total_size': total},
        'weight_map': {
          name: file
          for file, shard in zip(files, shards, strict=True)
          for name in shard
        },
      },
    )
