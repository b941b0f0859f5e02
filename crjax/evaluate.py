"""How often a model is right, greedy and sampled, with confidence intervals.

  python -m crjax.evaluate --config=configs/eval_smoke.py --model=DIR
  python -m crjax.evaluate --config=configs/eval_smoke.py --model=DIR \\
      --benchmark=cruxeval --prompt=cot --data=cruxeval.jsonl --out=DIR
  python -m crjax.evaluate --config=configs/eval_smoke.py --model=NAME \\
      --endpoint=http://localhost:8000/v1 --data=FILE --out=DIR
  python -m crjax.evaluate --benchmark=cruxeval --direction=output \\
      --prompt=cot --data=cruxeval.jsonl --completions=FILE --out=FILE.json
  ... --against=DIR    another --out: is one of the two models better?

Reads a split of data_pipeline.build or a benchmark's file. Accuracy is strict
(see rewards/judge.py) and counts a right answer in a wrong form; rewards do
not, and the share of right forms stands beside it. The verdict of a benchmark's
own scorer (evals/official.py) is another number of the same table. A server
that speaks OpenAI's API is asked the same questions and judged alike. Answers
are kept in --out as they come, and asked for once. With --completions those
that are there already are judged: lines {"id", "texts"}.
"""

import functools
import json
import pathlib
import time

from absl import app, flags
import jax
from ml_collections import config_flags

from crjax import cluster, completing, data, hf, metrics, sampling, tokenizer
from crjax.evals import (
  completions,
  cruxeval,
  endpoint,
  judging,
  official,
  pairs,
  prompts,
  show,
)
from crjax.evals.summary import reval_report, summarize, write
from crjax.inputs import DTYPES, open_pool, parse_flags
from crjax.sharding import all_processes, make_mesh

KINDS = ('output', 'input', 'coverage', 'path', 'state', 'mixed')
ANSWERS = 'answers.jsonl'  # in --out


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


def read_tasks(path, benchmark='', direction='') -> list[dict]:
  """Tasks of a Parquet split of ours, or of a benchmark's file."""
  if benchmark:
    tasks = completions.load(benchmark, path)
  elif pathlib.Path(path).suffix == '.jsonl':
    tasks = cruxeval.load(path)
  else:
    rows = data.read(path, {'id', 'kind', 'prompt', 'verify'})
    tasks = [data.task(row) | {'prompt': row['prompt']} for row in rows]
  some = [t for t in tasks if direction in ('', t['kind'])]
  if not some:
    raise ValueError(f'{path} has no tasks of kind {direction!r}')
  return some


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
  flags.DEFINE_string('against', None, 'Another --out, of the same questions.')
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
      against=f.against,
    )
  except (ValueError, OSError, RuntimeError) as error:
    cluster.refuse(f'evaluate: {error}')
  show.judged(result)


def evaluate_model(f, c):
  source, began = f.data or c.data, time.monotonic()
  if not (f.benchmark or pathlib.Path(source).exists()):
    cluster.refuse(f'--data={source} does not exist')
  with cluster.inputs('evaluate'):
    mesh = make_mesh(c.mesh)
  with cluster.inputs(f'--data={source}'):
    tasks = read_tasks(source, f.benchmark, f.direction)
    prompts.ask(f.benchmark, tasks[0], f.prompt)
  other = None
  if f.against:
    with cluster.inputs(f'--against={f.against}'):
      other = pairs.read(f.against)
      pairs.check(other, tasks, f.against)
  ask, count = (served if f.endpoint else loaded)(f, c, mesh)
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
        ask,
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
    except RuntimeError as error:  # The sandbox failed: another try may not.
      cluster.end(f'evaluate: {error}', 1)
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
  if other is not None:
    report['against'] = pairs.beside(other, pairs.of_rows(rows), f.against)
  if jax.process_index() == 0:
    if f.out:
      write(f.out, report, rows)
    show.report(report)


def loaded(f, c, mesh):
  """(complete, count) of a model in this process."""
  # Several processes sample together, and could differ in what is kept.
  alone = f.out and jax.process_count() == 1
  with cluster.inputs(f'--model={f.model}'):
    found = hf.inspect(f.model)
    tok = tokenizer.load(found.place.path)
    tokenizer.check(tok, found.cfg.V, f'vocab_size of {f.model}')
    dtype = DTYPES[c.dtype]
    decode_copy = sampling.make_decode_copy(found.cfg, mesh, dtype)
    params = decode_copy(hf.load(found, mesh, dtype=dtype))
    ask = completing.make_complete(
      found.cfg,
      params,
      tok,
      mesh,
      batch=c.batch,
      prompt_length=c.prompt_length,
      completion_length=c.completion_length,
      seed=c.seed,
      thinking=c.thinking,
      kept=pathlib.Path(f.out) / ANSWERS if alone else None,
      model=f'{completing.fingerprint(found.place)} {c.dtype}' if alone else '',
    )
  bare = functools.partial(tok, add_special_tokens=False)
  return ask, lambda texts: list(map(len, bare(texts)['input_ids']))


def served(f, c, mesh):
  """(complete, count) of a model behind an OpenAI-compatible server."""
  if not f.out:
    cluster.refuse('--endpoint needs --out: the answers are kept there')
  try:
    return endpoint.make_complete(
      f.endpoint,
      f.model,
      pathlib.Path(f.out) / ANSWERS,
      concurrency=c.batch,
      completion_length=c.completion_length,
      seed=c.seed,
    )
  except (ValueError, OSError, endpoint.Refused) as error:
    cluster.refuse(f'--endpoint={f.endpoint}: {error}')


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
