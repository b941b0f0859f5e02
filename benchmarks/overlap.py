"""What rewards cost a step whose completions end one after the other.

  python benchmarks/overlap.py --data=runs/smoke/data --svg=docs/overlap.svg

The judge and the sandbox of a real run; the sampler is a clock: completions of
real questions, right ones and wrong ones, end evenly over `--seconds`, as long
as sampling them takes. What judging adds after the last one is what it costs.
The step is counted without its update, which would only make the share less.
"""

import argparse
import collections
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
WIDTH, LANE, LEFT = 900, 26, 110  # of the picture, in pixels


def answers(rows, tok, rollouts: int):
  """(tasks, tokens of each completion): every other answer is right."""
  from crjax import data

  tasks, tokens = [], []
  for row in rows:
    task = data.task(row)
    right = task['output'] if task['kind'] == 'output' else task['args']
    for r in range(rollouts):
      said = right if r % 2 else str(r)
      text = (
        f'<reasoning>\n{"x " * 60}\n</reasoning>\n<answer>\n{said}\n</answer>'
      )
      tokens.append([*tok(text)['input_ids'], tok.eos_token_id])
    tasks.append(task)
  return tasks, tokens


def stream(tokens, seconds: float, ended: list):
  """Completions at an even pace; `ended` notes when the last few came."""
  from crjax import engine

  began, n = time.perf_counter(), len(tokens)
  for b, some in enumerate(tokens):
    due = began + seconds * (b + 1) / n
    if (left := due - time.perf_counter()) > 0:
      time.sleep(left)
    ended.append(time.perf_counter())
    request = engine.Request([1], b, most=len(some), tag=b)
    yield engine.Completion(request, some, [0.0] * len(some), 'stop')


class Seen:
  """A pool, and when it was at work on how many jobs."""

  def __init__(self, pool):
    self.pool, self.spans = pool, []

  def run(self, jobs):
    began = time.perf_counter()
    found = self.pool.run(jobs)
    self.spans.append((began, time.perf_counter(), len(jobs)))
    return found


def picture(began, ended, spans, end, title) -> str:
  """A timeline as SVG: what is sampled above, what is judged below."""
  scale = (WIDTH - LEFT - 10) / (end - began)
  x = lambda t: LEFT + (t - began) * scale
  box = lambda a, b, lane, colour: (
    f'<rect x="{x(a):.1f}" y="{30 + lane * LANE}" height="{LANE - 6}" '
    f'width="{max((b - a) * scale, 0.5):.1f}" fill="{colour}"/>'
  )
  text = lambda at, y, said: f'<text x="{at}" y="{y}">{said}</text>'
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="110" '
    'font-family="sans-serif" font-size="12">',
    '<rect width="100%" height="100%" fill="white"/>',
    text(10, 18, title),
    text(10, 46, 'sampling'),
    text(10, 46 + LANE, 'judging'),
    box(began, ended[-1], 0, '#4477aa'),
    *(box(a, b, 1, '#ee6677') for a, b, _ in spans),
    text(LEFT, 104, '0 s'),
    text(WIDTH - 60, 104, f'{end - began:.1f} s'),
    '</svg>',
  ]
  return '\n'.join(parts) + '\n'


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--data', required=True, help='directory of a dataset')
  parser.add_argument('--completions', type=int, default=2048)
  parser.add_argument('--rollouts', type=int, default=16)
  parser.add_argument('--seconds', type=float, default=60.0)
  parser.add_argument('--workers', type=int, default=2)
  parser.add_argument('--svg', help='where the timeline goes')
  parser.add_argument('--json', help='also write the numbers to this file')
  args = parser.parse_args()
  from crjax import data, execution, grpo, tokenizer

  path = pathlib.Path(args.data)
  tok = tokenizer.load(path / 'tokenizer')
  rows = data.read(path / 'rl_train.parquet', {'id', 'kind', 'verify'})
  rows = [row for row in rows if row['kind'] in ('output', 'input')]
  count = args.completions // args.rollouts
  tasks, tokens = answers(rows[:count], tok, args.rollouts)
  if len(tasks) < count:
    sys.exit(f'{path} has {len(tasks)} questions; {count} are needed')
  clock, ended = collections.Counter(), []
  with execution.Pool(args.workers) as pool:
    seen = Seen(pool)
    judge = grpo.make_judge(
      tok,
      seen,
      rollouts=args.rollouts,
      steps=max(map(len, tokens)),
      pad_id=tok.eos_token_id,
      clock=clock,
    )
    began = time.perf_counter()
    _, rewards_QR, _ = judge(tasks, stream(tokens, args.seconds, ended))
    end = time.perf_counter()
  numbers = {
    'completions': len(tokens),
    'executed': sum(n for *_, n in seen.spans),
    'right': float(rewards_QR.mean()),
    'sampling_s': ended[-1] - began,
    'judging_s': clock['time/rewards_busy_s'],
    'exposed_s': end - ended[-1],
    'exposed_share': (end - ended[-1]) / (end - began),
    'workers': args.workers,
  }
  for name, value in numbers.items():
    print(f'{name:14} {value:10.4g}')
  if args.svg:
    title = (
      f'{len(tokens)} completions, {numbers["executed"]} executions: '
      f'{numbers["exposed_share"]:.2%} of the step waits for rewards'
    )
    text = picture(began, ended, seen.spans, end, title)
    pathlib.Path(args.svg).write_text(text)
  if args.json:
    pathlib.Path(args.json).write_text(json.dumps(numbers, indent=2) + '\n')


if __name__ == '__main__':
  main()
