"""config.json of a Qwen checkpoint, read into a model.Config and written back.

What changes the computation and is not supported is refused by name; what only
describes the checkpoint (initializer_range, inert sliding windows) is kept by
`like`, so that an export says what its source said.
"""

import json
import math
import pathlib

from crjax.attention import Yarn
from crjax.model import Config

SUPPORTED = (
  'dense Qwen2, Qwen2.5 and Qwen2.5-Coder (model_type qwen2) and dense Qwen3 '
  '(model_type qwen3), unquantised, with full attention, with or without YaRN'
)
# Fields that this file derives from a Config; `like` leaves the others alone.
ROPE_FIELDS = ('rope_theta', 'rope_scaling', 'rope_parameters')
DTYPE_FIELDS = ('dtype', 'torch_dtype')


def read(hf: dict) -> Config:
  """The Config of a config.json.

  Raises ValueError naming the field that is missing or not supported, and what
  is supported.
  """
  kind = hf.get('model_type')
  if kind not in ('qwen2', 'qwen3'):
    raise ValueError(f'model_type {kind!r} is not supported; have {SUPPORTED}')
  _refuse_unsupported(hf)

  def size(field):
    if type(n := hf.get(field)) is not int or n < 1:
      raise ValueError(f'{field} = {n!r} must be a positive whole number')
    return n

  D, N = size('hidden_size'), size('num_attention_heads')
  one_each = hf.get('num_key_value_heads', 0) is None  # null, as Transformers
  head_dim = size('head_dim') if hf.get('head_dim') else None
  if head_dim is None and kind == 'qwen2' and D % N:
    raise ValueError(
      f'hidden_size = {D} does not split over num_attention_heads = {N}, and '
      'there is no head_dim'
    )
  return Config(
    V=size('vocab_size'),
    L=size('num_hidden_layers'),
    D=D,
    F=size('intermediate_size'),
    N=N,
    K=N if one_each else size('num_key_value_heads'),
    H=head_dim or (D // N if kind == 'qwen2' else 128),
    rope_theta=float(_rope(hf).get('rope_theta', 1e4)),
    norm_eps=hf.get('rms_norm_eps', 1e-6),
    qkv_bias=kind == 'qwen2',
    qk_norm=kind == 'qwen3',
    tied=bool(hf.get('tie_word_embeddings', False)),
    yarn=_yarn(hf),
  )


def _rope(hf: dict) -> dict:
  """The rotary fields; Transformers 5 moved them into `rope_parameters`."""
  outside = {'rope_theta': hf['rope_theta']} if hf.get('rope_theta') else {}
  return (
    outside | (hf.get('rope_parameters') or {}) | (hf.get('rope_scaling') or {})
  )


def _kind(rope: dict) -> str:
  return rope.get('rope_type', rope.get('type', 'default'))


def _yarn(hf: dict) -> Yarn | None:
  """Qwen's documented `rope_scaling` for long inputs, None without one."""
  rope = _rope(hf)
  if _kind(rope) != 'yarn':
    return None
  longest = hf.get('max_position_embeddings', 32768)
  factor = rope.get('factor')
  if not isinstance(factor, int | float) or factor < 1:
    raise ValueError(
      f'rope_scaling = {rope!r}: YaRN needs a factor of 1 or more'
    )
  return Yarn(
    factor=float(factor),
    original=rope.get('original_max_position_embeddings', longest),
    beta_fast=float(rope.get('beta_fast') or 32),
    beta_slow=float(rope.get('beta_slow') or 1),
    attention_factor=_attention_factor(rope, factor),
    truncate=rope.get('truncate', True),
  )


def _attention_factor(rope, factor) -> float | None:
  """As Transformers: given, else from two `mscale`s, else left to YaRN."""
  given = rope.get('attention_factor')
  if given is not None:
    return float(given)
  a, b = rope.get('mscale'), rope.get('mscale_all_dim')
  if not (a and b):
    return None
  scale = lambda m: 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0
  return scale(a) / scale(b)


def _refuse_unsupported(hf: dict):
  """Raises ValueError for a field that changes what the model computes."""
  rope, layers = _rope(hf), hf.get('layer_types') or []
  name = 'rope_scaling' if hf.get('rope_scaling') else 'rope_parameters'
  known = _kind(rope) in ('default', 'yarn')
  full = set(layers) <= {'full_attention'}
  rows = [  # field, what was found, whether that will do, what is supported
    (name, rope, known, "rope_type 'default' and 'yarn'"),
    ('layer_types', layers, full, "'full_attention' everywhere"),
  ]
  only = {
    'use_sliding_window': False,
    'quantization_config': None,
    'hidden_act': 'silu',
    'num_experts': 0,
  } | ({'attention_bias': False} if hf['model_type'] == 'qwen3' else {})
  for field, value in only.items():
    found = hf.get(field) or value  # A null is a default.
    rows.append((field, found, found == value, repr(value)))
  for field, found, supported, have in rows:
    if not supported:
      raise ValueError(
        f'{field} = {found!r} is not supported; have {have}: {SUPPORTED}'
      )


def write(cfg: Config) -> dict:
  """A config.json that Transformers and vLLM read; the inverse of `read`."""
  kinds = {(True, False): 'qwen2', (False, True): 'qwen3'}
  kind = kinds.get((cfg.qkv_bias, cfg.qk_norm))
  if kind is None:
    raise ValueError(
      f'qkv_bias={cfg.qkv_bias} with qk_norm={cfg.qk_norm} is neither Qwen2 '
      'nor Qwen3 and has no Hugging Face form'
    )
  longest = int(cfg.yarn.factor * cfg.yarn.original) if cfg.yarn else 32768
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
    'max_position_embeddings': longest,
    'use_sliding_window': False,
    'attention_dropout': 0.0,
    'initializer_range': 0.02,
    'use_cache': True,
    **({'attention_bias': False} if kind == 'qwen3' else {}),
    **({'rope_scaling': _scaling(cfg.yarn)} if cfg.yarn else {}),
  }


def _scaling(yarn: Yarn) -> dict:
  fields = {
    'rope_type': 'yarn',
    'factor': yarn.factor,
    'original_max_position_embeddings': yarn.original,
    'beta_fast': yarn.beta_fast,
    'beta_slow': yarn.beta_slow,
    'truncate': yarn.truncate,
  }
  if yarn.attention_factor is not None:
    fields['attention_factor'] = yarn.attention_factor
  return fields


def like(source: dict, cfg: Config, dtype: str) -> dict:
  """The source's config.json with the stored dtype; its own if it is not one.

  Raises ValueError if the source describes another model than `cfg`.
  """
  found = read(source)
  if found != cfg:
    raise ValueError(f'config.json describes {found}, the weights are {cfg}')
  field = 'dtype' if 'dtype' in source else 'torch_dtype'
  return source | {field: dtype}


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


def write_json(path, value):
  pathlib.Path(path).write_text(to_json(value), 'utf-8')


def to_json(value) -> str:
  return json.dumps(value, indent=2) + '\n'
