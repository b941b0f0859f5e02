"""How often a model is right, greedy and sampled, with confidence intervals.

  python -m crjax.evaluate --config=configs/eval_smoke.py --model=DIR
  python -m crjax.evaluate --config=configs/eval_smoke.py --model=DIR \\
      --data=cruxeval.jsonl --out=DIR

Reads a split of data_pipeline.build or any file in CRUXEval's format. Accuracy
is strict (see rewards/judge.py) and counts a right answer in a wrong form;
rewards do not, and the share of right forms stands beside it.
"""

import collections
import functools
import json
import os
import pathlib
import sys
import time

from absl import app, flags
import jax
import jax.numpy as jnp
from ml_collections import config_flags
import numpy as np
import rich.console
import rich.table

from crjax import data, engine, execution, hf, rewards, sampling, tokenizer
from crjax.checkpoint import write_json
from crjax.evals import cruxeval
from crjax.sharding import make_mesh

DTYPES = {'bfloat16': jnp.bfloat16, 'float32': jnp.float32}
RESAMPLES = 2000  # of the bootstrap


def run(tasks, complete, pool, *, samples: int) -> list[dict]:
  """One row per task and completion: greedy ones first, then `samples` more.

  `complete(prompts, temperature, rollouts)` returns (texts, truncated) with
  `rollouts` completions a prompt; a prompt that does not fit gives None.
  """
  prompts = [
    tokenizer.messages(t['kind'], t['code'], t['entry'], t['args'], t['output'])
    for t in tasks
  ]
  rows = []
  for mode, temperature, n in (('greedy', 0.0, 1), ('sampled', 1.0, samples)):
    texts, truncated = complete(prompts, temperature, n)
    repeated = [task for task in tasks for _ in range(n)]
    answers = [text or '' for text in texts]
    _, infos = rewards.score(repeated, answers, truncated, pool)
    for i, info in enumerate(infos):
      rows.append(
        {
          'mode': mode,
          'sample': i % n,
          'text': texts[i],
          'fits': texts[i] is not None,
          'truncated': bool(truncated[i]),
        }
        | repeated[i]
        | info
      )
  return rows


