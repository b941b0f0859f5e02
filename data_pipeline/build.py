"""Builds the datasets of a config: programs, executions, questions, chains.

  python -m data_pipeline.build --config=configs/data_smoke.py

Writes <out>/{sft_train,rl_train,heldout}.parquet, manifest.json and tokenizer/.
The directory appears whole or not at all; the same config gives the same rows.
A config with `candidates` (configs/data_7b.py) is built by `factory` instead.
"""

import ast
import collections
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import time

from absl import app, flags
from ml_collections import config_flags

from crjax import execution, tokenizer
from data_pipeline import chains, factory, grammar
from data_pipeline.built import deciding, digests, is_built

SPLITS = ('heldout', 'rl_train', 'sft_train')
BATCH = 512  # Programs executed at a time.
PATIENCE = 10  # Tries a wanted program before a barren batch is an error.
GUESSES = 20  # Constant calls that the input baseline tries.


def build(c):
  """Collects programs until every split is full, then writes everything."""
  out = pathlib.Path(c.out)
  settings = deciding(c)
  if is_built(out, settings):
    print(f'data: {out} already holds this config')
    return
  with execution.Pool(
    c.workers, cpu_seconds=c.cpu_seconds, min_level=c.sandbox_min_level
  ) as pool:
    cases, dropped = collect(c, pool)
    rows = {
      split: [row for case in group for row in questions(case)]
      for split, group in split_cases(cases, c.programs).items()
    }
    rows['rl_train'] = [
      row for row in rows['rl_train'] if is_kept(row, c.rl_input_share)
    ]
    baseline = constant_baseline(rows, pool)
  temporary = out.with_name(f'{out.name}.tmp')
  shutil.rmtree(temporary, ignore_errors=True)
  temporary.mkdir(parents=True)
  write(temporary, rows, c.vocab_size)
  manifest = summarize(rows, dropped, settings, temporary, baseline)
  (temporary / 'manifest.json').write_text(json.dumps(manifest, indent=2))
  shutil.rmtree(out, ignore_errors=True)
  os.replace(temporary, out)
  report(out, manifest)


def collect(c, pool):
  """(cases, dropped by reason): distinct programs that ran, in seed order.

  A case is {pid, code, entry, args, output, steps}.
  """
  wanted, cases, dropped = sum(c.programs.values()), {}, collections.Counter()
  answers, began = collections.Counter(), time.monotonic()
  for start in itertools.count(step=BATCH):
    programs = [
      grammar.program(f'{c.seed}:{start + i}', c.level) for i in range(BATCH)
    ]
    jobs = [execution.Job(p.code, 'f', p.args, trace=True) for p in programs]
    before = len(cases)
    for program, result in zip(programs, pool.run(jobs), strict=True):
      pid = program_id(program.code)
      limit = c.largest_share * max(len(cases), 100)
      reason = fault(result, c) or (
        'same program'
        if pid in cases
        else 'common answer' * (answers[result.value] >= limit)
      )
      if reason:
        dropped[reason] += 1
        continue
      answers[result.value] += 1
      cases[pid] = {
        'pid': pid,
        'code': program.code,
        'entry': 'f',
        'args': program.args,
        'output': result.value,
        'steps': result.steps,
      }
      if len(cases) == wanted:
        return list(cases.values()), dropped
    new = len(cases) - before
    if not new and start > PATIENCE * wanted:
      raise ValueError(
        f'the grammar gives no more new programs at {len(cases):,} of '
        f'{wanted:,}; lower config.programs or widen config.level'
      )
    progress(len(cases), wanted, start + BATCH, began)
  return None


def fault(result, c) -> str:
  """Why a result is no question; '' if it is one.

  Raises RuntimeError where the machinery failed: it says nothing of a program.
  """
  if result.verdict == 'infra':
    raise RuntimeError(
      'a worker died without an answer, which no program causes; is the '
      'machine out of memory? Try fewer --config.workers.'
    )
  if result.verdict != 'ok':
    return result.verdict
  if len(result.value) > c.longest_value or len(result.steps) > c.most_steps:
    return 'too long'
  try:
    again = repr(ast.literal_eval(result.value))
  except (ValueError, SyntaxError):
    return 'not a literal'
  return '' if again == result.value else 'not a literal'


def program_id(code: str) -> str:
  """A hash of the program without formatting and the names of its variables.

  Splits are cut by it, so that no held-out program is a trained one renamed.
  """
  tree, names = ast.parse(code), {}
  for node in ast.walk(tree):
    if isinstance(node, ast.arg):
      names.setdefault(node.arg, f'v{len(names)}')
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      names.setdefault(node.id, f'v{len(names)}')
  for node in ast.walk(tree):
    if isinstance(node, ast.arg):
      node.arg = names[node.arg]
    elif isinstance(node, ast.Name):
      node.id = names.get(node.id, node.id)
  return hashlib.sha256(ast.unparse(tree).encode()).hexdigest()[:16]


