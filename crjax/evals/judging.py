"""What completions of a benchmark's prompts are worth, by all of its judges."""

from crjax.evals import official, prompts, reval_score
from crjax.rewards import score
from crjax.rewards.answers import FENCE, Answer, extract

UNLABELLED = 'unlabelled'  # No answer is right or wrong.


def judge(benchmark, style, tasks, texts, truncated, pools) -> list[dict]:
  """The dicts of `rewards.score`, and `official`: the scorer's own verdict.

  That is True, False, or None for an answer that the scorer drops.

  Args:
    benchmark: 'cruxeval', 'livecodebench', 'reval', or '' for tasks that have
      no scorer but ours.
    style: of `prompts.STYLES`.
    tasks: as `rewards.score` takes them.
    texts: one completion a task.
    truncated: true where the completion hit its length limit.
    pools: (for the strict judge, of `official.pool`).
  """
  if not benchmark:
    return score(tasks, texts, truncated, pools[0])[1]
  if benchmark == 'reval':
    return reval(style, tasks, texts, pools[1])
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


def reval(style, questions, texts, pool) -> list[dict]:
  """As `judge`; a question without a label of one kind has no such verdict."""
  found = reval_score.verdicts(questions, style, texts, pool)
  infos = []
  for verdict, text in zip(found, texts, strict=True):
    answer = read(style, text)
    right = bool(verdict['strict'])
    infos.append(
      {
        'answer': answer.text,
        'format_ok': answer.format_ok,
        'verdict': UNLABELLED
        if verdict['strict'] is None
        else ('pass' if right else 'wrong'),
        'right': right,
        'typed': right,
        'worth': float(right),
        'value': answer.text or '',
        'detail': '',
      }
    )
    if verdict['official'] is not None:
      infos[-1]['official'] = verdict['official']
  return infos


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
  in_form = bool(opened) or style == 'direct'
  return Answer(text or None, bool(text) and in_form)