def make_complete(
  cfg,
  params,
  tok,
  mesh,
  *,
  batch: int,
  prompt_length: int,
  completion_length: int,
  seed: int,
  thinking: bool | None,
):
  """`complete` for `run`, from the decode copy `params`.

  `batch` completions at a time, longest prompts first. Noise depends on the
  prompt's place in the data, not on what is sampled beside it.
  """
  made = engine.make(
    cfg,
    mesh,
    slots=batch,
    fewest=max(batch // 8, 1),
    length=prompt_length + completion_length,
    stop_ids=tokenizer.stop_ids(tok),
  )

  def complete(prompts, temperature, rollouts):
    encode = functools.partial(tokenizer.encode_prompt, tok, thinking=thinking)
    encoded = list(map(encode, prompts))
    fits = [i for i, x in enumerate(encoded) if len(x) <= prompt_length]
    fits.sort(key=lambda i: -len(encoded[i]))
    knobs = engine.Knobs(temperature)
    asked = [
      engine.Request(encoded[i], i, r, knobs, most=completion_length)
      for i in fits
      for r in range(rollouts)
    ]
    texts = [None] * (len(prompts) * rollouts)
    truncated = np.zeros(len(texts), bool)
    pieces = engine.stream(made, params, asked, key=jax.random.key(seed))
    began = time.monotonic()
    for n, done in enumerate(engine.completions(pieces), start=1):
      slot = done.request.question * rollouts + done.request.rollout
      truncated[slot] = done.finish == 'length'
      # Without the end token.
      length = len(done.tokens) - (done.finish == 'stop')
      texts[slot] = tokenizer.decode(tok, [done.tokens], [length])[0]
      if n % max(batch, 1) == 0 or n == len(asked):
        _progress(n, len(asked), temperature, began)
    return texts, truncated

  return complete


def summarize(rows, *, seed: int = 0) -> dict:
  """{kind: {n, greedy: numbers, sampled: numbers}} of the rows of `run`.

  Items that our own machinery failed to judge are left out and counted.
  """
  report = {}
  for kind in sorted({row['kind'] for row in rows}):
    of_kind = [row for row in rows if row['kind'] == kind]
    report[kind] = {'n': len({row['id'] for row in of_kind})}
    for mode in ('greedy', 'sampled'):
      some = [row for row in of_kind if row['mode'] == mode]
      report[kind][mode] = _numbers(some, seed)
  return report


def _numbers(rows, seed):
  """Fractions over items, each item the mean of its samples."""
  judged = [row for row in rows if row['verdict'] != 'infra']
  items = collections.defaultdict(list)
  for row in judged:
    items[row['id']].append(row)
  mean = lambda field: np.array(
    [np.mean([row[field] for row in item]) for item in items.values()]
  )
  right = mean('right')
  samples = max((row['sample'] for row in rows), default=0) + 1
  single = samples == 1
  interval = wilson(right) if single else bootstrap(right, seed)
  return {
    'strict': float(right.mean()) if len(right) else None,
    'ci95': interval,
    'typed': float(mean('typed').mean()) if len(right) else None,
    'format_rate': float(mean('format_ok').mean()) if len(right) else None,
    'truncated': float(mean('truncated').mean()) if len(right) else None,
    'samples': samples,
    'infra': len(rows) - len(judged),
    'too_long': sum(not row['fits'] for row in rows),
  }


def wilson(right, z: float = 1.96):
  """95 % interval of a share of right answers (Wilson 1927)."""
  n = len(right)
  if not n:
    return None
  p = float(np.mean(right))
  centre, scale = p + z * z / (2 * n), 1 + z * z / n
  half = z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
  return [max((centre - half) / scale, 0.0), min((centre + half) / scale, 1.0)]


def bootstrap(right, seed: int):
  """95 % interval of a mean over items whose samples belong together."""
  if not len(right):
    return None
  rng = np.random.default_rng(seed)
  draws = rng.integers(0, len(right), (RESAMPLES, len(right)))
  low, high = np.quantile(right[draws].mean(1), [0.025, 0.975])
  return [float(low), float(high)]


def read_tasks(path) -> list[dict]:
  """Tasks of a Parquet split of ours, or of a CRUXEval-format JSONL file."""
  if pathlib.Path(path).suffix == '.jsonl':
    return cruxeval.load(path)
  rows = data.read(path, {'id', 'kind', 'prompt', 'verify'})
  return [data.task(row) for row in rows]


def write(out, report, rows):
  """items.parquet first, report.json last: with it, the evaluation is whole."""
  import datasets  # Slow to import.

  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  temporary = out / 'items.tmp'
  datasets.disable_progress_bars()
  datasets.Dataset.from_list(rows).to_parquet(str(temporary))
  os.replace(temporary, out / 'items.parquet')
  write_json(out / 'report.json', report)


def show(report):
  settings = report['settings']
  table = rich.table.Table(
    title=f'{settings["model"]} on {settings["data"]}\nstrict accuracy, '
    '95 % interval in brackets, percent'
  )
  columns = (
    'kind',
    'items',
    'decoding',
    'accuracy',
    'typed',
    'format',
    'truncated',
    'too long',
    'infra',
  )
  for name in columns:
    table.add_column(name, justify='right')
  percent = lambda x: '-' if x is None else f'{100 * x:.1f}'
  for kind, found in report['kinds'].items():
    for mode in ('greedy', 'sampled'):
      x = found[mode]
      low, high = x['ci95'] or (None, None)
      label = mode if mode == 'greedy' else f'T=1, {x["samples"]} samples'
      table.add_row(
        kind,
        str(found['n']),
        label,
        f'{percent(x["strict"])} [{percent(low)}, {percent(high)}]',
        percent(x['typed']),
        percent(x['format_rate']),
        percent(x['truncated']),
        str(x['too_long']),
        str(x['infra']),
      )
  rich.console.Console().print(table)


def _progress(done, total, temperature, began):
  left = (time.monotonic() - began) / done * (total - done)
  print(
    f'evaluate: {done} of {total} completions, T={temperature:g}, about '
    f'{left:.0f} s left',
    flush=True,
  )


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'How to evaluate.')
  flags.mark_flag_as_required('config')
  flags.DEFINE_string(
    'model', None, 'A directory, URL or hub name.', required=True
  )
  flags.DEFINE_string('data', None, 'Parquet split or CRUXEval JSONL.')
  flags.DEFINE_string('out', None, 'Where report.json goes.')


def main(_):
  f, c = flags.FLAGS, flags.FLAGS.config
  source = f.data or c.data
  if not pathlib.Path(source).exists():
    sys.exit(f'--data={source} does not exist')
  try:
    found = hf.inspect(f.model)
    tok = tokenizer.load(found.place.path)
    tokenizer.check(tok, found.cfg.V, f'vocab_size of {f.model}')
    mesh, dtype = make_mesh(c.mesh), DTYPES[c.dtype]
    decode_copy = sampling.make_decode_copy(found.cfg, mesh, dtype)
    params = decode_copy(hf.load(found, mesh, dtype=dtype))
  except (ValueError, OSError) as error:
    sys.exit(f'--model={f.model}: {error}')
  tasks = read_tasks(source)
  complete = make_complete(
    found.cfg,
    params,
    tok,
    mesh,
    batch=c.batch,
    prompt_length=c.prompt_length,
    completion_length=c.completion_length,
    seed=c.seed,
    thinking=c.thinking,
  )
  with (
    jax.set_mesh(mesh),
    execution.Pool(c.workers, min_level=c.sandbox_min_level) as pool,
  ):
    rows = run(tasks, complete, pool, samples=c.samples)
  given = {'model': f.model, 'data': source, 'judge': 'strict'}
  settings = json.loads(c.to_json()) | given
  report = {'settings': settings, 'kinds': summarize(rows, seed=c.seed)}
  if f.out and jax.process_index() == 0:
    write(f.out, report, rows)
  show(report)


if __name__ == '__main__':
  define_flags()
  app.run(main)
