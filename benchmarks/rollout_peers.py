"""The peers of benchmarks/rollout.py, run by their own interpreter.

  PEER_PYTHON benchmarks/rollout_peers.py transformers --work=DIR --batch=128

Imports nothing of crjax. Reads DIR/work.npz (prompts, lengths) and the model in
DIR/model; samples every completion at T = 1 from the whole distribution, in
batches of `--batch` rows; prints one line of JSON. A completion ends where its
length says: the logit of the end token is the lowest before and the highest
then, which costs one column of the logits a step.
"""

import argparse
import json
import pathlib
import resource
import time

import numpy as np

HIGH = 1e30


def transformers(work, args):
  """`generate` of Transformers: SDPA, dynamic cache, num_return_sequences."""
  import torch
  from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
  )

  torch.set_num_threads(args.threads)
  net = AutoModelForCausalLM.from_pretrained(
    args.work / 'model', dtype=torch.float32, attn_implementation='sdpa'
  ).eval()
  calls = []
  net.register_forward_pre_hook(
    lambda _, inputs, kwargs: calls.append(kwargs['input_ids'].numel()),
    with_kwargs=True,
  )
  P = work['prompts_QP'].shape[1]
  R = work['length_QR'].shape[1]

  class Until(LogitsProcessor):
    def __init__(self, length_B):
      self.last_B = torch.tensor(length_B) + P - 1

    def __call__(self, input_ids, scores):
      due_B = self.last_B == input_ids.shape[1]
      scores[:, work['eos']] = torch.where(due_B, HIGH, -HIGH)
      return scores

  def sample(questions, steps):
    config = GenerationConfig(
      do_sample=True,
      temperature=1.0,
      top_k=0,
      top_p=1.0,
      num_return_sequences=R,
      max_new_tokens=steps,
      eos_token_id=work['eos'],
      pad_token_id=work['pad'],
    )
    length_B = work['length_QR'][questions].ravel()
    prompts = torch.tensor(work['prompts_QP'][questions], dtype=torch.long)
    with torch.inference_mode():
      out = net.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        generation_config=config,
        logits_processor=LogitsProcessorList([Until(length_B)]),
      )
    tokens_BT = out[:, P:].numpy()
    return (tokens_BT != work['pad']).sum(), len(length_B), tokens_BT.shape[1]

  sample(slice(0, 1), 4)
  calls.clear()
  found = measure(work, args, sample)
  whole = args.batch * P
  found['prefill_tokens'] = sum(n for n in calls if n >= whole)
  # Every run of `measure` prefills all: those of `prefill_seconds` as well.
  found['prefill_tokens'] //= 1 + len(found['seconds'])
  return found


