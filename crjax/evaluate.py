"""How often a model is right, greedy and sampled, with confidence intervals.

  python -m crjax.evaluate --config=configs/eval_smoke.py --model=DIR
  python -m crjax.evaluate --config=configs/eval_smoke.py --model=DIR \\
      --benchmark=cruxeval --prompt=cot --data=cruxeval.jsonl --out=DIR
  python -m crjax.evaluate --config=configs/eval_smoke.py --model=NAME \\
      --endpoint=http://localhost:8000/v1 --data=FILE --out=DIR
  python -m crjax.evaluate --benchmark=cruxeval --direction=output \\
      --prompt=cot --data=cruxeval.jsonl --completions=FILE --out=FILE.json

Reads a split of data_pipeline.build or a benchmark's file. Accuracy is strict
(see rewards/judge.py) and counts a right answer in a wrong form; rewards do
not, and the share of right forms stands beside it. The verdict of a benchmark's
own scorer (evals/official.py) is another number of the same table. A server
that speaks OpenAI's API is asked the same questions and judged alike; its
answers are kept in --out, and asked for once. The last command judges
completions that are there already: lines {"id", "texts"}.
"""

import functools
import json
import pathlib
import time

from absl import app, flags
import jax
from ml_collections import config_flags
import numpy as np

from crjax import cluster, data, engine, hf, metrics, sampling, tokenizer
from crjax.evals import (
  completions,
  cruxeval,
  endpoint,
  hub,
  judging,
  official,
  prompts,
)
from crjax.evals.summary import reval_report, show, summarize, write
from crjax.inputs import DTYPES, open_pool, parse_flags
from crjax.sharding import all_processes, make_mesh

KINDS = ('output', 'input', 'coverage', 'path', 'state', 'mixed')


def run(
  tasks,
  complete,
  pools,
  *,
  samples: int,
  temperature=1.0,
  benchmark='',
  style='trained',
  raw=False,
  count=None,
) -> list[dict]:
  """One row per task and completion: greedy ones first, then `samples` more.

  `complete(prompts, temperature, rollouts)` returns (texts, truncated) with
  `rollouts` completions a prompt; a prompt that does not fit gives None. With
  `raw` a few-shot prompt is continued as a text, as base models do; otherwise
  it is the user's message. `count(texts)` are their tokens. The rest is as
  `judging.judge` takes it.
  """
  system = completions.BENCHMARKS[benchmark].SYSTEM if benchmark else ''
  asked = [prompts.ask(benchmark, task, style) for task in tasks]
  if not raw:
    asked = [prompts.chat(prompt, system) for prompt in asked]
  rows = []
  for mode, heat, n in (
    ('greedy', 0.0, 1),
    ('sampled', temperature, samples),
  ):
    texts, truncated = complete(asked, heat, n)
    repeated = [task for task in tasks for _ in range(n)]
    answers = [text or '' for text in texts]
    infos = judged(benchmark, style, repeated, answers, truncated, pools)
    tokens = count(answers) if count else [None] * len(answers)
    for i, info in enumerate(infos):
      rows.append(
        {
          'mode': mode,
          'sample': i % n,
          'text': texts[i],
          'fits': texts[i] is not None,
          'truncated': bool(truncated[i]),
          'tokens': tokens[i],
        }
        | {k: v for k, v in repeated[i].items() if k != 'prompt'}
        | info
      )
  return rows


def judged(benchmark, style, tasks, texts, truncated, pools):
  """As `judging.judge`; each process judges its share, all see the whole."""
  mine = range(jax.process_index(), len(tasks), jax.process_count())
  part = [[column[i] for i in mine] for column in (tasks, texts, truncated)]
  infos = judging.judge(benchmark, style, *part, pools)
  pairs = all_processes(list(zip(mine, infos, strict=True)))
  return [info for _, info in sorted(pairs, key=lambda pair: pair[0])]


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

  `batch` completions at a time, of prompts whose last completions were longest
  first. Noise depends on the prompt's place in the data, not on what is sampled
  beside it.
  """
  made = engine.make(
    cfg,
    mesh,
    slots=batch,
    fewest=max(batch // 8, 1),
    length=prompt_length + completion_length,
    stop_ids=tokenizer.stop_ids(tok),
  )
  longest = {}  # completion of each prompt so far

  def complete(prompts, temperature, rollouts):
    encode = functools.partial(tokenizer.encode_prompt, tok, thinking=thinking)
    encoded = list(map(encode, prompts))
    fits = [i for i, x in enumerate(encoded) if len(x) <= prompt_length]
    fits.sort(key=lambda i: -len(encoded[i]))
    knobs = engine.Knobs(temperature)
    asked = engine.longest_first(
      engine.Request(
        encoded[i],
        i,
        r,
        knobs,
        most=completion_length,
        expected=longest.get(i, 0.0),
      )
      for i in fits
      for r in range(rollouts)
    )
    texts = [None] * (len(prompts) * rollouts)
    truncated = np.zeros(len(texts), bool)
    pieces = engine.stream(made, params, asked, key=jax.random.key(seed))
    began = time.monotonic()
    for n, done in enumerate(engine.completions(pieces), start=1):
      i = done.request.question
      longest[i] = max(longest.get(i, 0.0), len(done.tokens))
      slot = i * rollouts + done.request.rollout
      truncated[slot] = done.finish == 'length'
      # Without the end token.
      length = len(done.tokens) - (done.finish == 'stop')
      texts[slot] = tokenizer.decode(tok, [done.tokens], [length])[0]
      if n % max(batch, 1) == 0 or n == len(asked):
        _progress(n, len(asked), temperature, began)
    return texts, truncated

  return complete


def read_tasks(path, benchmark='', direction='') -> list[dict]:
  """Tasks of a Parquet split of ours, or of a benchmark's file."""
  if benchmark:
    tasks = completions.BENCHMARKS[benchmark].load(hub.local(path))
  elif pathlib.Path(path).suffix == '.jsonl':
    tasks = cruxeval.load(path)
  else:
    rows = data.read(path, {'id', 'kind', 'prompt', 'verify'})
    tasks = [data.task(row) | {'prompt': row['prompt']} for row in rows]
  some = [t for t in tasks if direction in ('', t['kind'])]
  if not some:
    raise ValueError(f'{path} has no tasks of kind {direction!r}')
  return some


