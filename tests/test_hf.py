import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from crjax import hf, model, sampling

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


def theirs(shape):
  """A random model of Transformers; biases and scales random too."""
  config = BASE | SHAPES[shape]
  if config['model_type'] == 'qwen3':
    config = {'head_dim': 12} | config  # Not width / heads.
  kind = config.pop('model_type')
  made = transformers.AutoConfig.for_model(kind, **config)
  made.rope_parameters = {'rope_type': 'default', 'rope_theta': 5000.0}
  torch.manual_seed(0)
  net = transformers.AutoModelForCausalLM.from_config(made)
  with torch.no_grad():
    for weight in net.parameters():
      weight.add_(0.1 * torch.randn_like(weight))
  return net.eval()


def their_logits(net, tokens_BT):
  with torch.no_grad():
    return net(torch.tensor(tokens_BT).long()).logits.numpy()


def our_logits(cfg, params, tokens_BT):
  @jax.jit
  def run(params, tokens_BT, valid_BT):
    x_BTD = model.forward(cfg, params, tokens_BT, valid_BT, dtype=jnp.float32)
    return model.logits(params, x_BTD)

  return np.asarray(run(params, tokens_BT, np.ones_like(tokens_BT, bool)))


def random(cfg):
  init = jax.jit(model.init, static_argnums=0)
  return jax.device_get(init(cfg, jax.random.key(0)))


def tokens(B=3, T=17):
  return RNG.integers(0, 97, (B, T)).astype(np.int32)


@pytest.mark.parametrize('shape', SHAPES)
def test_logits_are_those_of_transformers(shape, tmp_path):
  net, tokens_BT = theirs(shape), tokens()
  net.save_pretrained(tmp_path)
  cfg, params = hf.load(tmp_path)
  ours = our_logits(cfg, params, tokens_BT)
  assert np.abs(ours - their_logits(net, tokens_BT)).max() < 1e-4


@pytest.mark.parametrize('shape', SHAPES)
def test_what_we_save_transformers_reads(shape, tmp_path):
  net, tokens_BT = theirs(shape), tokens()
  net.save_pretrained(tmp_path / 'theirs')
  cfg, params = hf.load(tmp_path / 'theirs')
  hf.save(tmp_path / 'ours', cfg, params, tokenizer_dir=None)
  again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  want = their_logits(net, tokens_BT)
  np.testing.assert_array_equal(their_logits(again, tokens_BT), want)
  read_cfg, read = hf.load(tmp_path / 'ours')
  assert read_cfg == cfg
  jax.tree.map(np.testing.assert_array_equal, read, params)


def test_greedy_equals_transformers_token_for_token(tmp_path):
  net = theirs('qwen3-untied')
  net.save_pretrained(tmp_path)
  cfg, params = hf.load(tmp_path)
  prompts = tokens(B=20, T=8)
  sample = sampling.make(cfg, rollouts=1, steps=24, stop_ids=(), pad_id=0)
  rolled = sample(
    model.unstack(params, jnp.float32),
    prompts,
    np.ones_like(prompts, bool),
    np.arange(20, dtype=np.int32),
    jax.random.key(0),
    0.0,
  )
  with torch.no_grad():
    want = net.generate(
      torch.tensor(prompts).long(),
      attention_mask=torch.ones(prompts.shape),
      do_sample=False,
      max_new_tokens=24,
      eos_token_id=None,
      pad_token_id=0,
    )
  np.testing.assert_array_equal(rolled.tokens_BT, want[:, 8:].numpy())


def test_the_published_weights_give_the_published_logits(assets):
  path = assets / 'weights' / 'stories260k-qwen2'
  cfg, params = hf.load(path)
  golden = np.load(path / 'golden_logits_first64.npz')
  tokens_BT = golden['input_ids'].reshape(1, -1)
  got = our_logits(cfg, params, tokens_BT)[0]
  np.testing.assert_allclose(got, golden['logits'].squeeze(), atol=1e-4)


def test_every_real_config_is_read_and_written(assets):
  for path in sorted((assets / 'configs').iterdir()):
    real = hf.read_json(path / 'config.json')
    cfg = hf.config_from_hf(real)
    ours = hf.config_to_hf(cfg)
    assert hf.config_from_hf(ours) == cfg
    for field in ('vocab_size', 'hidden_size', 'tie_word_embeddings'):
      assert ours[field] == real[field]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'model_type': 'llama'}, "model_type 'llama'"),
    ({'model_type': 'qwen3_moe'}, 'qwen3_moe'),
    ({'use_sliding_window': True}, 'use_sliding_window'),
    ({'rope_scaling': {'type': 'yarn', 'factor': 4}}, 'rope_scaling'),
    ({'quantization_config': {'bits': 4}}, 'quantization_config'),
    ({'hidden_act': 'gelu'}, 'hidden_act'),
    (
      {'rope_scaling': None, 'rope_parameters': {'rope_type': 'yarn'}},
      "rope_parameters = .*'yarn'.* have rope_type 'default'",
    ),
    ({'layer_types': ['full_attention', 'sliding_attention']}, 'layer_types'),
    ({'model_type': 'qwen3', 'attention_bias': True}, 'attention_bias'),
    ({'hidden_size': None}, 'hidden_size = None must be'),
    ({'vocab_size': '97'}, "vocab_size = '97' must be"),
  ],
)
def test_what_is_not_supported_is_refused_by_name(change, message):
  config = BASE | SHAPES['qwen2-tied'] | change
  with pytest.raises(ValueError, match=message):
    hf.config_from_hf(config)


