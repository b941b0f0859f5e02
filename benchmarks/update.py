"""How fast an update of GRPO is: prefix-shared, packed, padded, and TRL's.

  python benchmarks/update.py --json=update.json

The same random Qwen2, prompts, completions and advantages for all four, in
float32 on the CPU, one optimizer step (AdamW) at a time, in turns:

  shared   a prompt stands once, its completions branch from it (the default)
  packed   every completion brings its prompt; rows are filled
  padded   one completion a row, as wide as the widest
  trl      TRL's GRPOTrainer: its loss, backward and optimizer step

Useful tokens are those of completions: what the gradient is of.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
LR = 1e-6


def samples(args):
  """(prompts_Q, completions_QR, adv_QR); lengths are geometric."""
  rng = np.random.default_rng(0)
  draw = lambda n: rng.integers(2, args.vocab, n).astype(np.int32)
  lengths = rng.geometric(1 / args.mean, (args.groups, args.rollouts))
  lengths = np.clip(lengths, 8, args.limit)
  prompts = [draw(args.prompt) for _ in range(args.groups)]
  completions = [[draw(n) for n in row] for row in lengths]
  adv_QR = rng.normal(size=lengths.shape).astype(np.float32)
  return prompts, completions, adv_QR


def write_model(args, path):
  """A random Qwen2 of the shape asked for, in the Hugging Face format."""
  import torch
  import transformers

  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    vocab_size=args.vocab,
    hidden_size=args.width,
    intermediate_size=4 * args.width,
    num_hidden_layers=args.layers,
    num_attention_heads=args.width // 64,
    num_key_value_heads=max(args.width // 256, 1),
    tie_word_embeddings=True,
  )
  transformers.Qwen2ForCausalLM(config).save_pretrained(path)


def ours(args, path):
  """{name: (step, tokens computed)} of the three layouts."""
  import jax
  import jax.numpy as jnp
  import optax

  from crjax import branches, hf, objectives, optim, policy
  from crjax.sharding import make_mesh

  prompts, completions, adv_QR = samples(args)
  count = sum(len(c) for row in completions for c in row)
  made = [
    branches.Completion(
      q, prompts[q], c, np.zeros(len(c)), adv_QR[q, r], 1 / count
    )
    for q, row in enumerate(completions)
    for r, c in enumerate(row)
  ]
  widest = args.prompt + max(len(c.tokens) for c in made)
  group = max(args.prompt + sum(len(c) for c in row) for row in completions)
  length = max(-(-group // 128) * 128, widest)
  layouts = {
    'shared': {'length': length, 'chunks': branches.shared},
    'packed': {'length': length, 'chunks': branches.alone},
    # No two fit a row, if even the shortest does not fit beside the widest.
    'padded': {'length': widest, 'chunks': branches.alone},
  }
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  found = hf.inspect(path)
  rate = optax.constant_schedule(LR)
  optimizer = optim.make(
    'adamw', rate, betas=(0.9, 0.95), weight_decay=0.0, max_norm=1.0
  )

  def prepare(layout):
    batch = branches.pack([made], rows=1, **layout)
    with jax.set_mesh(mesh):
      state = optim.init_state(optimizer, hf.load(found, mesh), 0)
      update = policy.make_update(
        optimizer,
        rate,
        mesh,
        score=policy.make_score(
          found.cfg, temperature=1.0, dtype=jnp.float32, remat='none'
        ),
        loss=functools.partial(
          objectives.policy_loss,
          objective='clip',
          clip=(0.2, 0.28),
          correction='none',
          band=(0.0, 1.0),
          kl='k3',
          kl_coef=0.0,
        ),
        frozen=None,
        reference=None,
        old='now',
        minibatches=1,
        rows=1,
        entropy_target=0.0,
      )
    holder = {'state': state}

    def step():
      with jax.set_mesh(mesh):
        holder['state'], metrics = update(holder['state'], batch)
        return float(metrics['loss'])

    used = (batch.seq_BC > 0).any(1).sum()
    return step, int(used) * layout['length']

  return {name: prepare(layout) for name, layout in layouts.items()}


def theirs(args, path):
  """(step, tokens computed) of TRL's trainer on the same samples."""
  import datasets
  import tokenizers
  import torch
  import transformers
  import trl

  prompts, completions, adv_QR = samples(args)
  words = tokenizers.Tokenizer(
    tokenizers.models.WordLevel({'a': 0, 'b': 1}, 'a')
  )
  tok = transformers.PreTrainedTokenizerFast(
    tokenizer_object=words, pad_token='a', eos_token='b'
  )
  model = transformers.Qwen2ForCausalLM.from_pretrained(path)
  trainer = trl.GRPOTrainer(
    model,
    reward_funcs=lambda completions, **_: [0.0] * len(completions),
    args=trl.GRPOConfig(
      output_dir=str(path / 'trl'),
      per_device_train_batch_size=args.rollouts,
      num_generations=args.rollouts,
      max_completion_length=args.limit,
      use_cpu=True,
      bf16=False,
      gradient_checkpointing=False,
      report_to='none',
      disable_tqdm=True,
    ),
    train_dataset=datasets.Dataset.from_dict({'prompt': ['a']}),
    processing_class=tok,
  )
  trainer.current_gradient_accumulation_steps = args.groups
  optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
  widest = max(len(c) for row in completions for c in row)
  count = torch.tensor(sum(len(c) for row in completions for c in row))
  pad = lambda row: torch.tensor(
    np.stack([np.pad(c, (0, widest - len(c))) for c in row]), dtype=torch.long
  )

  def inputs(q):
    row = completions[q]
    lengths = torch.tensor([[len(c)] for c in row])
    prompt = torch.tensor(prompts[q], dtype=torch.long)
    return {
      'prompt_ids': prompt.repeat(args.rollouts, 1),
      'prompt_mask': torch.ones(args.rollouts, args.prompt, dtype=torch.long),
      'completion_ids': pad(row),
      'completion_mask': (torch.arange(widest) < lengths).long(),
      'advantages': torch.tensor(adv_QR[q]),
      'num_items_in_batch': count,
    }

  trainer.args.steps_per_generation = args.groups
  model.train()

  def step():
    total = 0.0
    for q in range(args.groups):
      loss = trainer.compute_loss(model, inputs(q))
      loss.backward()
      total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return total

  computed = args.groups * args.rollouts * (args.prompt + widest)
  return step, computed


