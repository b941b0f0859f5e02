"""Scores of a REval run: accuracy of four tasks, consistency, constants.

Two sets of numbers. `official`: REval's labels and scorer. `strict`: corrected
labels, answers read as data; questions without such a label count in neither.
"""

import ast
import collections

from crjax.evals import reval_official
from crjax.execution import values
from crjax.rewards import judge

TASKS = ('coverage', 'state', 'path', 'output')  # The order of consistency.
CONSTANTS = {'coverage': 'YES', 'path': '-1', 'state': 'Nil'}
# Incremental consistency: how far the answers are right, one after the other.
WORTH = {4: 1.0, 3: 0.5, 2: 0.25, 1: 0.125, 0: 0.0}


def verdicts(questions, style: str, texts, pool) -> list[dict]:
  """[{official, strict}], each True, False, or None without a label."""
  regions = [reval_official.region(style, text) for text in texts]
  labelled = [
    i for i, q in enumerate(questions) if 'asked' in q or q['official']
  ]
  theirs = reval_official.judge(
    [questions[i] for i in labelled], [regions[i] for i in labelled], pool
  )
  found = [{'official': None, 'strict': None} for _ in questions]
  for i, verdict in zip(labelled, theirs, strict=True):
    found[i]['official'] = verdict
  for i, (question, text) in enumerate(zip(questions, regions, strict=True)):
    if question['kind'] == 'output' or question['corrected'] is not None:
      found[i]['strict'] = strict(question, text)
  return found


def strict(question, text: str) -> bool:
  """Whether an answer is right by the corrected labels; nothing is executed."""
  try:
    if question['kind'] == 'output':
      return filled(question, text)
    task = question | {'gold': question['corrected']}
    return judge.step(task, task, text)
  except ValueError:
    return False


def filled(question, text: str) -> bool:
  """Whether literals stand in the holes, each equal to the gold value.

  Around them the assertions must be those that were asked; lines before the
  first hole may be missing. Raises ValueError for anything else.
  """
  asked = _parsed(question['asked'].replace('??', '__hole__'))
  said, gold = _parsed(text), _parsed(question['gold'])
  missing = len(asked.body) - len(said.body)
  if missing > 0 and '??' in '\n'.join(question['asked'].split('\n')[:missing]):
    raise ValueError('fewer assertions than asked')
  said.body = asked.body[: max(missing, 0)] + said.body
  pairs = list(zip(_holes(asked, said), _holes(asked, gold), strict=True))
  return all(_equal(*pair) for pair in pairs)


def _holes(asked, other) -> list:
  """What stands in the places of the holes; ValueError if the rest differs."""
  if isinstance(asked, ast.Name) and asked.id == '__hole__':
    return [other]
  if isinstance(asked, ast.AST):
    if type(asked) is not type(other):
      raise ValueError('not the assertion that was asked')
    fields = [n for n in asked._fields if n not in ('ctx', 'kind')]
    pairs = [(getattr(asked, n), getattr(other, n)) for n in fields]
  elif isinstance(asked, list):
    if not isinstance(other, list) or len(asked) != len(other):
      raise ValueError('not the assertion that was asked')
    pairs = zip(asked, other, strict=True)
  elif asked != other:
    raise ValueError('not the assertion that was asked')
  else:
    pairs = []
  return [x for pair in pairs for x in _holes(*pair)]


def _equal(said, gold) -> bool:
  source = ast.unparse(gold)
  try:
    judge.expected(source)
  except ValueError:  # No literal, such as a date: then the same expression.
    return ast.dump(said) == ast.dump(gold)
  value = judge.texts(judge.literal(ast.unparse(said)))
  return values.equal(value[0], judge.expected(source)[0])


def _parsed(text):
  if len(text) > judge.LONGEST:
    raise ValueError('too long')
  try:
    return ast.parse(text.strip())
  except (SyntaxError, RecursionError, MemoryError) as error:
    raise ValueError(f'not Python: {error}') from error


def gold(question, mode: str) -> str:
  """The answer that is right by the labels of a mode."""
  if question['kind'] == 'output':
    return question['gold']
  label = question[mode][0]
  if question['kind'] != 'path' or label == '-1':
    return label
  return question['code'].split('\n')[int(label) - 1].strip()


