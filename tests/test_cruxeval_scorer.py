"""CRUXEval's scorer written down again, and every item of a real file by both.

It follows what is known of the published one (`evaluation/utils_general.py`,
`utils_execute.py`, `inference/tasks/`) and executes answers in plain processes,
without our sandbox: the answers here are this file's own.
"""

import json
import os
import subprocess
import sys
import tempfile

import pytest

from crjax.evals import completions, cruxeval

# Reads [[program, ...]] and writes a verdict for each: a forked process in an
# empty directory executes it, has 3 s by the clock, and is heard by no one.
EXECUTE = """
import contextlib, io, json, os, signal, sys, tempfile

def late(*_):
  raise TimeoutError

def passes(program):
  reader, writer = os.pipe()
  pid = os.fork()
  if not pid:
    word = b'failed'
    try:
      os.chdir(tempfile.mkdtemp(dir=sys.argv[1]))
      signal.signal(signal.SIGALRM, late)
      signal.setitimer(signal.ITIMER_REAL, 3)
      silent = io.StringIO()
      with contextlib.redirect_stdout(silent):
        with contextlib.redirect_stderr(silent):
          exec(program, {})
      signal.setitimer(signal.ITIMER_REAL, 0)
      word = b'passed'
    except BaseException:
      pass
    os.write(writer, word)
    os._exit(0)
  os.close(writer)
  with open(reader, 'rb') as file:
    word = file.read()
  os.waitpid(pid, 0)
  return word == b'passed'

json.dump([passes(x) for x in json.load(sys.stdin)], sys.stdout)
"""


def execute(programs):
  with tempfile.TemporaryDirectory() as folder:
    done = subprocess.run(
      [sys.executable, '-W', 'ignore', '-c', EXECUTE, folder],
      input=json.dumps(programs),
      capture_output=True,
      text=True,
      check=True,
      env=os.environ | {'PYTHONHASHSEED': '0'},
    )
  return json.loads(done.stdout)


def cut_out(kind, style, text):
  """The answer in a completion."""
  text = text.split('[/ANSWER]')[0]
  if style == 'cot' and '[ANSWER]' in text:
    text = text.split('[ANSWER]')[1].strip()
  if '==' in text:
    text = text.split('==')[1 if kind == 'output' else 0].strip()
  if kind == 'input' and 'assert f' in text:
    text = 'f' + text.split('assert f')[1].strip()
  return text.strip()


def their_lists(tasks, style, given):
  """{item: its list of verdicts}, of all completions at once."""
  programs, kept = [], {}
  for task in tasks:
    kind, args = task['kind'], task['args']
    answers = [cut_out(kind, style, text) for text in given[task['item']]]
    dropped = lambda g, k=kind, a=args: (
      f'f({a})' in g if k == 'output' else 'f(' not in g
    )
    some = [g for g in answers if not dropped(g)]
    kept[task['item']] = len(some), len(answers)
    programs += [
      f'{task["code"]}\nassert {task["output"]} == {g}' for g in some
    ]
  verdicts = iter(execute(programs))
  found = {}
  for item, (some, every) in kept.items():
    found[item] = [next(verdicts) for _ in range(some)]
    if True not in found[item]:
      found[item] = [False] * every
  return found


def their_pass_at_1(lists):
  """Percent: the unbiased estimate of one sample, 1 of no sample at all."""
  shares = []
  for verdicts in lists.values():
    n, c = len(verdicts), verdicts.count(True)
    shares.append(c / n if n - c >= 1 else 1.0)
  return 100 * sum(shares) / len(shares)


# Each is made of the call and the gold output of an item; some hold for both
# directions, some only where they make sense, and nonsense is welcome too.
ODD = (
  lambda call, gold: f'assert {call} == {gold}\n[/ANSWER]\nassert 1',
  lambda call, gold: f'[ANSWER]\nassert {call} == {gold}',
  lambda call, gold: f'1. So.\n[/THOUGHT]\n[ANSWER]\n{call} == {gold} == 3',
  lambda call, gold: f'assert {call} == 0 or True',
  lambda call, gold: f'{gold}, "said"',
  lambda call, gold: call,
  lambda call, gold: call.replace('f(', 'f( ', 1),
  lambda call, gold: f'{gold} # f(',
  lambda call, gold: gold.strip('()'),
  lambda call, gold: gold.replace('True', '1').replace('False', '0'),
  lambda call, gold: gold.replace(', ', ','),
  lambda call, gold: f'{gold} if {call} else None',
  lambda call, gold: f'{gold}\n\nimport os\nprint({call})',
  lambda call, gold: f'assert {call} == None',
  lambda call, gold: f'{gold}"',
  lambda call, gold: 'f() or f(1)',
  lambda call, gold: '',
  lambda call, gold: f'assert {call}\n== {gold}',
  lambda call, gold: f'list({gold})',
  lambda call, gold: f'The output is {gold}.',
)


@pytest.mark.parametrize('direction', cruxeval.DIRECTIONS)
def test_every_item_is_scored_as_published(assets, tmp_path, direction):
  data = assets / 'data' / 'cruxeval_first400.jsonl'
  tasks = [t for t in cruxeval.load(data) if t['kind'] == direction]
  given = {}
  for i, task in enumerate(tasks):
    call, gold = f'f({task["args"]})', task['output']
    some = [ODD[(3 * i + k) % len(ODD)](call, gold) for k in range(3)]
    # Every other item also has the answer itself.
    given[task['item']] = some[: 3 - i % 2] + [f'{call} == {gold}'] * (i % 2)
  path, style = (
    tmp_path / 'given.jsonl',
    'cot' if direction == 'input' else 'direct',
  )
  lines = [json.dumps({'id': k, 'texts': v}) for k, v in given.items()]
  path.write_text('\n'.join(lines))
  result = completions.run(
    'cruxeval', direction, style, data=data, given=path, out=None
  )
  theirs = their_lists(tasks, style, given)
  ours = {item['id']: item['official'] for item in result['items']}
  assert ours == theirs and len(ours) == 400
  expected = their_pass_at_1(theirs)
  assert result['official']['pass_at_1'] == pytest.approx(expected, abs=1e-9)
  assert 10 < expected < 90
  assert result['strict']['pass_at_1'] < expected
  accepted = sum(map(sum, theirs.values()))
  ours_too = sum(sum(item['strict']) for item in result['items'])
  assert 0 < ours_too < accepted