def measure(steps, repeat: int):
  """{name: (losses, seconds)}: in turns, after one step each to warm up."""
  losses = {name: [step()] for name, (step, _) in steps.items()}
  seconds = {name: [] for name in steps}
  for _ in range(repeat):
    for name, (step, _) in steps.items():
      began = time.perf_counter()
      losses[name].append(step())
      seconds[name].append(time.perf_counter() - began)
  return {name: (losses[name], seconds[name]) for name in steps}


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--groups', type=int, default=1)
  parser.add_argument('--rollouts', type=int, default=8)
  parser.add_argument('--prompt', type=int, default=512)
  parser.add_argument('--mean', type=float, default=200.0)
  parser.add_argument('--limit', type=int, default=1024)
  parser.add_argument('--vocab', type=int, default=151936)
  parser.add_argument('--width', type=int, default=512)
  parser.add_argument('--layers', type=int, default=8)
  parser.add_argument('--repeat', type=int, default=3)
  parser.add_argument('--only', default='shared,packed,padded,trl')
  parser.add_argument('--json', help='also write the numbers to this file')
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as directory:
    path = pathlib.Path(directory)
    write_model(args, path)
    steps = ours(args, path)
    if 'trl' in args.only:
      steps['trl'] = theirs(args, path)
    steps = {k: x for k, x in steps.items() if k in args.only.split(',')}
    found = measure(steps, args.repeat)
  useful = sum(len(c) for row in samples(args)[1] for c in row)
  lines = []
  for name, (losses, seconds) in found.items():
    lines.append(
      {
        'layout': name,
        'computed_tokens': steps[name][1],
        'useful_tokens': useful,
        'seconds': seconds,
        'useful_tokens_per_s': useful / statistics.median(seconds),
        'first_loss': losses[0],
      }
    )
  print(
    f'{useful} useful tokens of {args.groups} x {args.rollouts} completions'
  )
  print('layout   computed tokens   s a step   useful tokens/s   first loss')
  for x in lines:
    print(
      f'{x["layout"]:8} {x["computed_tokens"]:15,} '
      f'{statistics.median(x["seconds"]):10.2f} '
      f'{x["useful_tokens_per_s"]:17.1f} {x["first_loss"]:12.6f}'
    )
  if args.json:
    shown = vars(args) | {'results': lines}
    pathlib.Path(args.json).write_text(json.dumps(shown, indent=2) + '\n')


if __name__ == '__main__':
  main()