def tunix(work, args):
  """The sampler that google-tunix uses for its own `vanilla` rollouts."""
  from flax import nnx
  import jax
  import jax.numpy as jnp
  from tunix.generate import sampler as tunix_sampler
  from tunix.models.qwen2 import model as qwen2
  from tunix.models.qwen2 import params as qwen2_params

  compiles = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **_: (
      compiles.append(seconds) if 'backend_compile' in name else None
    )
  )
  P = work['prompts_QP'].shape[1]

  class Due(nnx.Variable):
    """The position whose logits end each row."""

  class Until(qwen2.Qwen2):
    def __call__(self, tokens, positions, cache, attention_mask=None, **kwargs):
      z_BTV, cache = super().__call__(
        tokens, positions, cache, attention_mask, **kwargs
      )
      end_B = jnp.where(positions[:, -1] == self.due_B[...], HIGH, -HIGH)
      return z_BTV.at[:, -1, work['eos']].set(end_B), cache

  hf = json.loads((args.work / 'model' / 'config.json').read_text())
  config = qwen2.ModelConfig(
    num_layers=hf['num_hidden_layers'],
    vocab_size=hf['vocab_size'],
    embed_dim=hf['hidden_size'],
    hidden_dim=hf['intermediate_size'],
    num_heads=hf['num_attention_heads'],
    head_dim=hf['head_dim'],
    num_kv_heads=hf['num_key_value_heads'],
    rope_theta=hf['rope_theta'],
    norm_eps=hf['rms_norm_eps'],
    use_tied_embedding=hf['tie_word_embeddings'],
  )
  net = qwen2_params.create_model_from_safe_tensors(
    str(args.work / 'model'), config
  )
  net.__class__ = Until
  net.due_B = Due(jnp.zeros(args.batch, jnp.int32))

  class Ids:
    """Prompts arrive as digits: the sampler takes strings only."""

    encode = staticmethod(lambda text: [int(t) for t in text.split()])
    decode = staticmethod(lambda ids: ' '.join(map(str, ids)))
    bos_id = staticmethod(lambda: 0)
    eos_id = staticmethod(lambda: work['eos'])
    pad_id = staticmethod(lambda: work['pad'])

  sampler = tunix_sampler.Sampler(
    net,
    Ids(),
    tunix_sampler.CacheConfig(
      cache_size=P + args.longest,
      num_layers=config.num_layers,
      num_kv_heads=config.num_kv_heads,
      head_dim=config.head_dim,
    ),
  )

  def sample(questions, steps, length_QR=work['length_QR']):
    length_B = length_QR[questions].ravel()
    R = length_QR.shape[1]
    net.due_B[...] = jnp.asarray(length_B + P - 2, jnp.int32)
    sampler.transformer_state = nnx.variables(net)
    rows = np.repeat(work['prompts_QP'][questions], R, axis=0)
    out = sampler(
      [' '.join(map(str, row)) for row in rows],
      max_generation_steps=steps,
      max_prompt_length=P,
      temperature=1.0,
      top_p=1.0,
      seed=int(length_B.sum()),
    )
    # The end token is sampled, then cut off on the host.
    tokens = sum(min(len(t) + 1, steps) for t in out.tokens)
    return tokens, len(length_B), int(length_B.max())

  few = slice(0, args.batch // work['length_QR'].shape[1])
  for steps in (1, args.longest):
    sample(few, steps, np.full_like(work['length_QR'], 2))
  before = len(compiles)
  found = measure(work, args, sample)
  return found | {
    'prefill_tokens': work['length_QR'].size * P,
    'compiles_before': before,
    'compile_seconds': sum(compiles[:before]),
    'compiles': len(compiles) - before,
  }


def measure(work, args, sample):
  """Seconds of all prefills, then of the whole work, `--repeat` times."""
  Q, R = work['length_QR'].shape
  step = args.batch // R
  parts = [slice(i, i + step) for i in range(0, Q, step)]

  def run(steps):
    began = time.monotonic()
    done = [sample(part, steps) for part in parts]
    return time.monotonic() - began, done

  prefill, _ = run(1)
  runs = [run(args.longest) for _ in range(args.repeat)]
  done = runs[-1][1]
  return {
    'seconds': [seconds for seconds, _ in runs],
    'prefill_seconds': prefill,
    'tokens': int(sum(n for n, _, _ in done)),
    'steps': sum(steps for _, _, steps in done),
    'row_steps': sum(rows * steps for _, rows, steps in done),
  }


def read_work(path):
  with np.load(path / 'work.npz') as file:
    work = dict(file)
  return work | {'eos': int(work['eos']), 'pad': int(work['pad'])}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('peer', choices=['transformers', 'tunix'])
  parser.add_argument('--work', type=pathlib.Path, required=True)
  parser.add_argument('--batch', type=int, required=True)
  parser.add_argument('--longest', type=int, required=True)
  parser.add_argument('--repeat', type=int, default=1)
  parser.add_argument('--threads', type=int, default=1)
  parser.add_argument('--memory_gb', type=float, default=10)
  args = parser.parse_args()
  limit = int(args.memory_gb * 2**30)
  resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
  began = time.monotonic()
  run = {'transformers': transformers, 'tunix': tunix}[args.peer]
  found = run(read_work(args.work), args)
  usage = resource.getrusage(resource.RUSAGE_SELF)
  found['peak_rss'] = usage.ru_maxrss << 10
  found['wall_seconds'] = time.monotonic() - began
  print(json.dumps(found))


if __name__ == '__main__':
  main()