def _progress(done, total, temperature, began):
  if jax.process_index():
    return
  left = (time.monotonic() - began) / done * (total - done)
  print(
    f'evaluate: {done} of {total} completions, T={temperature:g}, about '
    f'{left:.0f} s left',
    flush=True,
  )


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'How to evaluate a model.')
  flags.DEFINE_string('model', None, 'A directory, URL or hub name.')
  flags.DEFINE_string('data', None, "Parquet split or a benchmark's file.")
  flags.DEFINE_string('out', None, 'Where report.json goes; or FILE.json.')
  flags.DEFINE_enum(
    'benchmark', '', ['', *completions.BENCHMARKS], 'Whose prompts and scorer.'
  )
  flags.DEFINE_enum('prompt', 'trained', prompts.STYLES, 'How it is asked.')
  flags.DEFINE_enum('direction', '', ['', *KINDS], 'Only tasks of this kind.')
  flags.DEFINE_string('completions', None, 'JSONL of ids and texts to judge.')
  flags.DEFINE_string('endpoint', None, "A server's URL; --model is its name.")
  flags.DEFINE_bool('raw', False, 'Few-shot prompts as texts, for base models.')
  flags.DEFINE_bool('distributed', False, 'Join the other processes of a pod.')


def main(_):
  f = flags.FLAGS
  if f.distributed and (f.completions or f.endpoint):
    cluster.refuse('--completions and --endpoint need one process alone')
  cluster.begin(f.distributed)
  if f.completions:
    judge_completions(f)
  elif f.model and f.config:
    evaluate_model(f, f.config)
  else:
    cluster.refuse('give --completions, or --model and --config')


def judge_completions(f):
  if not (f.benchmark and f.data):
    cluster.refuse('--completions needs --benchmark and --data')
  if not f.direction and f.benchmark != 'reval':
    cluster.refuse(f'--benchmark={f.benchmark} needs --direction')
  try:
    result = completions.run(
      f.benchmark,
      f.direction,
      f.prompt,
      data=f.data,
      given=f.completions,
      out=f.out,
    )
  except (ValueError, OSError, RuntimeError) as error:
    cluster.refuse(f'--completions={f.completions}: {error}')
  completions.show(result)


def evaluate_model(f, c):
  source, began = f.data or c.data, time.monotonic()
  if not (f.benchmark or pathlib.Path(source).exists()):
    cluster.refuse(f'--data={source} does not exist')
  with cluster.inputs('evaluate'):
    mesh = make_mesh(c.mesh)
  with cluster.inputs(f'--data={source}'):
    tasks = read_tasks(source, f.benchmark, f.direction)
  complete, count = (served if f.endpoint else loaded)(f, c, mesh)
  with (
    jax.set_mesh(mesh),
    open_pool(c) as pool,
    official.pool(c.workers, min_level=c.sandbox_min_level) as theirs,
  ):
    try:
      if f.benchmark:
        completions.self_test(f.benchmark, tasks, (pool, theirs))
      rows = run(
        tasks,
        complete,
        (pool, theirs),
        samples=c.samples,
        temperature=c.temperature,
        benchmark=f.benchmark,
        style=f.prompt,
        raw=f.raw,
        count=count,
      )
    except (ValueError, endpoint.Refused) as error:
      cluster.refuse(f'evaluate: {error}')
  given = {
    name: getattr(f, name)
    for name in ('model', 'benchmark', 'prompt', 'endpoint', 'raw')
  }
  settings = json.loads(c.to_json()) | given | {'data': source}
  report = {
    'settings': settings | {'judge': 'strict'},
    'kinds': summarize(rows, seed=c.seed),
    **metrics.provenance(),
    'seconds': time.monotonic() - began,
  }
  if f.benchmark == 'reval':
    report['reval'] = reval_report(tasks, rows)
  if jax.process_index() == 0:
    if f.out:
      write(f.out, report, rows)
    show(report)


def loaded(f, c, mesh):
  """(complete, count) of a model in this process."""
  with cluster.inputs(f'--model={f.model}'):
    found = hf.inspect(f.model)
    tok = tokenizer.load(found.place.path)
    tokenizer.check(tok, found.cfg.V, f'vocab_size of {f.model}')
    dtype = DTYPES[c.dtype]
    decode_copy = sampling.make_decode_copy(found.cfg, mesh, dtype)
    params = decode_copy(hf.load(found, mesh, dtype=dtype))
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
  bare = functools.partial(tok, add_special_tokens=False)
  return complete, lambda texts: list(map(len, bare(texts)['input_ids']))


def served(f, c, mesh):
  """(complete, count) of a model behind an OpenAI-compatible server."""
  if not f.out:
    cluster.refuse('--endpoint needs --out: the answers are kept there')
  return endpoint.make_complete(
    f.endpoint,
    f.model,
    pathlib.Path(f.out) / 'answers.jsonl',
    concurrency=c.batch,
    completion_length=c.completion_length,
    seed=c.seed,
  )


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
