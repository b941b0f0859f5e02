"""A whole step of GRPO beside TRL's: same weights, tokens and rewards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tokenizers
import torch
import transformers

from configs.grpo_presets import PRESETS
from crjax import data, grpo, model, objectives, optim, policy, sampling
from crjax.sharding import make_mesh
from tests.conftest import load

Q, R, P, C, V = 3, 4, 5, 8, 40
PAD, EOS = 0, 1
LOSS = ('objective', 'clip', 'correction', 'band', 'kl', 'kl_coef')
LR = 0.5

# Our preset, and the settings that TRL gives the same estimator.
SAME = {
  'trl': {'loss_type': 'dapo'},
  'crjax': {
    'loss_type': 'dapo',
    'scale_rewards': 'batch',
    'epsilon_high': 0.28,
  },
  'dr-grpo': {'loss_type': 'dr_grpo', 'scale_rewards': 'none'},
  'gspo': {
    'loss_type': 'grpo',
    'importance_sampling_level': 'sequence',
    'epsilon': 3e-4,
    'epsilon_high': 4e-4,
  },
}


@pytest.fixture(scope='module')
def start(tmp_path_factory):
  """A tiny random Qwen2 on disk."""
  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=V,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    tie_word_embeddings=False,
    initializer_range=0.3,
  )
  path = tmp_path_factory.mktemp('trl') / 'start'
  transformers.Qwen2ForCausalLM(config).save_pretrained(path)
  return path


def sampled():
  """(Prompts, Rollout, rewards_QR) of a step; log-probs are filled in later."""
  rng = np.random.default_rng(0)
  mask_QP = np.arange(P) >= P - rng.integers(2, P + 1, (Q, 1))
  tokens_QP = (rng.integers(2, V, (Q, P)) * mask_QP).astype(np.int32)
  ids_Q = np.arange(Q, dtype=np.int32)
  length_B = rng.integers(2, C + 1, Q * R)
  mask_BT = np.arange(C) < length_B[:, None]
  tokens_BT = np.where(mask_BT, rng.integers(2, V, (Q * R, C)), PAD)
  tokens_BT[np.arange(Q * R), length_B - 1] = EOS
  rewards_QR = np.float32([[1, 0, 0, 1], [0.25, 1, 0, 0], [0, 1, 1, 1]])
  rolled = sampling.Rollout(
    tokens_BT.astype(np.int32),
    np.zeros((Q * R, C), np.float32),
    mask_BT,
    np.ones(Q * R, bool),
  )
  asked = data.Prompts(tokens_QP, mask_QP, ids_Q, [{}] * Q)
  return asked, rolled, rewards_QR


def trl_step(start, out, settings):
  """(loss, path of the updated weights) of TRL's trainer."""
  trl = pytest.importorskip('trl')
  datasets = pytest.importorskip('datasets')
  asked, rolled, rewards_QR = sampled()
  prompts = [f'prompt {q}' for q in range(Q)]
  tokens = lambda b: rolled.tokens_BT[b][rolled.mask_BT[b]].tolist()
  reward = {tuple(tokens(b)): rewards_QR.ravel()[b] for b in range(Q * R)}

  def rollout(prompts, trainer):
    seen = dict.fromkeys(range(Q), 0)
    ids, made = [], []
    for prompt in prompts:
      q = int(prompt.split()[1])
      ids.append(asked.tokens_QP[q][asked.mask_QP[q]].tolist())
      made.append(tokens(q * R + seen[q]))
      seen[q] += 1
    logprobs = [[0.0] * len(x) for x in made]
    return {'prompt_ids': ids, 'completion_ids': made, 'logprobs': logprobs}

  vocab = {f't{i}': i for i in range(V)}
  words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, 't2'))
  tok = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token='t0', eos_token='t1'
  )
  torch_model = transformers.Qwen2ForCausalLM.from_pretrained(start)
  sgd = torch.optim.SGD(torch_model.parameters(), lr=LR)
  constant = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)
  trainer = trl.GRPOTrainer(
    torch_model,
    reward_funcs=lambda completion_ids, **_: [
      float(reward[tuple(x)]) for x in completion_ids
    ],
    args=trl.GRPOConfig(
      output_dir=str(out),
      per_device_train_batch_size=Q * R,
      num_generations=R,
      max_completion_length=C,
      max_steps=1,
      max_grad_norm=0.0,
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      save_strategy='no',
      report_to='none',
      disable_tqdm=True,
      **settings,
    ),
    train_dataset=datasets.Dataset.from_dict({'prompt': prompts}),
    processing_class=tok,
    optimizers=(sgd, constant),
    rollout_func=rollout,
  )
  losses, compute = [], trainer.compute_loss
  trainer.compute_loss = lambda *args, **kwargs: (
    losses.append(compute(*args, **kwargs)) or losses[-1]
  )
  trainer.train()
  torch_model.save_pretrained(out / 'after')
  (loss,) = losses
  return loss.item(), out / 'after'


def our_step(cfg, params, preset):
  """(loss, updated parameters) of the same step here."""
  choices = PRESETS[preset]
  asked, rolled, rewards_QR = sampled()
  score = policy.make_score(
    cfg, temperature=1.0, dtype=jnp.float32, remat='none'
  )
  logp_BT, _ = model.score(  # The sampler's numerics are the trainer's.
    cfg,
    params,
    np.hstack([np.repeat(asked.tokens_QP, R, 0), rolled.tokens_BT]),
    np.hstack([np.repeat(asked.mask_QP, R, 0), rolled.mask_BT]),
    start=P,
    dtype=jnp.float32,
  )
  rolled = rolled._replace(logp_BT=np.asarray(logp_BT))
  advantage = grpo.make_advantage(
    choices['advantage'], eps=choices['advantage_eps'], limit=C, overlong=0
  )
  batch = grpo.make_batch(
    asked,
    rolled,
    rewards_QR,
    advantage(rewards_QR, rolled),
    groups=Q,
    minibatches=1,
    length=P + 2 * C,
    rows=2,
    aggregation=choices['aggregation'],
    limit=C,
    everything=False,
    mask_truncated=False,
  )
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  rate = optax.constant_schedule(LR)
  with jax.set_mesh(mesh):
    update = policy.make_update(
      optax.sgd(rate),
      rate,
      mesh,
      score=score,
      loss=functools.partial(
        objectives.policy_loss, **{k: choices[k] for k in LOSS}
      ),
      frozen=None,
      reference=None,
      old='now',
      minibatches=1,
      rows=2,
      entropy_target=0.0,
    )
    state = optim.init_state(
      optax.sgd(rate), jax.tree.map(jnp.asarray, params), 0
    )
    state, metrics = update(state, batch)
  return float(metrics['loss']), jax.device_get(state['params'])


@pytest.mark.parametrize('preset', SAME)
def test_a_step_has_the_loss_and_the_direction_of_trl(start, tmp_path, preset):
  cfg, before = load(start)
  want, path = trl_step(start, tmp_path, SAME[preset])
  got, after = our_step(cfg, before, preset)
  assert got == pytest.approx(want, abs=1e-4)
  moved = lambda now: np.concatenate(
    [
      (a - b).ravel()
      for a, b in zip(
        jax.tree.leaves(now), jax.tree.leaves(before), strict=True
      )
    ]
  )
  ours, theirs = moved(after), moved(load(path)[1])
  cosine = ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs)
  assert cosine > 0.999
  assert np.linalg.norm(ours) == pytest.approx(np.linalg.norm(theirs), rel=1e-3)
