"""How fast supervised fine-tuning is, and how much memory it takes.

  python benchmarks/sft.py --json=sft.json --peers=trl,tunix \
    --peer_python=DIR/bin/python

The same examples of ragged lengths, the same tiny Qwen2 with the vocabulary of
the real one (151,936), float32, AdamW, one pass, each trainer in a process of
its own. A peer runs once with its defaults and once with the best settings that
it offers here (trl-best, tunix-best). Its python needs trl or google-tunix; no
peer runs without --peers. Tokens are those of the examples, padding left out;
the first two steps, which compile, are not timed. Peak is the largest resident
memory of the process, imports and all.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
SHAPE = {'V': 151936, 'L': 2, 'D': 128, 'F': 512, 'N': 4, 'K': 2, 'H': 32}
LENGTH = 256  # tokens; the longest example
BATCH = 8  # examples a step, about as many in packed rows
COMPILING = 2  # steps
RATE = 1e-4
WIDTHS = range(64, LENGTH + 1, 64)
TRAINERS = {'trl': ('trl', 'trl-best'), 'tunix': ('tunix', 'tunix-best')}


def examples(steps: int):
  """(tokens, where the completion starts), as ragged as questions and answers
  of code: half as long as the longest at the median's 80 tokens and less."""
  rng = np.random.default_rng(0)
  sizes = np.exp(rng.normal(np.log(80), 0.6, BATCH * (steps + COMPILING)))
  sizes = np.clip(sizes, 16, LENGTH).astype(int)
  draw = lambda n: rng.integers(10, SHAPE['V'], n).tolist()
  return [(draw(n), int(n * rng.uniform(0.3, 0.7))) for n in sizes]


def measured(times, tokens, settings, compiling=COMPILING):
  """A child's answer: `times` are when steps ended, `tokens` what they read."""
  seconds = times[-1] - times[compiling - 1]
  used = sum(tokens[compiling : len(times)])
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
  steps = len(times) - compiling
  found = {'tokens_per_s': used / seconds, 'seconds_a_step': seconds / steps}
  print(json.dumps(found | {'peak': peak, 'steps': steps, 'what': settings}))


def run_crjax(steps):
  import jax
  import jax.numpy as jnp
  import optax

  from crjax import data, model, optim, sft
  from crjax.examples import Example
  from crjax.sharding import make_mesh

  found = [Example(np.array(x, np.int32), n) for x, n in examples(steps)]
  rows = data.pack(found, 2 * LENGTH)
  batches = data.Batches(
    [rows],
    lambda some: data.lay_out(some, 2 * LENGTH, 0),
    batch=2,
    seed=0,
    names=['the benchmark'],
  )
  cfg = model.Config(**SHAPE, tied=True)
  optimizer = optim.make(
    'adamw', RATE, betas=(0.9, 0.999), weight_decay=0.0, max_norm=1.0
  )
  mesh = make_mesh((1, 1, 1))
  times, tokens = [], []

  def log(step, metrics, **counts):
    times.append(time.monotonic())
    tokens.append(counts['tokens'])

  with jax.set_mesh(mesh):
    params = jax.jit(model.init, static_argnums=0)(cfg, jax.random.key(0))
    start = lambda params: optim.init_state(optimizer, params, 0)
    state = jax.jit(start, donate_argnums=0)(params)
    update = sft.make_update(
      cfg,
      optimizer,
      optax.constant_schedule(RATE),
      frozen=None,
      micro=1,
      dtype=jnp.float32,
      remat='full',
      chunk=32,
    )
    sft.run(
      state,
      batches,
      mesh=mesh,
      update=update,
      count=lambda batch: sft.count(cfg, batch),
      log=log,
      save=lambda *_: None,
      due=lambda step: False,
      steps=len(rows) // 2,
    )
  times, tokens = times[: steps + COMPILING], tokens[: steps + COMPILING]
  measured(times, tokens, 'rows of 512 packed, 32 tokens of logits at a time')


def run_trl(steps, best):
  import datasets
  import tokenizers
  import torch
  import transformers
  import trl

  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=SHAPE['V'],
    num_hidden_layers=SHAPE['L'],
    hidden_size=SHAPE['D'],
    intermediate_size=SHAPE['F'],
    num_attention_heads=SHAPE['N'],
    num_key_value_heads=SHAPE['K'],
    tie_word_embeddings=True,
  )
  model = transformers.Qwen2ForCausalLM(config)
  words = tokenizers.models.WordLevel({'<e>': 0, '<p>': 1}, unk_token='<e>')
  tok = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words),
    eos_token='<e>',
    pad_token='<p>',
  )
  found = examples(steps)
  sizes = [len(tokens) for tokens, _ in found]
  table = datasets.Dataset.from_list(
    [
      {'input_ids': x, 'completion_mask': [0] * n + [1] * (len(x) - n)}
      for x, n in found
    ]
  )
  settings = {
    'per_device_train_batch_size': BATCH,
    'num_train_epochs': 1,
    'learning_rate': RATE,
    'use_cpu': True,
    'report_to': [],
    'save_strategy': 'no',
    'disable_tqdm': True,
    'bf16': False,  # Slower than float32 on most CPUs, and not the same work.
    'train_sampling_strategy': 'sequential',
  }
  if best:
    settings |= {
      'gradient_checkpointing': False,
      'optim': 'adamw_torch_fused',
      'packing': True,
      'max_length': 2 * LENGTH,
      'per_device_train_batch_size': 2,
    }
  times, tokens = [], []

  class Clock(transformers.TrainerCallback):
    def on_step_end(self, *_, **__):
      times.append(time.monotonic())

  with tempfile.TemporaryDirectory() as out:
    trainer = trl.SFTTrainer(
      model=model,
      args=trl.SFTConfig(output_dir=out, **settings),
      train_dataset=table,
      processing_class=tok,
      callbacks=[Clock()],
    )
    if best:  # Rows as they were packed.
      sizes = [len(row['input_ids']) for row in trainer.train_dataset]
    trainer.train()
  size = settings['per_device_train_batch_size']
  tokens = [sum(sizes[i : i + size]) for i in range(0, len(sizes), size)]
  measured(times[: len(tokens)], tokens, settings)


