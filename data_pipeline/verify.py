"""Checks a dataset of the factory row by row; nothing in it is taken on trust.

  python -m data_pipeline.verify DIR [--tokenizer=DIR]

Every program is executed and traced anew. Its output, the right answers to
questions about its steps and the prompt must be those of the row; the answer
must pass the strict judge; and every value that a chain of reasoning states
must be that of the step it is about (`replay`). Ends with status 1 if any row
fails, and shows the first ones.
"""

import collections
import json
import pathlib
import re
import statistics
import sys

from absl import app, flags

from crjax import rewards, tokenizer
from crjax.execution import Job, Pool, labels, literals
from data_pipeline import asking, frames, instrument, narrate, replay, select

BATCH = 400  # rows at a time
SHOWN = 5  # failures
ASKED = {  # How a prompt asks about a step; see tokenizer.STEPS.
  'coverage': r'Does line (?P<line>\d+) run\?',
  'path': r'after line (?P<line>\d+) runs for the (?P<occ>\d+)',
  'state': r'What is (?P<var>.+) right after line (?P<line>\d+) has run '
  r'for the (?P<occ>\d+)',
}


class Report:
  """What was compared, and what was wrong."""

  def __init__(self):
    self.counts = collections.Counter()
    self.failures = []

  def failed(self, row, reason):
    self.counts['failures'] += 1
    self.failures.append(f'{row["id"]}: {reason}')


def check(directory, workers, min_level) -> Report:
  """Reads all splits of a dataset and compares them with new runs.

  Raises FileNotFoundError where there are none.
  """
  import datasets

  report = Report()
  files = {s: directory / f'{s}.parquet' for s in select.SPLITS}
  files = {split: path for split, path in files.items() if path.exists()}
  if not files:
    raise FileNotFoundError(
      f'{directory} has none of {select.SPLITS}; give a dataset of the factory'
    )
  with Pool(workers, min_level=min_level) as pool:
    for split, path in files.items():
      rows = datasets.Dataset.from_parquet(str(path)).to_list()
      for start in range(0, len(rows), BATCH):
        some = rows[start : start + BATCH]
        compare(some, pool, report)
        done = start + len(some)
        print(f'verify: {split}: {done:,} of {len(rows):,} rows', flush=True)
  return report


def compare(rows, pool, report):
  """Executes the programs of some rows and checks all that rows say."""
  jobs = [
    Job(v['code'], v['entry'], v['args'], trace=True)
    for v in (row['verify'] for row in rows)
  ]
  results = pool.run(jobs)
  seen = instrument.seen(jobs, [told(row) for row in rows], pool)
  for row, result, parts in zip(rows, results, seen, strict=True):
    report.counts['rows'] += 1
    try:
      facts(row, result)
      if 'messages' in row:
        report.counts['chains'] += 1
        report.counts['values'] += chain(row, result.trace, parts)
    except replay.Wrong as error:
      report.failed(row, error)
  judge(rows, pool, report)


def told(row) -> str:
  """The chain of a row, '' where it has none."""
  if 'messages' not in row:
    return ''
  text = row['messages'][-1]['content']
  head, tail = narrate.completion('\0', '\0').split('\0')[:2]
  return text.partition(tail)[0].removeprefix(head)


def facts(row, result):
  """Output, golds and prompt of a row against a new run of its program."""
  verify = row['verify']
  if result.verdict != 'ok':
    raise replay.Wrong(f'the program ends with {result.verdict}')
  if literals.render(literals.parse(result.value)) != verify['output']:
    raise replay.Wrong(f'the program returns {result.value}')
  questions = asked(row)
  for question in questions:
    gold = labels.gold(result.trace, verify['code'], question)
    if gold != question['gold']:
      raise replay.Wrong(f'the answer to {question} is {gold}')
  task = {k: verify[k] for k in ('code', 'entry', 'args', 'output')}
  prompt = tokenizer.messages(row['kind'], **task, questions=questions)
  if prompt != row.get('prompt', row.get('messages'))[:2]:
    raise replay.Wrong('the prompt asks something else')