@pytest.fixture
def saved(tmp_path):
  cfg = hf.config_from_hf(BASE | SHAPES['qwen2-tied'])
  params = random(cfg)
  hf.save(tmp_path / 'm', cfg, params, tokenizer_dir=None)
  return tmp_path / 'm'


def test_missing_and_unknown_tensors_are_named(saved):
  file = saved / 'model.safetensors'
  found = safetensors.numpy.load_file(file)
  first = dict(list(found.items())[1:])
  safetensors.numpy.save_file(first, file)
  with pytest.raises(ValueError, match='lacks 1 tensors'):
    hf.load(saved)
  safetensors.numpy.save_file(found | {'odd.weight': np.zeros(1)}, file)
  with pytest.raises(ValueError, match=r"unexpected tensors: \['odd.weight'\]"):
    hf.load(saved)


def test_a_wrong_shape_is_named(saved):
  file = saved / 'model.safetensors'
  found = safetensors.numpy.load_file(file)
  found['model.norm.weight'] = np.zeros(5, np.float32)
  safetensors.numpy.save_file(found, file)
  with pytest.raises(ValueError, match=r'model\.norm\.weight in .*\(5,\)'):
    hf.load(saved)


def test_a_wrong_shape_names_its_layer(saved):
  file = saved / 'model.safetensors'
  name = 'model.layers.2.mlp.up_proj.weight'
  wrong = {name: np.zeros((3, 4), np.float32)}
  safetensors.numpy.save_file(safetensors.numpy.load_file(file) | wrong, file)
  with pytest.raises(ValueError, match=rf'{name} in .*shape \(3, 4\)'):
    hf.load(saved)


def test_an_index_that_does_not_fit_its_files_is_named(saved):
  index, file = saved / 'model.safetensors.index.json', 'model.safetensors'
  found = safetensors.numpy.load_file(saved / file)
  where = dict.fromkeys(found, file)
  write = lambda content: index.write_text(json.dumps(content))
  write({'weight_map': where})
  hf.load(saved)
  write({'weight_map': where | {'model.norm.weight': 'gone.safetensors'}})
  with pytest.raises(FileNotFoundError, match=r'gone\.safetensors'):
    hf.load(saved)
  write({'weight_map': where})
  del found['model.norm.weight']
  safetensors.numpy.save_file(found, saved / file)
  with pytest.raises(ValueError, match=r'lacks model\.norm\.weight'):
    hf.load(saved)
  write({})
  with pytest.raises(ValueError, match='lacks the field "weight_map"'):
    hf.load(saved)


def test_damaged_and_missing_files_are_named(saved, tmp_path):
  file = saved / 'model.safetensors'
  file.write_bytes(file.read_bytes()[:1000])
  with pytest.raises(ValueError, match=r'model\.safetensors is damaged'):
    hf.load(saved)
  file.unlink()
  with pytest.raises(FileNotFoundError, match=r'no model\.safetensors'):
    hf.load(saved)
  (saved / 'config.json').write_text('{')
  with pytest.raises(ValueError, match=r'config\.json is not JSON'):
    hf.load(saved)
  (saved / 'config.json').write_text('[]')
  with pytest.raises(ValueError, match=r'config\.json holds no JSON object'):
    hf.load(saved)
  with pytest.raises(FileNotFoundError, match='not a Hugging Face'):
    hf.load(tmp_path / 'nothing')


def test_a_save_that_fails_leaves_what_was_there(saved, monkeypatch):
  cfg, params = hf.load(saved)
  before = (saved / 'model.safetensors').read_bytes()

  def full(*_):
    raise OSError('no space left on device')

  monkeypatch.setattr(hf, '_write_tensors', full)
  with pytest.raises(OSError, match='no space left'):
    hf.save(saved, cfg, params, tokenizer_dir=None)
  assert [p.name for p in saved.parent.iterdir()] == [saved.name]
  assert (saved / 'model.safetensors').read_bytes() == before


def test_no_key_value_heads_means_one_each():
  config = BASE | SHAPES['qwen2-tied'] | {'num_key_value_heads': None}
  assert hf.config_from_hf(config).K == config['num_attention_heads']


def test_large_models_are_sharded_with_an_index(tmp_path, monkeypatch):
  cfg = hf.config_from_hf(BASE | SHAPES['qwen2-untied'])
  params = random(cfg)
  monkeypatch.setattr(hf, 'SHARD_BYTES', 20_000)
  hf.save(tmp_path / 'm', cfg, params, tokenizer_dir=None, dtype='bfloat16')
  index = json.loads((tmp_path / 'm/model.safetensors.index.json').read_text())
  assert len(set(index['weight_map'].values())) > 2
  _, read = hf.load(tmp_path / 'm')
  half = jax.tree.map(
    lambda x: x.astype(hf.DTYPES['bfloat16']).astype(np.float32), params
  )
  jax.tree.map(np.testing.assert_array_equal, read, half)
  transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'm')


def test_a_mix_of_qwen2_and_qwen3_has_no_form():
  cfg = model.Config(V=8, L=1, D=8, F=8, N=2, K=1, H=4, qk_norm=True)
  with pytest.raises(ValueError, match='neither Qwen2 nor Qwen3'):
    hf.config_to_hf(cfg)
