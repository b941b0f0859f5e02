"""config.json of a Qwen checkpoint, read into a model.Config and written back.

What changes the computation and is not supported is refused by name; what only
describes the checkpoint (initializer_range, inert sliding windows) is kept by
`like`, so that an export says what its source said.
"""

import json
import math

from crjax import files
from crjax.attention import Yarn
from crjax.model import Config

SUPPORTED = (
  'dense Qwen2, Qwen2.5 and Qwen2.5-Coder (model_type qwen2) and dense Qwen3 '
  '(model_type qwen3), unquantised, with full attention, with or without YaRN'
)


def read(hf: dict) -> Config:
  """The Config of a config.json.

  Raises ValueError naming the field that is missing or not supported, and what
  is supported.
  """
  kind = hf.get('model_type')
  if kind not in ('qwen2', 'qwen3'):
    raise ValueError(f'model_type {kind!r} is not supported; have {SUPPORTED}')
  _refuse_unsupported(hf)
  D, N = _size(hf, 'hidden_size'), _size(hf, 'num_attention_heads')
  one_each = hf.get('num_key_value_heads', 0) is None  # null, as Transformers
  head_dim = _size(hf, 'head_dim') if hf.get('head_dim') else None
  if head_dim is None and kind == 'qwen2' and D % N:
    raise ValueError(
      f'hidden_size = {D} does not split over num_attention_heads = {N}, and '
      'there is no head_dim'
    )
  return Config(
    V=_size(hf, 'vocab_size'),
    L=_size(hf, 'num_hidden_layers'),
    D=D,
    F=_size(hf, 'intermediate_size'),
    N=N,
    K=N if one_each else _size(hf, 'num_key_value_heads'),
    H=head_dim or (D // N if kind == 'qwen2' else 128),
    rope_theta=_number(_rope(hf), 'rope_theta', 1e4),
    norm_eps=_number(hf, 'rms_norm_eps', 1e-6),
    qkv_bias=kind == 'qwen2',
    qk_norm=kind == 'qwen3',
    tied=_switch(hf, 'tie_word_embeddings', False),
    yarn=_yarn(hf),
  )


def _size(fields, name) -> int:
  if type(n := fields.get(name)) is not int or n < 1:
    raise ValueError(f'{name} = {n!r} must be a positive whole number')
  return n


def _number(fields, name, default) -> float:
  found = default if fields.get(name) is None else fields[name]
  if type(found) not in (int, float) or found <= 0:
    raise ValueError(f'{name} = {found!r} must be a positive number')
  return float(found)


def _switch(fields, name, default) -> bool:
  found = default if fields.get(name) is None else fields[name]
  if not isinstance(found, bool):
    raise ValueError(f'{name} = {found!r} must be true or false')
  return found


def _rope(hf: dict) -> dict:
  """The rotary fields; Transformers 5 moved them into `rope_parameters`."""
  found = {'rope_theta': hf['rope_theta']} if hf.get('rope_theta') else {}
  for name in ('rope_parameters', 'rope_scaling'):
    fields = hf.get(name) or {}
    if not isinstance(fields, dict):
      raise ValueError(f'{name} = {fields!r} must be an object')
    found |= fields
  return found


def _kind(rope: dict) -> str:
  return rope.get('rope_type', rope.get('type', 'default'))


def _yarn(hf: dict) -> Yarn | None:
  """Qwen's documented `rope_scaling` for long inputs, None without one."""
  rope = _rope(hf)
  if _kind(rope) != 'yarn':
    return None
  longest = 'max_position_embeddings'
  original = 'original_max_position_embeddings'
  factor = _number(rope, 'factor', None)
  return Yarn(
    factor=factor,
    original=_size(rope, original)
    if rope.get(original)
    else _size(hf, longest),
    beta_fast=_number(rope, 'beta_fast', 32),
    beta_slow=_number(rope, 'beta_slow', 1),
    attention_factor=_attention_factor(rope, factor),
    truncate=_switch(rope, 'truncate', True),
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
  typed = 'rope_type' in rope or 'type' in rope or 'factor' not in rope
  known = typed and _kind(rope) in ('default', 'yarn')
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
    'partial_rotary_factor': 1.0,
  } | ({'attention_bias': False} if hf['model_type'] == 'qwen3' else {})
  for field, value in only.items():
    # A null is a default; one field is also known among the rotary ones.
    found = hf.get(field) or rope.get(field) or value
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


def like(source: dict, cfg: Config, dtype: str | None) -> dict:
  """The source's config.json, with the stored dtype where that is given.

  Raises ValueError if the source describes another model than `cfg`.
  """
  found = read(source)
  if found != cfg:
    raise ValueError(f'config.json describes {found}, the weights are {cfg}')
  field = 'dtype' if 'dtype' in source else 'torch_dtype'
  return source | ({field: dtype} if dtype else {})


def read_json(path) -> dict:
  """The object in a JSON file; errors name it."""
  try:
    found = json.loads(files.read_bytes(path).decode('utf-8'))
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
  files.write_text(path, to_json(value))


def to_json(value) -> str:
  return json.dumps(value, indent=2) + '\n'
