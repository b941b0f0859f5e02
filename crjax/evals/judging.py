"""What completions of a benchmark's prompts are worth, by all of its judges."""

from crjax.evals import official, prompts
from crjax.rewards import score
from crjax.rewards.answers import FENCE, Answer, extract


def judge(benchmark, style, tasks, texts, truncated, pools) -> list[dict]:
  """The dicts of `rewards.score`, and `official`: the scorer's own verdict.

  That is True, False, or None for an answer that the scorer drops.

  Args:
    benchmark: 'cruxeval', 'livecodebench', or '' for tasks that have no scorer
      but ours.
    style: of `prompts.STYLES`.
    tasks: as `rewards.score` takes them.
    texts: one completion a task.
    truncated: true where the completion hit its length limit.
    pools: (for the strict judge, of `official.pool`).
  """
  if not benchmark:
    return score(tasks, texts, truncated, pools[0])[1]
  asked = [prompts.ask(benchmark, task, style) for task in tasks]
  said = iter(read(style, x, p) for x, p in zip(texts, asked, strict=True))
  _, infos = score(
    tasks, texts, truncated, pools[0], extract=lambda _: next(said)
  )
  given = [
    official.extract(benchmark, task['kind'], style, text, prompt)
    for task, text, prompt in zip(tasks, texts, asked, strict=True)
  ]
  verdicts = official.judge(benchmark, tasks, given, pools[1])
  return [
    info | {'official': verdict}
    for info, verdict in zip(infos, verdicts, strict=True)
  ]


def read(style: str, completion: str, prompt='') -> Answer:
  """The answer for the strict judge, and whether it stands where it should.

  The few-shot prompts end in an open tag, so that no tag need be there.
  """
  if style not in ('cot', 'direct'):
    return extract(completion)
  text = official.continuation(completion, prompt)
  text, closed, _ = text.partition(prompts.STOP)
  before, opened, after = text.partition('[ANSWER]')
  if style == 'cot' and not opened and (closed or '[/THOUGHT]' in before):
    return Answer(None, False)  # Thoughts, and nothing after them.
  text = (after if opened else before).split('[ANSWER]')[0].strip()
  fenced = FENCE.fullmatch(text)
  text = fenced[1].strip() if fenced else text
  return Answer(text or None, bool(text) and (opened or style == 'direct'))