def run_tunix(steps, best):
  from flax import nnx
  import jax
  import jax.numpy as jnp
  import optax
  from tunix.models.qwen2 import model as qwen
  from tunix.sft import peft_trainer

  config = qwen.ModelConfig(
    num_layers=SHAPE['L'],
    vocab_size=SHAPE['V'],
    embed_dim=SHAPE['D'],
    hidden_dim=SHAPE['F'],
    num_heads=SHAPE['N'],
    head_dim=SHAPE['H'],
    num_kv_heads=SHAPE['K'],
    rope_theta=1_000_000,
    norm_eps=1e-6,
    use_tied_embedding=True,
  )
  mesh = jax.make_mesh((1, 1), ('fsdp', 'tp'))
  found = examples(steps)
  times, tokens = [], []

  def batches():
    for i in range(0, len(found), BATCH):
      some = found[i : i + BATCH]
      longest = max(len(x) for x, _ in some)
      # Its best without packing, which it has not: the width of the batch, in
      # steps of 64, of which there are as many as steps that compile.
      width = -(-longest // 64) * 64 if best else LENGTH
      if best and len(times) < len(WIDTHS):
        width = WIDTHS[len(times)]
        some = [(x[:width], min(n, width)) for x, n in some]
      ids, mask = np.zeros((2, BATCH, width), np.int32)
      for row, (x, n) in enumerate(some):
        ids[row, : len(x)] = x
        mask[row, n : len(x)] = 1
      tokens.append(sum(len(x) for x, _ in some))
      times.append(time.monotonic())
      yield peft_trainer.TrainingInput(input_tokens=ids, input_mask=mask)

  def inputs(x):
    B, T = x.input_tokens.shape
    causal = jnp.tril(jnp.ones((T, T), bool))
    return {
      'input_tokens': x.input_tokens,
      'input_mask': x.input_mask,
      'positions': jnp.broadcast_to(jnp.arange(T), (B, T)),
      'attention_mask': jnp.broadcast_to(causal, (B, T, T)),
    }

  with jax.set_mesh(mesh):
    trainer = peft_trainer.PeftTrainer(
      qwen.Qwen2(config, rngs=nnx.Rngs(0)),
      optax.adamw(RATE),
      peft_trainer.TrainingConfig(
        eval_every_n_steps=10**6, max_steps=steps + COMPILING
      ),
    ).with_gen_model_input_fn(inputs)
    trainer.train(batches())
    jax.block_until_ready(nnx.state(trainer.model))
  times = [*times[1:], time.monotonic()]
  if best:
    measured(times, tokens, 'widths of 64', compiling=len(WIDTHS))
  else:
    measured(times, tokens, 'padded to the longest')


CHILDREN = {
  'crjax': run_crjax,
  'trl': lambda steps: run_trl(steps, False),
  'trl-best': lambda steps: run_trl(steps, True),
  'tunix': lambda steps: run_tunix(steps, False),
  'tunix-best': lambda steps: run_tunix(steps, True),
}


def measure(name, args):
  """What a child prints last, or why there is nothing."""
  python = sys.executable if name == 'crjax' else args.peer_python
  command = [python, __file__, f'--child={name}', f'--steps={args.steps}']
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'TOKENIZERS_PARALLELISM': 'false'}
  done = subprocess.run(command, env=env, capture_output=True, text=True)
  if done.returncode:
    return {'error': done.stderr.strip().splitlines()[-1]}
  return json.loads(done.stdout.strip().splitlines()[-1])


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--json')
  parser.add_argument('--steps', type=int, default=8)
  parser.add_argument('--peers', default='')
  parser.add_argument('--peer_python', default=sys.executable)
  parser.add_argument('--child', choices=CHILDREN)
  args = parser.parse_args()
  if args.child:
    CHILDREN[args.child](args.steps)
    return
  peers = [name for name in args.peers.split(',') if name]
  names = ['crjax', *(n for peer in peers for n in TRAINERS[peer])]
  found = {name: measure(name, args) for name in names}
  ours = found['crjax']
  print('| trainer | tokens/s | crjax is | s a step | peak GB | crjax needs |')
  print('| --- | --- | --- | --- | --- | --- |')
  for name, x in found.items():
    if 'error' in x:
      print(f'| {name} | {x["error"]} | | | | |')
      continue
    print(
      f'| {name} | {x["tokens_per_s"]:,.0f} '
      f'| {ours["tokens_per_s"] / x["tokens_per_s"]:.2f} times '
      f'| {x["seconds_a_step"]:.2f} | {x["peak"] / 1e9:.2f} '
      f'| {ours["peak"] / x["peak"]:.2f} of it |'
    )
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
  main()
