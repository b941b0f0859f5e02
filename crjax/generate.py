"""Continues the prompts of a JSONL file with a model, raw or as a chat.

  python -m crjax.generate --model=DIR --prompts=in.jsonl --out=out.jsonl \\
      --temperature=0 --max_new_tokens=200

A line is {"prompt": text}, {"prompt_ids": [...]} or {"messages": [...]}, of
which prompt_ids counts first; other keys are carried over. Messages go through
the chat template, a prompt does not. Each line of the output adds "prompt_ids",
"ids" (the new tokens, an end token included), "logp" (theirs), "finish" ('stop'
or 'length') and "text" (null where the model has no tokenizer).

What is done is kept beside the output in a .partial file: the same command goes
on where it was stopped. --model may be a run: its newest checkpoint counts.
"""

import hashlib
import json
import os
import pathlib
import re

from absl import app, flags
from etils import epath
import jax
import jax.numpy as jnp

from crjax import cluster, engine, export, files, hf, sampling, tokenizer
from crjax.inputs import parse_flags
from crjax.sharding import make_mesh, wait

FLAGS = flags.FLAGS
DTYPES = {
  'bfloat16': jnp.bfloat16,
  'float32': jnp.float32,
  'int8': jnp.int8,  # weights of the layers; the rest is bfloat16
}


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
    given = [name for name in FIELDS if isinstance(line, dict) and name in line]
    if not given:
      raise ValueError(f'{where}: needs a "prompt" or a "prompt_ids" field')
    field = given[0]
    if field != 'prompt_ids':
      line['prompt_ids'] = ENCODE[field](line[field], tok, where)
    _check(line['prompt_ids'], vocabulary, f'{where}: field "{field}"')
    lines.append(line)
  if not lines:
    raise ValueError(f'{path} holds no prompts')
  return lines


def requests(lines, done, *, steps: int, knobs):
  """Requests for the lines that are not done, those of one prompt together.

  Noise is a function of (key, line number, position): not of the order.
  """
  ids = [line['prompt_ids'] for line in lines]
  order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i]))
  return [
    engine.Request(ids[i], question=i, knobs=knobs, most=steps)
    for i in order
    if i not in done
  ]


def generate(cfg, params, asked, *, mesh, stop_ids, batch: int, key):
  """The Completions of requests, each when it has ended; `batch` at a time."""
  if not asked:
    return
  made = engine.make(
    cfg,
    mesh,
    slots=batch,
    length=max(len(r.tokens) + r.most for r in asked),
    stop_ids=stop_ids,
  )
  yield from engine.completions(engine.stream(made, params, asked, key=key))


def find(name, mesh, dtype):
  """(Config, directory of the tokenizer and settings, load) of a model.

  `load()` gives the decode copy. `name` is a directory, URL or hub name; of a
  run, its newest checkpoint.
  """
  run = epath.Path(name)
  if (run / 'checkpoints').is_dir():
    _, cfg, params = export.restore(run, None, mesh)
    path, read = files.locate(run / 'source').path, lambda: params
  else:
    found = hf.inspect(name)
    cfg, path = found.cfg, found.place.path
    read = lambda: hf.load(
      found, mesh, dtype=jnp.bfloat16 if dtype == jnp.int8 else dtype
    )
  decode_copy = sampling.make_decode_copy(cfg, mesh, dtype)
  return cfg, path, lambda: decode_copy(read())


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
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(''.join(json.dumps(x) + '\n' for x in lines))
  os.replace(temporary, path)


def settings(f, lines) -> dict:
  """What decides about the output, to be the same when a command goes on."""
  ids = json.dumps([line['prompt_ids'] for line in lines])
  names = ('model', 'temperature', 'top_p', 'top_k', 'max_new_tokens', 'seed')
  return {name: getattr(f, name) for name in (*names, 'dtype')} | {
    'prompts': hashlib.sha256(ids.encode()).hexdigest()
  }


