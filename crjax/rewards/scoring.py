"""Binary rewards of a batch of completions; inputs are tried by execution."""

import numpy as np

from crjax.execution import Job
from crjax.rewards import answers, judge


def score(tasks, texts, truncated, pool):
  """(rewards_B float32, infos): 1 for a right answer in the right form.

  Args:
    tasks: dicts with kind, code, entry, args, output.
    texts: one completion a task.
    truncated: true where the completion hit its length limit: worth 0.
    pool: an `execution.Pool`; it learns the call to run, not its answer.

  Returns:
    Rewards, NaN where our own machinery failed, and one dict a completion:
    answer, format_ok, verdict ('pass', 'wrong', 'bad_answer', 'infra' or that
    of the execution), right, typed (right with types) and value (what it said
    or what its input returned).
  """
  found = [answers.extract(text) for text in texts]
  jobs, waiting, infos = [], [], []
  for task, answer in zip(tasks, found, strict=True):
    info, job = _parse(task, answer.text)
    if job is not None:
      waiting.append(len(infos))
      jobs.append(job)
    form = {'answer': answer.text, 'format_ok': answer.format_ok}
    infos.append(form | info)
  for i, result in zip(waiting, pool.run(jobs), strict=True):
    infos[i] |= _executed(tasks[i], result)
  rewards_B = np.array(
    [
      np.nan
      if info['verdict'] == 'infra'
      else float(info['right'] and info['format_ok'] and not cut)
      for info, cut in zip(infos, truncated, strict=True)
    ],
    np.float32,
  )
  return rewards_B, infos


def _parse(task, answer):
  """(info, the Job that decides it or None)."""
  if answer is None:
    return _verdict('bad_answer', detail='no answer'), None
  try:
    if task['kind'] == 'input':
      args = judge.input_arguments(answer, task['entry'])
      return {}, Job(task['code'], task['entry'], args)
    value = judge.output_literal(answer, task['entry'], task['args'])
  except judge.UNREADABLE as error:  # One text must not cost the batch.
    return _verdict('bad_answer', detail=str(error)), None
  return _compared(task, value, answer), None


def _executed(task, result):
  if result.verdict != 'ok':
    return _verdict(result.verdict, detail=result.detail)
  try:
    value = judge.literal(result.value)
  except ValueError as error:
    return _verdict('wrong', value=result.value, detail=str(error))
  return _compared(task, value, result.value)


def _compared(task, value, text):
  expected = judge.literal(task['output'])
  right = judge.strict_equal(value, expected)
  return _verdict(
    'pass' if right else 'wrong',
    right=right,
    typed=right and judge.typed_equal(value, expected),
    value=text,
  )


def _verdict(verdict, *, right=False, typed=False, value='', detail=''):
  return {
    'verdict': verdict,
    'right': right,
    'typed': typed,
    'value': value,
    'detail': detail,
  }