def split_cases(cases, sizes):
  """{split: cases}, cut in the order of the programs' hashes."""
  ordered = iter(sorted(cases, key=lambda case: case['pid']))
  return {
    split: list(itertools.islice(ordered, sizes[split])) for split in SPLITS
  }


def questions(case):
  """The two questions of a case, each with its chain as the answer."""
  task = {k: case[k] for k in ('code', 'entry', 'args', 'output')}
  texts = {
    'output': chains.completion(
      chains.forward(case['code'], case['steps'], case['output']),
      case['output'],
    ),
    'input': chains.completion(
      chains.backward(case['code'], case['steps'], case['output']),
      case['args'],
    ),
  }
  for kind, text in texts.items():
    prompt = tokenizer.messages(kind, **task)
    yield {
      'id': f'{case["pid"]}-{kind}',
      'pid': case['pid'],
      'kind': kind,
      'prompt': prompt,
      'verify': task,
      'messages': [*prompt, {'role': 'assistant', 'content': text}],
    }


def is_kept(row, input_share: float) -> bool:
  """All output questions, and the input questions of a share of programs.

  Any of many inputs is right, so they are the easier half to learn by reward.
  """
  return (
    row['kind'] == 'output' or int(row['pid'], 16) % 100 < 100 * input_share
  )


def write(directory, rows, vocab_size):
  """The splits as Parquet, and a tokenizer trained on the SFT split."""
  import datasets  # Slow to import; not needed to say that all is built.

  for split, some in rows.items():
    drop = ('prompt', 'verify') if split == 'sft_train' else ('messages',)
    table = [{k: v for k, v in r.items() if k not in drop} for r in some]
    datasets.Dataset.from_list(table).to_parquet(directory / f'{split}.parquet')
  texts = [m['content'] for r in rows['sft_train'] for m in r['messages']]
  tokenizer.train(texts, directory / 'tokenizer', vocab_size=vocab_size)


def summarize(rows, dropped, settings, directory, baseline):
  """What manifest.json holds, lengths in tokens included."""
  tok = tokenizer.load(directory / 'tokenizer')
  sample = [
    tokenizer.encode_example(tok, r['messages'])[1]
    for r in rows['sft_train'][:2000]
  ]
  return {
    'settings': settings,
    'rows': {split: len(some) for split, some in rows.items()},
    'kinds': {
      split: dict(collections.Counter(row['kind'] for row in some))
      for split, some in rows.items()
    },
    'dropped_programs': dict(dropped),
    'constant_baseline': baseline,
    'vocabulary': len(tok),
    'tokens': {
      'mean': sum(map(len, sample)) / len(sample),
      'longest': max(map(len, sample)),
      'longest_prompt': max(len(m) - sum(m) for m in sample),
      'longest_completion': max(map(sum, sample)),
    },
    'sha256': digests(directory),
  }


def constant_baseline(rows, pool):
  """Held-out accuracy of the best constant answer to each kind of question.

  'output': the one literal that is right most often. 'input': the best of the
  GUESSES most frequent calls, each executed on every held-out program.
  """
  heldout = [r['verify'] for r in rows['heldout'] if r['kind'] == 'output']
  count = lambda field: collections.Counter(v[field] for v in heldout)
  right = [
    sum(
      result.verdict == 'ok' and result.value == v['output']
      for v, result in zip(
        heldout,
        pool.run([execution.Job(v['code'], v['entry'], args) for v in heldout]),
        strict=True,
      )
    )
    for args, _ in count('args').most_common(GUESSES)
  ]
  best = {'output': count('output').most_common(1)[0][1], 'input': max(right)}
  return {kind: n / len(heldout) for kind, n in best.items()}


def progress(done, wanted, tried, began):
  seconds = time.monotonic() - began
  left = seconds / max(done, 1) * (wanted - done)
  print(
    f'data: {done:,} of {wanted:,} programs ({tried:,} tried), '
    f'{seconds:.0f} s, about {left:.0f} s left',
    flush=True,
  )


def report(out, manifest):
  rows = ', '.join(f'{n:,} {split}' for split, n in manifest['rows'].items())
  print(f'data: {rows} rows in {out}')
  print(f'data: programs dropped, by reason: {manifest["dropped_programs"]}')
  print(f'data: tokens of an example: {manifest["tokens"]}')


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'What to build.')
  flags.DEFINE_enum('stage', 'all', factory.STAGES, 'Of a large build.')
  flags.DEFINE_string(
    'shard', '0/1', 'i/n: the parts i, i + n, ... of a stage.'
  )
  flags.mark_flag_as_required('config')


def main(_):
  c, stage = flags.FLAGS.config, flags.FLAGS.stage
  if 'candidates' in c:
    factory.build(c, stage, factory.shard_of(flags.FLAGS.shard, stage))
  else:
    build(c)


if __name__ == '__main__':
  define_flags()
  app.run(main)
