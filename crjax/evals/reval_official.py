"""REval's own scorer (`evaluation.py`), defects included, in the sandbox.

Its answers are evaluated or executed: states as Python expressions, outputs as
test code. Here that happens where it can reach nothing.
"""

import re
import textwrap

from crjax.execution import Job, literals, values
from crjax.rewards import answers

TYPES = {'string': 'str', 'integer': 'int', 'none': 'NoneType'}
TYPES |= {'nonetype': 'NoneType'}
PENALTIES = (
  'assertTrue(True)',
  'assertFalse(False)',
  'assert True',
  'assert False',
)


def region(style: str, completion: str) -> str:
  """The answer's text; with 'cot' there is none before the thoughts end."""
  if style not in ('cot', 'direct'):
    return answers.extract(completion).text or ''
  if style == 'cot' and '[/THOUGHT]' not in completion.upper():
    return ''
  text = completion.partition('[ANSWER]')[2] or completion
  return text.split('[/ANSWER]')[0].strip()


def judge(questions, regions, pool) -> list[bool]:
  """The scorer's verdict on each answer.

  Args:
    questions: of `reval.load`; those of lines need `official` labels.
    regions: see `region`.
    pool: an `execution.Pool`; see `official.pool`.

  Raises RuntimeError where the sandbox gave no verdict.
  """
  found, jobs = [False] * len(questions), {}
  for i, (question, text) in enumerate(zip(questions, regions, strict=True)):
    if question['kind'] == 'coverage':
      found[i] = [coverage(text)] == question['official']
    elif question['kind'] == 'path':
      said = path(question['code'], text)
      found[i] = any(x in question['official'] for x in said)
    elif question['kind'] == 'output':
      source = output(question, text)
      jobs[i] = Job(source, '', 'True') if source else None
    elif text.capitalize() == 'Nil' or text == '[Nil]':
      found[i] = question['official'] == ['Nil']
    else:
      value = text.rpartition(';')[0].strip()
      jobs[i] = Job('', '', f'({value}\n)') if value else None
  jobs = {i: job for i, job in jobs.items() if job}
  for i, result in zip(jobs, pool.run(list(jobs.values())), strict=True):
    if result.verdict == 'infra':
      raise RuntimeError(
        f'the sandbox gave no verdict on {questions[i]["id"]}: {result.detail}'
      )
    right = result.verdict == 'ok'
    if questions[i]['kind'] == 'state':
      right = state(questions[i]['official'], regions[i], result)
    found[i] = right
  return found


def coverage(text: str) -> str:
  """YES or NO, whichever the first three characters hold; else NO."""
  start = text.upper().strip()[:3]
  return 'YES' if 'YES' in start and 'NO' not in start else 'NO'


def path(code: str, text: str) -> list[str]:
  """Numbers of all lines that read like the answer's first; none is '-2'."""
  text = text.split('\n')[0].strip()
  if text == '-1':
    return ['-1']
  lines = code.split('\n')
  same = [str(i) for i, x in enumerate(lines, 1) if x.strip() == text and text]
  return same or ['-2']


def state(gold: list[str], text: str, result) -> bool:
  """Whether the value, evaluated, is any of the gold ones, of its type."""
  said, _, kind = text.rpartition(';')
  kind = kind.strip().lower()
  kind = re.sub(r"^<class '(.*)'>$", r'\1', kind)
  kind = re.sub(r'^(.*)\[.*\]$', r'\1', kind)
  kind = TYPES.get(kind, kind)
  try:
    if result.verdict == 'ok':
      ((value,), _) = literals.parse(result.value)
    elif kind == 'str':
      value = said.strip()  # What is no expression is the text itself.
    else:
      return False
    parts = [x.rpartition('; ') for x in gold if x != 'Nil']
    golden = [literals.parse(source) for source, _, _ in parts]
    if type(value).__name__ != kind or kind not in {x for *_, x in parts}:
      return False
    if kind == 'float':
      floats = [x for x in golden if isinstance(x, float)]
      return any(abs(value - x) < 1e-6 for x in floats)
    texts = [values.texts(x)[0] for x in golden]
    return any(values.equal(values.texts(value)[0], x) for x in texts)
  except (ValueError, values.Unsupported):
    return False


def output(question: dict, text: str) -> str:
  """The program that its scorer runs; '' where it does not.

  Missing lines are taken from the question, and what merely repeats or drops
  an assertion is refused, as is every `assertTrue(True)`, right or not.
  """
  asked, said = question['asked'].strip().split('\n'), text.strip().split('\n')
  if len(said) < len(asked):
    said = asked[: len(asked) - len(said)] + said
  text = '\n'.join(said)
  if any(x in text for x in PENALTIES):
    return ''
  if text.count('assert') < question['asked'].count('assert'):
    return ''
  if question['source'] == 'HumanEval':
    return f'{question["program"]}\n{text}'
  # It replaces the word wherever it is, in strings and in `self.assertTrue`.
  body = textwrap.indent(text, '\t').replace('assert', 'self.assert')
  return '\n'.join(
    [
      question['program'],
      'def dreval_output_pred(self):',
      body,
      'dreval_self = DREvalTest()',
      'dreval_self.setUp()',
      'dreval_output_pred(dreval_self)',
    ]
  )
