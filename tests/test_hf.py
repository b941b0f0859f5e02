"""Logits, shapes and shardings against Transformers and the real configs."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from crjax import hf, model, sampling
from crjax.sharding import (
  DECODE_WEIGHTS,
  LARGE,
  make_mesh,
  suffix,
  tree_shardings,
)
from tests.conftest import load

RNG = np.random.default_rng(0)
SHAPES = {
  'qwen2-tied': {'model_type': 'qwen2', 'tie_word_embeddings': True},
  'qwen2-untied': {'model_type': 'qwen2', 'tie_word_embeddings': False},
  'qwen2-wide-heads': {
    'model_type': 'qwen2',
    'tie_word_embeddings': False,
    'num_attention_heads': 6,
    'num_key_value_heads': 2,
    'head_dim': 10,
  },
  'qwen2-no-groups': {
    'model_type': 'qwen2',
    'tie_word_embeddings': True,
    'num_key_value_heads': 4,
  },
  'qwen3-tied': {'model_type': 'qwen3', 'tie_word_embeddings': True},
  'qwen3-untied': {
    'model_type': 'qwen3',
    'tie_word_embeddings': False,
    'num_key_value_heads': 1,
    'head_dim': 24,
  },
}
BASE = {
  'vocab_size': 97,
  'num_hidden_layers': 3,
  'hidden_size': 32,
  'intermediate_size': 56,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'rms_norm_eps': 1e-5,
  'rope_theta': 5000.0,
}
REAL = [
  'Qwen2.5-0.5B-Instruct',
  'Qwen2.5-1.5B-Instruct',
  'Qwen2.5-3B-Instruct',
  'Qwen2.5-7B-Instruct',
  'Qwen2.5-14B-Instruct',
  'Qwen3-0.6B',
  'Qwen3-1.7B',
  'Qwen3-4B',
  'Qwen3-8B',
  'Qwen3-14B',
]
YARN = {
  'rope_type': 'yarn',
  'factor': 4.0,
  'original_max_position_embeddings': 32768,
}


def theirs(config):
  """A random model of Transformers; biases and scales random too."""
  config = dict(config)
  if config['model_type'] == 'qwen3':
    config = {'head_dim': 12} | config  # Not width / heads.
  made = transformers.AutoConfig.for_model(config.pop('model_type'), **config)
  torch.manual_seed(0)
  net = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.float32)
  with torch.no_grad():
    for weight in net.parameters():
      weight.add_(0.1 * torch.randn_like(weight))
  return net.eval()


def their_logits(net, tokens_BT, **kwargs):
  with torch.no_grad():
    return net(torch.tensor(tokens_BT).long(), **kwargs).logits.float().numpy()


def our_logits(cfg, params, tokens_BT, segment_BT=None, pos_BT=None, **kwargs):
  dtype = kwargs.get('dtype', jnp.float32)

  @jax.jit
  def run(params, tokens_BT, segment_BT, pos_BT):
    x_BTD = model.forward(
      cfg, params, tokens_BT, segment_BT, pos_BT=pos_BT, dtype=dtype
    )
    return model.logits(params, x_BTD)

  if segment_BT is None:
    segment_BT = np.ones_like(tokens_BT, bool)
  return np.asarray(run(params, tokens_BT, segment_BT, pos_BT))


def random(cfg):
  init = jax.jit(model.init, static_argnums=0)
  return jax.device_get(init(cfg, jax.random.key(0)))


def tokens(B=3, T=17):
  return RNG.integers(0, 97, (B, T)).astype(np.int32)


@pytest.mark.parametrize('shape', SHAPES)
def test_logits_are_those_of_transformers(shape, tmp_path):
  net, tokens_BT = theirs(BASE | SHAPES[shape]), tokens()
  net.save_pretrained(tmp_path)
  cfg, params = load(tmp_path)
  ours = our_logits(cfg, params, tokens_BT)
  assert np.abs(ours - their_logits(net, tokens_BT)).max() < 1e-4


@pytest.mark.parametrize('shape', SHAPES)
def test_what_we_save_transformers_reads(shape, tmp_path):
  net, tokens_BT = theirs(BASE | SHAPES[shape]), tokens()
  net.save_pretrained(tmp_path / 'theirs')
  cfg, params = load(tmp_path / 'theirs')
  hf.save(tmp_path / 'ours', cfg, params)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  want = their_logits(net, tokens_BT)
  np.testing.assert_array_equal(their_logits(again, tokens_BT), want)
  read_cfg, read = load(tmp_path / 'ours')
  assert read_cfg == cfg
  jax.tree.map(np.testing.assert_array_equal, read, params)


def test_greedy_equals_transformers_token_for_token(tmp_path):
  net = theirs(BASE | SHAPES['qwen3-untied'])
  net.save_pretrained(tmp_path)
  cfg, params = load(tmp_path)
  prompts = tokens(B=20, T=8)
  greedy = jax.jit(sampling.greedy, static_argnums=(0, 3))
  got = greedy(cfg, model.unstack(params, jnp.float32), prompts, 24)
  with torch.no_grad():
    want = net.generate(
      torch.tensor(prompts).long(),
      attention_mask=torch.ones(prompts.shape),
      do_sample=False,
      max_new_tokens=24,
      eos_token_id=None,
      pad_token_id=0,
    )
  np.testing.assert_array_equal(got, want[:, 8:].numpy())


def test_the_published_weights_give_the_published_logits(assets):
  path = assets / 'weights' / 'stories260k-qwen2'
  cfg, params = load(path)
  golden = np.load(path / 'golden_logits_first64.npz')
  tokens_BT = golden['input_ids'].reshape(1, -1)
  got = our_logits(cfg, params, tokens_BT)[0]
  np.testing.assert_allclose(got, golden['logits'].squeeze(), atol=1e-4)


def real_config(assets, name):
  return hf.read_json(assets / 'configs' / name / 'config.json')


def scaled_down(real):
  """The same flags, heads a group and vocabulary padding; small otherwise."""
  G = real['num_attention_heads'] // real['num_key_value_heads']
  small = {
    'num_hidden_layers': 2,
    'num_attention_heads': 2 * G,
    'num_key_value_heads': 2,
    'vocab_size': 97,
    'intermediate_size': 80,
    'hidden_size': 2 * G * 16,
  }
  if 'head_dim' in real:
    small |= {'head_dim': 32, 'hidden_size': 48}  # Width is another.
  drop = ('layer_types', 'torch_dtype', 'max_window_layers', 'architectures')
  return {k: v for k, v in (real | small).items() if k not in drop}


def rows():
  """(segment_BT, pos_BT): padded left, packed, far out, far out and packed."""
  T = 24
  left = np.arange(T) >= 7
  packed = np.repeat([1, 2, 3, 0], [9, 3, 8, 4])
  segment_BT = np.stack([left, packed, np.ones(T), packed]).astype(np.int32)
  count = lambda row: [np.arange(n) for n in row]
  packed_pos = np.concatenate(count([9, 3, 8, 4]))
  far_packed = packed_pos + np.repeat([0, 33_000, 101_000, 0], [9, 3, 8, 4])
  left_pos = np.maximum(np.arange(T) - 7, 0)
  pos_BT = np.stack(
    [left_pos, packed_pos, 40_000 + np.arange(T), far_packed]
  ).astype(np.int32)
  return segment_BT, pos_BT


def mask_for_torch(segment_BT):
  """Additive [B, 1, T, T]: the same segment, not the future."""
  same = segment_BT[:, :, None] == segment_BT[:, None, :]
  allowed = same & (segment_BT > 0)[:, None, :]
  allowed &= np.tri(segment_BT.shape[1], dtype=bool)
  return torch.where(torch.tensor(allowed), 0.0, -1e30)[:, None]


@pytest.mark.parametrize('rope', ['plain', 'yarn'])
@pytest.mark.parametrize('name', REAL)
def test_logits_of_every_real_config_scaled_down(assets, name, rope, tmp_path):
  config = scaled_down(real_config(assets, name))
  if rope == 'yarn':
    config['rope_scaling'] = YARN
    config['max_position_embeddings'] = 131072
  net = theirs(config)
  net.save_pretrained(tmp_path)
  cfg, params = load(tmp_path)
  assert (cfg.yarn is not None) == (rope == 'yarn')
  segment_BT, pos_BT = rows()
  tokens_BT, valid_BT = tokens(*segment_BT.shape), segment_BT > 0
  mask = mask_for_torch(segment_BT)
  ask = {'position_ids': torch.tensor(pos_BT)}
  want = their_logits(net, tokens_BT, attention_mask=mask, **ask)[valid_BT]
  got = our_logits(cfg, params, tokens_BT, segment_BT, pos_BT)[valid_BT]
  assert np.abs(got - want).max() < 1e-4
  # In bfloat16 both are off by its rounding; ours by no more than theirs.
  half = net.to(torch.bfloat16)
  theirs_off = (
    their_logits(half, tokens_BT, attention_mask=mask.bfloat16(), **ask)[
      valid_BT
    ]
    - want
  )
  low = our_logits(
    cfg, params, tokens_BT, segment_BT, pos_BT, dtype=jnp.bfloat16
  )[valid_BT]
  rms = lambda x: np.sqrt(np.mean(np.square(x)))
  assert rms(low - want) < 1.25 * rms(theirs_off)


def test_positions_count_within_segments():
  segment_BT, pos_BT = rows()
  got = model.positions(jnp.asarray(segment_BT[:2]))
  np.testing.assert_array_equal(
    np.where(segment_BT[:2] > 0, got, 0),
    np.where(segment_BT[:2] > 0, pos_BT[:2], 0),
  )
  bools = model.positions(jnp.asarray(segment_BT[:1] > 0))
  np.testing.assert_array_equal(bools[0], pos_BT[0])


def test_every_real_config_is_read_and_written(assets):
  assert {p.name for p in (assets / 'configs').iterdir()} == set(REAL)
  for name in REAL:
    real = real_config(assets, name)
    cfg = hf.config_from_hf(real)
    ours = hf.config_to_hf(cfg)
    assert hf.config_from_hf(ours) == cfg
    for field in ('vocab_size', 'hidden_size', 'tie_word_embeddings'):
      assert ours[field] == real[field]
  stretched = hf.config_from_hf(real | {'rope_scaling': YARN})
  assert hf.config_from_hf(hf.config_to_hf(stretched)) == stretched


@pytest.mark.parametrize('name', REAL)
def test_every_real_config_has_the_parameters_of_transformers(assets, name):
  """Names and shapes, on no device: Transformers' own meta model tells them."""
  real = real_config(assets, name)
  made = transformers.AutoConfig.for_model(**real)
  with torch.device('meta'):
    net = transformers.AutoModelForCausalLM.from_config(made)
  cfg = hf.config_from_hf(real)
  ours = hf.their_shapes(cfg)
  want = {k: tuple(v.shape) for k, v in net.named_parameters()}
  assert ours == want
  total = sum(x.numel() for x in net.parameters())
  assert model.count(hf.abstract(cfg)) == total