def self_test(questions, pool):
  """Raises ValueError unless the labels' own answers all score."""
  for mode in ('official', 'corrected'):
    judged = [q for q in questions if 'asked' in q or q[mode]]
    if mode == 'official':  # Of `assertTrue(True)` its scorer refuses the gold.
      judged = [q for q in judged if q['kind'] != 'output' or _accepted(q)]
    texts = [f'[ANSWER]{gold(q, mode)}[/ANSWER]' for q in judged]
    name = {'official': 'official', 'corrected': 'strict'}[mode]
    found = verdicts(judged, 'direct', texts, pool)
    wrong = [
      q['id']
      for q, verdict in zip(judged, found, strict=True)
      if not verdict[name]
    ]
    if wrong:
      raise ValueError(
        f'{len(wrong)} of {len(judged)} gold answers are called wrong by the '
        f'{name} judge, so nothing is reported; the first: {wrong[:3]}'
      )


def _accepted(question):
  return reval_official.output(question, question['gold']) != ''


def of_items(questions, items) -> dict:
  """`summarize` of the first completion of each question; none is wrong."""
  found = []
  for question, item in zip(questions, items, strict=True):
    first = {}
    for mode, label in (('official', 'official'), ('strict', 'corrected')):
      has = question['kind'] == 'output' or question[label] is not None
      first[mode] = (item[mode] or [False])[0] if has else None
    found.append(first)
  return summarize(questions, found)


def summarize(questions, found) -> dict:
  """{official, strict: numbers}, `found` as `verdicts` gives them.

  Numbers, in percent: of each task {n, accuracy, HumanEval, ClassEval} and the
  constant's accuracy on the same questions; `f1` of coverage; `average`, the
  unweighted mean of the four accuracies; `consistency` over all lines that have
  a verdict on every task, {n, score}.
  """
  report = {}
  for mode, label in (('official', 'official'), ('strict', 'corrected')):
    rows = [
      (q, verdict[mode])
      for q, verdict in zip(questions, found, strict=True)
      if verdict[mode] is not None
    ]
    numbers = {kind: _task(kind, label, rows) for kind in TASKS}
    accuracies = [numbers[kind]['accuracy'] for kind in TASKS]
    known = [x for x in accuracies if x is not None]
    numbers['average'] = sum(known) / len(known) if len(known) == 4 else None
    numbers['consistency'] = consistency(rows)
    report[mode] = numbers
  return report


def _task(kind, label, rows):
  some = [(q, right) for q, right in rows if q['kind'] == kind]
  numbers = {'n': len(some), 'accuracy': _percent([r for _, r in some])}
  for source in ('HumanEval', 'ClassEval'):
    numbers[source] = _percent([r for q, r in some if q['source'] == source])
  if kind in CONSTANTS:
    answer = CONSTANTS[kind]
    numbers[f'always {answer}'] = _percent(
      [answer in q[label] for q, _ in some]
    )
  if kind == 'coverage':
    yes = [q[label] == ['YES'] for q, _ in some]
    hits = sum(y and right for y, (_, right) in zip(yes, some, strict=True))
    said = sum(y == right for y, (_, right) in zip(yes, some, strict=True))
    numbers['f1'] = (
      100 * 2 * hits / (said + sum(yes)) if said or any(yes) else None
    )
  return numbers


def consistency(rows) -> dict:
  """{n, score}: coverage, state, path and output of the same line and input."""
  output = {q['input']: right for q, right in rows if q['kind'] == 'output'}
  lines = collections.defaultdict(dict)
  for question, right in rows:
    if question['kind'] != 'output':
      lines[question['group']][question['kind']] = right
      lines[question['group']]['input'] = question['input']
  scores = []
  for line in lines.values():
    line['output'] = output.get(line['input'])
    if all(line.get(kind) is not None for kind in TASKS):
      right = [line[kind] for kind in TASKS]
      depth = [*right, False].index(False)
      scores.append(WORTH[depth] if not any(right[depth:]) else 0.0)
  return {
    'n': len(scores),
    'score': 100 * sum(scores) / len(scores) if scores else None,
  }


def _percent(values):
  return 100 * sum(values) / len(values) if values else None