def resume(path, wanted) -> dict:
  """{line number: {ids, logp, finish}} of a .partial file, new if need be.

  A last line that was cut off is dropped. Raises ValueError if the file belongs
  to a command with other settings.
  """
  if not path.exists():
    return {}
  *lines, rest = path.read_text().split('\n')
  if not lines or json.loads(lines[0]) != wanted:
    raise ValueError(
      f'{path} was left by a command with other settings or prompts; remove '
      'it, or choose another --out'
    )
  if rest and jax.process_index() == 0:
    path.write_text(''.join(f'{line}\n' for line in lines))
  found = map(json.loads, lines[1:])
  return {line.pop('line'): line for line in found}


def keep(path, wanted, done, completions, total: int):
  """Adds Completions to `done` and to the .partial file as they come."""
  first = jax.process_index() == 0
  path = path if first else os.devnull
  with open(path, 'a') as file:
    if first and not path.stat().st_size:
      file.write(json.dumps(wanted) + '\n')
    for request, ids, logp, finish in completions:
      line = {'ids': ids, 'logp': logp, 'finish': finish}
      done[request.question] = line
      file.write(json.dumps({'line': request.question} | line) + '\n')
      file.flush()
      if first and (len(done) % 32 == 0 or len(done) == total):
        print(f'generate: {len(done)} of {total} prompts', flush=True)


def _encode(prompt, tok, where):
  _need_tokenizer(tok, where)
  if not isinstance(prompt, str):
    raise ValueError(f'{where}: field "prompt" must be a string')
  if re.search('[\ud800-\udfff]', prompt):
    raise ValueError(f'{where}: field "prompt" holds half a surrogate pair')
  return tok(prompt, add_special_tokens=False)['input_ids']


def _encode_chat(messages, tok, where):
  _need_tokenizer(tok, where)
  form = 'a list of {"role": text, "content": text}'
  right = isinstance(messages, list) and all(
    isinstance(m, dict)
    and all(isinstance(m.get(name), str) for name in ('role', 'content'))
    for m in messages
  )
  if not right or not messages:
    raise ValueError(f'{where}: field "messages" must be {form}')
  return tokenizer.encode_prompt(tok, messages)


def _need_tokenizer(tok, where):
  if tok is None:
    raise ValueError(f'{where}: the model has no tokenizer; give "prompt_ids"')


ENCODE = {'prompt': _encode, 'messages': _encode_chat}
FIELDS = ('prompt_ids', *ENCODE)


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
  mesh, dtype = make_mesh(tuple(map(int, f.mesh))), DTYPES[f.dtype]
  cfg, path, load = find(f.model, mesh, dtype)
  has_tokenizer = (path / 'tokenizer_config.json').exists()
  tok = tokenizer.load(path) if has_tokenizer else None
  lines = read_prompts(pathlib.Path(f.prompts), tok, cfg.V)
  if tok is not None:
    tokenizer.check(tok, cfg.V, f'vocab_size of {f.model}')
  else:
    print(f'generate: {f.model} has no tokenizer; "text" will be null')
  out.parent.mkdir(parents=True, exist_ok=True)
  partial = out.with_name(f'{out.name}.partial')
  wanted = settings(f, lines)
  done = resume(partial, wanted)
  wait('generate: all have read what is done')
  knobs = engine.Knobs(f.temperature, f.top_p, f.top_k)
  with jax.set_mesh(mesh):
    completions = generate(
      cfg,
      load(),
      requests(lines, done, steps=f.max_new_tokens, knobs=knobs),
      mesh=mesh,
      stop_ids=end_ids(path),
      batch=f.batch,
      key=jax.random.key(f.seed),
    )
    keep(partial, wanted, done, completions, len(lines))
  for i, line in enumerate(lines):
    ids = done[i]['ids']
    text = tok.decode(ids, skip_special_tokens=True) if tok else None
    line |= done[i] | {'text': text}
  if jax.process_index() == 0:
    write(out, lines)
    partial.unlink()
    print(f'generate: {len(lines)} continuations in {f.out}')


def define_flags():
  flags.DEFINE_string(
    'model', None, 'A run, directory, URL or hub name.', required=True
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
  flags.DEFINE_bool('distributed', False, 'Join the other processes of a pod.')


def main(_):
  cluster.begin(FLAGS.distributed)
  with cluster.inputs('generate'):
    run(FLAGS)


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