MESHES = {
  'data1': (1, 1, 1),
  'fsdp8': (1, 8, 1),
  'fsdp4xtensor2': (1, 4, 2),
  'fsdp2xtensor4': (1, 2, 4),  # More ways than 2 key-value heads.
  'tensor8': (1, 1, 8),
}


@pytest.mark.parametrize('mesh', MESHES)
@pytest.mark.parametrize('name', REAL)
def test_every_real_config_shards_evenly(assets, name, mesh):
  cfg = hf.config_from_hf(real_config(assets, name))
  shape = MESHES[mesh]
  devices = jax.devices()[: int(np.prod(shape))]
  params = hf.abstract(cfg)
  shardings = tree_shardings(params, make_mesh(shape, devices))
  if name == 'Qwen2.5-3B-Instruct' and mesh == 'fsdp2xtensor4':
    assert cfg.K < shape[2]
  copy = jax.eval_shape(lambda p: model.unstack(p, jnp.bfloat16), params)
  tree_shardings(copy, make_mesh(shape, devices), DECODE_WEIGHTS, strict=False)
  kept = 0
  for (path, x), s in zip(
    jax.tree.leaves_with_path(params), jax.tree.leaves(shardings), strict=True
  ):
    local = np.prod(s.shard_shape(x.shape))  # Raises where it is uneven.
    kept += local
    axes = suffix(path[-1].key)
    if np.prod(x.shape[x.ndim - len(axes) :]) >= LARGE and axes:
      assert local == x.size / len(devices), jax.tree_util.keystr(path)
  # Norm scales and biases are whole everywhere, 0.1 % of the smallest model.
  assert kept < 1.01 * model.count(params) / len(devices)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'llama'}, "model_type 'llama'.*dense Qwen3"),
    ({'model_type': 'qwen3_moe'}, 'qwen3_moe'),
    ({'use_sliding_window': True}, 'use_sliding_window'),
    ({'rope_scaling': {'type': 'linear', 'factor': 4}}, 'rope_scaling'),
    ({'rope_scaling': {'type': 'yarn'}}, 'factor = None must be'),
    ({'rope_scaling': {'type': 'yarn', 'factor': True}}, 'factor = True'),
    ({'rope_scaling': {'factor': 4.0}}, 'rope_scaling'),
    ({'rope_scaling': 'yarn'}, "rope_scaling = 'yarn' must be an object"),
    (
      {'rope_scaling': YARN | {'original_max_position_embeddings': 0.5}},
      r'original_max_position_embeddings = 0\.5',
    ),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor'),
    ({'rope_theta': 'x'}, "rope_theta = 'x' must be a positive number"),
    ({'rms_norm_eps': '1e-6'}, "rms_norm_eps = '1e-6'"),
    ({'tie_word_embeddings': 'false'}, "tie_word_embeddings = 'false'"),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'hidden_act': 'gelu'}, 'hidden_act'),
    ({'num_experts': 64}, 'num_experts'),
    (
      {'rope_scaling': None, 'rope_parameters': {'rope_type': 'llama3'}},
      "rope_parameters = .*'llama3'.* have rope_type 'default' and 'yarn'",
    ),
    ({'layer_types': ['full_attention', 'sliding_attention']}, 'layer_types'),
    ({'model_type': 'qwen3', 'attention_bias': True}, 'attention_bias'),
    ({'hidden_size': None}, 'hidden_size = None must be'),
    ({'vocab_size': '97'}, "vocab_size = '97' must be"),
    ({'num_attention_heads': 3}, 'hidden_size = 32 does not split'),
  ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
  config = BASE | SHAPES['qwen2-tied'] | change
  with pytest.raises(ValueError, match=message):
    hf.config_from_hf(config)


