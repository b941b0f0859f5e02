"""How far one gets without looking at the question."""

import collections

from crjax.execution import Job

GUESSES = 20  # Calls that the baseline of inputs tries.


def baseline(rows, pool) -> dict:
  """{kind: accuracy} of the best constant answer to questions of two kinds.

  'output': the one literal that is right most often. 'input': the best of the
  GUESSES most frequent arguments, each tried with every program.
  """
  tasks = {
    kind: [row['verify'] for row in rows if row['kind'] == kind]
    for kind in ('output', 'input')
  }
  count = lambda kind, field: collections.Counter(t[field] for t in tasks[kind])
  best = {
    'output': max(count('output', 'output').values(), default=0),
    'input': max(
      (
        solved(tasks['input'], args, pool)
        for args, _ in count('input', 'args').most_common(GUESSES)
      ),
      default=0,
    ),
  }
  return {kind: n / max(len(tasks[kind]), 1) for kind, n in best.items()}


def solved(tasks, args, pool) -> int:
  """How many programs return what they should for some arguments."""
  jobs = [Job(t['code'], t['entry'], args) for t in tasks]
  return sum(
    result.verdict == 'ok' and result.value == task['output']
    for task, result in zip(tasks, pool.run(jobs), strict=True)
  )