def asked(row) -> list[dict]:
  """The questions about steps of a row, with their answers."""
  kind, verify = row['kind'], row['verify']
  if kind == 'mixed':
    return verify['questions']
  if kind not in ASKED:
    return []
  turns = row.get('prompt') or row['messages']
  found = re.search(ASKED[kind], turns[1]['content'].rpartition('\n')[2])
  if not found:
    raise replay.Wrong('the prompt has no question')
  fields = found.groupdict()
  occ = int(fields.get('occ', 1))
  line, var = int(fields['line']), fields.get('var', '')
  return [asking.question(kind, line, occ, var) | {'gold': verify['gold']}]


def chain(row, events, seen) -> int:
  """Compares a chain with a trace; the number of its values."""
  verify, kind, questions = row['verify'], row['kind'], asked(row)
  call = f'{verify["entry"]}({verify["args"]})'
  texts = told(row).split('\n')
  ends = []
  if kind in ('output', 'mixed'):
    ends.append(f'So {call} is {verify["output"]}.')
  for i, question in enumerate(questions, 1):
    head = f'Q{i}: ' if kind == 'mixed' else ''
    ends.append(head + conclusion(question, events, verify['code']))
  if kind == 'output' and texts[-1:] != ends:
    ends = []  # Nothing but the lines; the answer follows.
  if ends and texts[-len(ends) :] != ends:
    raise replay.Wrong(f'expected the conclusions {ends}')
  frame = frames.entry(events, verify['code'])
  output = verify['output'] if kind == 'input' else ''
  body = texts[: len(texts) - len(ends)]
  return len(ends) + replay.chain(
    verify['code'], frame, seen, body, call, output
  )


def conclusion(question, events, code) -> str:
  """The last sentence about a question, made of the labels alone."""
  line, kind, gold = question['line'], question['kind'], question['gold'][0]
  visits = labels.corrected(events, code)
  entry = [v for v in visits if v.line == line and v.frame == 0]
  if not any(v.line == line for v in visits):
    return f'Line {line} never runs.'
  times = {0: '.', 1: ' once.'}.get(len(entry), f' {len(entry)} times.')
  if kind == 'coverage':
    return f'Line {line} runs{times}'
  time = f', time {question["occ"]}' if len(entry) > 1 else ''
  if kind == 'state':
    value, _, name = gold.rpartition('; ')
    return f'After line {line}{time}, {question["var"]} = {value} ({name}).'
  comes = 'the call ends' if gold == '-1' else f'line {gold} comes next'
  return f'After line {line}{time}, {comes}.'


def judge(rows, pool, report):
  """The answer of each row, its own or the right one, before the judge."""
  tasks = [{'kind': row['kind']} | row['verify'] for row in rows]
  texts = [
    row['messages'][-1]['content']
    if 'messages' in row
    else narrate.completion('', asking.answer(row['kind'], task, asked(row)))
    for row, task in zip(rows, tasks, strict=True)
  ]
  worth, infos = rewards.score(
    tasks, texts, [False] * len(rows), pool, mode='typed'
  )
  for row, reward, info in zip(rows, worth, infos, strict=True):
    report.counts['answers'] += 1
    if reward != 1:
      report.failed(row, f'the judge says {info["verdict"]}: {info["detail"]}')


def sizes(directory, path) -> str:
  """Mean and 95th percentile of the tokens of completions."""
  import datasets

  tok = tokenizer.load(path)
  rows = datasets.Dataset.from_parquet(str(directory / 'sft_train.parquet'))
  texts = [turns[-1]['content'] for turns in rows['messages']]
  tokens = sorted(len(tok(text)['input_ids']) for text in texts)
  return (
    f'tokens of {len(tokens):,} completions: mean '
    f'{statistics.fmean(tokens):.1f}, 95 % {tokens[int(0.95 * len(tokens))]}, '
    f'longest {tokens[-1]}'
  )


def main(argv):
  directory, f = pathlib.Path(argv[1]), flags.FLAGS
  report = check(directory, f.workers, f.sandbox_min_level)
  print('\n'.join(report.failures[:SHOWN]))
  print(f'verify: {json.dumps(report.counts)}')
  if f.tokenizer:
    print(f'verify: {sizes(directory, f.tokenizer)}')
  if report.failures:
    sys.exit(
      f'verify: {directory} is not right: {len(report.failures)} failures'
    )


if __name__ == '__main__':
  flags.DEFINE_integer('workers', 2, 'Sandboxes that run programs.')
  flags.DEFINE_integer('sandbox_min_level', 2, 'See crjax.execution probe.')
  flags.DEFINE_string('tokenizer', '', 'Counts the tokens of completions.')
  app.run(main)
