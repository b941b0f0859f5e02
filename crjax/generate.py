"""Continues raw prompts of a JSONL file with a model from a directory.

  python -m crjax.generate --model=DIR --prompts=in.jsonl --out=out.jsonl \\
      --temperature=0 --max_new_tokens=200

A line is {"prompt": text} or {"prompt_ids": [...]}, which counts where both are
given; other keys are carried over. No chat template is applied. Each line of
the output adds "prompt_ids", "ids" (the new tokens, an end token included) and
"text" (null where the model has no tokenizer).
"""

import json
import os
import pathlib
import re
import sys

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from crjax import data, hf, sampling, tokenizer
from crjax.sharding import gather, make_mesh, put

FLAGS = flags.FLAGS
WIDTH = 64  # Prompts are padded to multiples of this: few shapes to compile.
DTYPES = {'bfloat16': jnp.bfloat16, 'float32': jnp.float32}


def read_prompts(path, tok, vocabulary: int) -> list[dict]:
  """The lines of a prompt file, each with its "prompt_ids".

  Raises ValueError naming the line and the field that is wrong.
  """
  try:
    found = path.read_text('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(f'{path} is not UTF-8: {error}') from error
  lines = []  # Only \n ends one: a string may hold what splitlines() cuts at.
  for number, text in enumerate(found.split('\n'), start=1):
    where = f'{path}, line {number}'
    if not text.strip():
      continue
    try:
      line = json.loads(text)
    except ValueError as error:
      raise ValueError(f'{where}: not JSON: {error}') from error
    if not isinstance(line, dict) or not {'prompt', 'prompt_ids'} & line.keys():
      raise ValueError(f'{where}: needs a "prompt" or a "prompt_ids" field')
    field = 'prompt_ids' if 'prompt_ids' in line else 'prompt'
    if field == 'prompt':
      line['prompt_ids'] = _encode(line['prompt'], tok, where)
    _check(line['prompt_ids'], vocabulary, f'{where}: field "{field}"')
    lines.append(line)
  if not lines:
    raise ValueError(f'{path} holds no prompts')
  return lines


def generate(cfg, params, lines, *, mesh, stop_ids, steps, batch, key, knobs):
  """Lists of new tokens, one a line and in that order.

  Noise is a function of (key, line number, position): not of the batch.
  """
  sample = sampling.make(
    cfg, rollouts=1, steps=steps, stop_ids=stop_ids, pad_id=0
  )
  ids = [line['prompt_ids'] for line in lines]
  order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
  new, size = [None] * len(ids), min(batch, len(ids))
  for start in range(0, len(order), size):
    rows = order[start : start + size]
    full = rows + rows[:1] * (size - len(rows))  # The last batch is filled up.
    width = -(-len(ids[rows[-1]]) // WIDTH) * WIDTH
    prompts = data.left_pad([ids[i] for i in full], width, 0)
    there = put(mesh, (*prompts, np.array(full, np.int32)))
    rolled = gather(sample(params, *there, key, *knobs))
    for i, row in enumerate(rows):  # Not those that filled the batch up.
      new[row] = rolled.tokens_BT[i][rolled.mask_BT[i]].tolist()
    print(f'generate: {start + len(rows)} of {len(ids)} prompts', flush=True)
  return new


def end_ids(path) -> tuple[int, ...]:
  """The end tokens that a directory declares, none if it declares none."""
  for name in ('generation_config.json', 'config.json'):
    if (path / name).exists():
      found = hf.read_json(path / name).get('eos_token_id')
      if found is not None:
        return tuple(found) if isinstance(found, list) else (found,)
  return ()


def write(path, lines):
  """Writes JSONL atomically; pure ASCII, so that any string can be written."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(''.join(json.dumps(x) + '\n' for x in lines))
  os.replace(temporary, path)


def _encode(prompt, tok, where):
  if tok is None:
    raise ValueError(f'{where}: the model has no tokenizer; give "prompt_ids"')
  if not isinstance(prompt, str):
    raise ValueError(f'{where}: field "prompt" must be a string')
  if re.search('[\ud800-\udfff]', prompt):
    raise ValueError(f'{where}: field "prompt" holds half a surrogate pair')
  return tok(prompt, add_special_tokens=False)['input_ids']


def _check(ids, vocabulary, where):
  whole = isinstance(ids, list) and all(type(i) is int for i in ids)
  if not whole or not ids:
    raise ValueError(f'{where} must be one token or more')
  if strange := [i for i in ids if not 0 <= i < vocabulary]:
    raise ValueError(
      f'{where}: token {strange[0]} is outside the vocabulary, '
      f'0..{vocabulary - 1}'
    )


def run(f):
  """What the command does, given its parsed flags."""
  out = pathlib.Path(f.out)
  if out.is_dir():
    raise ValueError(f'--out={out} is a directory; name a file')
  mesh = make_mesh(tuple(map(int, f.mesh)))
  found = hf.inspect(f.model)
  cfg, path = found.cfg, found.place.path
  has_tokenizer = (path / 'tokenizer_config.json').exists()
  tok = tokenizer.load(path) if has_tokenizer else None
  lines = read_prompts(pathlib.Path(f.prompts), tok, cfg.V)
  if tok is not None:
    tokenizer.check(tok, cfg.V, f'vocab_size of {f.model}')
  else:
    print(f'generate: {f.model} has no tokenizer; "text" will be null')
  dtype = DTYPES[f.dtype]
  with jax.set_mesh(mesh):
    decode_copy = sampling.make_decode_copy(cfg, mesh, dtype)
    new = generate(
      cfg,
      decode_copy(hf.load(found, mesh, dtype=dtype)),
      lines,
      mesh=mesh,
      stop_ids=end_ids(path),
      steps=f.max_new_tokens,
      batch=f.batch,
      key=jax.random.key(f.seed),
      knobs=(f.temperature, f.top_p, f.top_k),
    )
  for line, ids in zip(lines, new, strict=True):
    text = tok.decode(ids, skip_special_tokens=True) if tok else None
    line |= {'ids': ids, 'text': text}
  if jax.process_index() == 0:
    write(out, lines)
  print(f'generate: {len(lines)} continuations in {f.out}')


def define_flags():
  flags.DEFINE_string(
    'model', None, 'A directory, URL or hub name.', required=True
  )
  flags.DEFINE_string('prompts', None, 'JSONL of prompts.', required=True)
  flags.DEFINE_string('out', None, 'JSONL to write.', required=True)
  flags.DEFINE_float('temperature', 1.0, '0 is greedy.', lower_bound=0.0)
  flags.DEFINE_float('top_p', 1.0, '1 is off.', 0.0, 1.0)
  flags.DEFINE_integer('top_k', 0, '0 is off.', lower_bound=0)
  flags.DEFINE_integer('max_new_tokens', 128, 'The most.', lower_bound=1)
  flags.DEFINE_integer('seed', 0, 'Of the sampling noise.')
  flags.DEFINE_integer('batch', 32, 'Prompts at a time.', lower_bound=1)
  flags.DEFINE_enum('dtype', 'float32', sorted(DTYPES), 'Compute in it.')
  flags.DEFINE_list('mesh', ['-1', '1', '1'], 'data,fsdp,tensor; -1: the rest.')


def main(_):
  try:
    run(FLAGS)
  except (ValueError, OSError) as error:
    sys.exit(f'generate: {error}')


if __name__ == '__main__':
  define_flags()
  app.run(main)