def test_inert_fields_change_nothing():
  config = BASE | SHAPES['qwen2-tied']
  inert = {
    'sliding_window': 4096,
    'use_sliding_window': False,
    'max_window_layers': 2,
    'layer_types': ['full_attention'] * 3,
    'rope_scaling': None,
  }
  assert hf.config_from_hf(config | inert) == hf.config_from_hf(config)


def test_no_key_value_heads_means_one_each():
  config = BASE | SHAPES['qwen2-tied'] | {'num_key_value_heads': None}
  assert hf.config_from_hf(config).K == config['num_attention_heads']


def test_a_mix_of_qwen2_and_qwen3_has_no_form():
  cfg = model.Config(V=8, L=1, D=8, F=8, N=2, K=1, H=4, qk_norm=True)
  with pytest.raises(ValueError, match='neither Qwen2 nor Qwen3'):
    hf.config_to_hf(cfg)


def test_a_config_that_describes_other_weights_is_not_carried_over(tmp_path):
  cfg = hf.config_from_hf(BASE | SHAPES['qwen2-tied'])
  described = hf.config_to_hf(dataclasses.replace(cfg, L=4))
  (tmp_path / 'source').mkdir()
  (tmp_path / 'source/config.json').write_text(json.dumps(described))
  with pytest.raises(ValueError, match=r'describes Config.*L=4.*weights are'):
    hf.save(tmp_path / 'm', cfg, random(cfg), source_dir=tmp_path / 'source')
