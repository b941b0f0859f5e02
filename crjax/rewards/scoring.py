"""Binary rewards of a batch of completions; inputs are tried by execution."""

import contextlib

import numpy as np

from crjax.execution import Job, literals, values
from crjax.rewards import answers, judge

STEPS_SHARE = 0.5  # of the reward of a mixed question, for its steps
MODES = {'py': 0, 'typed': 1}  # places in the pair of canonical texts


def score(
  tasks,
  texts,
  truncated,
  pool,
  *,
  mode='py',
  published=False,
  extract=answers.extract,
):
  """(rewards_B float32, infos): 1 for a right answer in the right form.

  A question of kind 'mixed' asks for the output and, in `questions`, for steps.
  Where the output is right half the reward is the share of right steps.

  Args:
    tasks: dicts with kind, code, entry, args; for kind output and input the
      output as source; for coverage, path and state the right answers, one of
      which is enough, as a list of texts in `gold` (`labels.gold`).
    texts: one completion a task.
    truncated: true where the completion hit its length limit: worth 0.
    pool: an `execution.Pool`; it learns the call to run, not its answer.
    mode: the equality that decides about values: Python's, or 'typed', in
      which 1, True and 1.0 differ. States are always typed.
    published: the answers are a benchmark's own, not a model's: inputs that
      are no literals are evaluated, with the program's names, in the sandbox.
    extract: text -> (answer or None, whether the form is kept).

  Returns:
    Rewards, NaN where our own machinery failed, and one dict a completion:
    answer, format_ok, verdict ('pass', 'wrong', 'bad_answer', 'infra' or that
    of the execution), right, typed (right with types), worth (the reward if
    the form is kept), value (what it said or what its input returned) and
    detail. Of a mixed question also `final`, whether the output is right,
    `hits`, which steps are, and `steps`, their share.
  """
  found = [answers.Answer(*extract(text)) for text in texts]
  jobs, waiting, infos = [], [], []
  for task, answer in zip(tasks, found, strict=True):
    info, job = _read(task, answer.text, mode, published)
    if job is not None:
      waiting.append(len(infos))
      jobs.append(job)
    form = {'answer': answer.text, 'format_ok': answer.format_ok}
    infos.append(form | info)
  for i, job, result in zip(waiting, jobs, pool.run(jobs), strict=True):
    infos[i] |= _executed(tasks[i], job, result, mode)
  rewards_B = np.array(
    [
      np.nan
      if info['verdict'] == 'infra'
      else info['worth'] * (info['format_ok'] and not cut)
      for info, cut in zip(infos, truncated, strict=True)
    ],
    np.float32,
  )
  return rewards_B, infos


def _read(task, answer, mode, published):
  """(info, the Job that decides it or None)."""
  if 'output' in task:
    judge.expected(task['output'])  # Raises here, where it is not an answer's.
  if answer is None:
    return _verdict('bad_answer', detail='no answer'), None
  try:
    if task['kind'] == 'input':
      return {}, _job(task, answer, published)
    if task['kind'] == 'mixed':
      return _mixed(task, answer, mode), None
    if task['kind'] == 'output':
      said = judge.output(task, answer)
    else:
      said = judge.STEPS[task['kind']](task, answer)
  except literals.UNREADABLE as error:  # One text must not cost the batch.
    return _verdict('bad_answer', detail=str(error)), None
  if task['kind'] == 'output':
    return _compared(task, said, answer, mode), None
  right = judge.step(task, task, answer)
  verdict = 'pass' if right else 'wrong'
  return _verdict(verdict, right=right, typed=right, value=answer), None


def _mixed(task, answer, mode):
  """The first line is the output, the others are `Qk: ...`."""
  first, _, rest = answer.partition('\n')
  first = first.strip()
  info = _compared(task, judge.output(task, first), first, mode)
  said = judge.numbered(rest) if rest else {}
  hits = [False] * len(task['questions'])
  for k, question in enumerate(task['questions'], 1):
    with contextlib.suppress(ValueError):
      hits[k - 1] = k in said and judge.step(task, question, said[k])
  share = sum(hits) / len(hits)
  whole = info['right'] and share == 1
  worth = info['right'] * (1 - STEPS_SHARE + STEPS_SHARE * share)
  verdict = 'pass' if whole else 'wrong'
  return info | {
    'verdict': verdict,
    'right': whole,
    'typed': info['typed'] and share == 1,
    'worth': worth,
    'value': answer,
    'final': info['right'],
    'steps': share,
    'hits': hits,
  }


def _job(task, answer, published):
  try:
    return Job(task['code'], task['entry'], judge.arguments(task, answer))
  except literals.UNREADABLE:
    if not published:
      raise
    # Without an entry arguments are expressions: here the call, as it is.
    return Job(task['code'], '', answer)


def _executed(task, job, result, mode):
  if result.verdict != 'ok':
    return _verdict(result.verdict, detail=result.detail)
  # Without an entry the value is ([the call's value], {}).
  wrapped = '' if job.entry else '([{}], {{}})'
  said = result.py, result.strict
  return _compared(task, said, result.value, mode, wrapped)


def _compared(task, said, text, mode, wrapped=''):
  source = wrapped.format(task['output']) if wrapped else task['output']
  pairs = zip(said, judge.expected(source), strict=True)
  equal = [values.equal(a, b) for a, b in pairs]
  right = equal[MODES[mode]]
  verdict = 'pass' if right else 'wrong'
  return _verdict(verdict, right=right, typed=equal[1], value=text)


def _verdict(verdict, *, right=False, typed=False, value='', detail=''):
  return {
    'verdict': verdict,
    'right': right,
    'typed': typed,
    'worth': float(right),
    'value': value,
    'detail': detail,
  }
