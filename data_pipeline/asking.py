"""Questions about cases, their gold answers, and chains that end in them."""

import ast
import random

from crjax import tokenizer
from crjax.execution import labels
from data_pipeline import backward, frames, narrate

KINDS = ('output', 'input', 'mixed', 'coverage', 'path', 'state')
# A question for a line that runs and one for a line that does not are told
# apart, so that as many of both can be asked.
ASKS = (*KINDS[:3], 'coverage YES', 'coverage NO', *KINDS[4:])
# Of path questions, those that the call's end answers; of state questions,
# those about a line that does not run. The limits are 35 % and 25 %.
ENDS, NIL = 0.2, 0.15
MOST_STEPS = 6  # of a mixed question, half about paths and half about states
BRANCHES = 4  # Weight of a branching line against any other.


def possible(program, case, events, chains) -> list[str]:
  """Those of ASKS, of the kinds wanted, for which `ask` has a row."""
  program = {'code': program.code, 'entry': program.entry}
  return [
    one
    for one in ASKS
    if one.partition(' ')[0] in chains['kinds']
    and isinstance(ask(one, program, case, events, chains), dict)
  ]


def ask(asked, program, case, events, chains, parts=()) -> dict | str:
  """A row {kind, verify, prompt, completion}, or why there is none.

  Args:
    asked: one of ASKS.
    program: {code, entry}; case: {args, output}; events: the trace of the case.
    chains: kinds; longest (characters); styles (of `narrate.STYLES`).
    parts: of `unfold.parts`, told where they fit.
  """
  kind, _, wanted = asked.partition(' ')
  seed = f'{kind} {program["code"]} {case["args"]}'
  rng = random.Random(seed)
  frame = frames.entry(events, program['code'])
  questions = []
  if kind not in ('output', 'input'):
    questions = steps(kind, wanted, program['code'], frame, events, rng)
    if not questions:
      return f'no {kind} question'
  task = {
    'code': program['code'],
    'entry': program['entry'],
    'args': case['args'],
    'output': case['output'],
  }
  chain = reason(kind, task, frame, questions, seed, chains, parts)
  if chain is None:
    return 'chain too long'
  return {
    'kind': kind,
    'verify': task
    | {
      'gold': questions[0]['gold'] if kind in tokenizer.STEPS else [],
      'questions': questions if kind == 'mixed' else [],
    },
    'prompt': tokenizer.messages(kind, **task, questions=questions),
    'completion': narrate.completion(chain, answer(kind, task, questions)),
  }


def answer(kind, task, questions) -> str:
  """The text that goes between the answer tags."""
  if kind == 'input':
    return f'{task["entry"]}({task["args"]})'
  if kind == 'output':
    return task['output']
  if kind != 'mixed':
    return questions[0]['gold'][0]
  lines = [f'Q{i}: {q["gold"][0]}' for i, q in enumerate(questions, 1)]
  return '\n'.join([task['output'], *lines])


def reason(kind, task, frame, questions, seed, chains, parts) -> str | None:
  """The chain of an answer; None where it does not fit."""
  call = f'{task["entry"]}({task["args"]})'
  longest, styles = chains['longest'], chains['styles']
  if kind == 'input':
    return backward.backward(
      task['code'],
      frame,
      call,
      task['output'],
      seed,
      longest,
      styles,
      parts=parts,
    )
  asked = [(q['line'], q['occ']) for q in questions if q['kind'] != 'coverage']
  visited = {(v.line, v.occ) for v in frame.visits}
  focus = [place for place in asked if place in visited]
  until = focus[0] if focus and kind != 'mixed' else None
  text = narrate.forward(
    task['code'],
    frame,
    call,
    seed,
    longest,
    styles,
    parts=parts,
    focus=focus,
    until=until,
  )
  if text is None:
    return None
  ends = [conclusion(q, frame) for q in questions]
  so = narrate.drawn(random.Random(seed), styles)['so']
  so = so.format(call=call, output=task['output'])
  if kind == 'mixed':
    ends = [f'Q{i}: {end}' for i, end in enumerate(ends, 1)]
  if kind in ('output', 'mixed'):
    ends.insert(0, so)
  return '\n'.join(filter(None, [text, *ends]))


def conclusion(question, frame) -> str:
  """Why the gold answer to a question about a step is what it is."""
  line, occ, gold = question['line'], question['occ'], question['gold'][0]
  ran = [v for v in frame.visits if v.line == line]
  if not ran and question['kind'] == 'coverage' and gold == 'YES':
    return f'Line {line} runs.'  # In a function that the entry calls.
  if not ran:
    return f'Line {line} never runs.'
  if question['kind'] == 'coverage':
    return f'Line {line} runs {times(len(ran))}.'
  where = f'after line {line}' + (f', time {occ}' if len(ran) > 1 else '')
  if question['kind'] == 'state':
    value, _, kind = gold.rpartition('; ')
    return f'{where.capitalize()}, {question["var"]} = {value} ({kind}).'
  if gold == '-1':
    return f'{where.capitalize()}, the call ends.'
  return f'{where.capitalize()}, line {gold} comes next.'


def times(n) -> str:
  return 'once' if n == 1 else f'{n} times'


def steps(kind, wanted, code, frame, events, rng) -> list[dict]:
  """Questions {kind, line, occ, var, gold} with one right answer each."""
  if kind == 'coverage':
    found = coverage(code, wanted, events, rng)
  elif kind == 'path':
    found = paths(code, frame, rng, 1)
  elif kind == 'state':
    found = states(code, frame, rng, 1)
  else:
    size = rng.randint(2, MOST_STEPS) // 2
    found = paths(code, frame, rng, size) + states(code, frame, rng, size)
  known = []
  for question in found:
    gold = labels.gold(events, code, question)
    if gold and len(gold) == 1 and '\n' not in gold[0]:
      known.append(question | {'gold': gold})
  return known


def question(kind, line, occ=1, var=''):
  return {'kind': kind, 'line': line, 'occ': occ, 'var': var}


def coverage(code, wanted, events, rng):
  """One line that runs or, where NO is the answer wanted, one that does not."""
  ran = {e.line for e in events if e.kind == 'line'}
  lines = ran_and_not(code, events)
  found = [n for n in lines if (n in ran) == (wanted == 'YES')]
  nodes = frames.nodes(code)
  # Lines inside something: whether the others run is no question.
  inner = [n for n in found if nodes[n].col_offset > first_column(nodes, n)]
  pool = inner or found
  return [question('coverage', rng.choice(pool))] if pool else []


def first_column(nodes, line):
  """Columns of a statement directly in its function or method."""
  owners = [
    n
    for n in nodes.values()
    if isinstance(n, ast.FunctionDef) and n.lineno <= line <= n.end_lineno
  ]
  return max(owners, key=lambda n: n.lineno).body[0].col_offset


def ran_and_not(code, events) -> list[int]:
  """Statements of the functions that were entered, whether they ran or not."""
  entered = {e.line for e in events if e.kind == 'call'}
  nodes = frames.nodes(code)
  found = set()
  for node in nodes.values():
    if isinstance(node, ast.FunctionDef) and node.lineno in entered:
      inside = range(node.body[0].lineno, node.end_lineno + 1)
      found |= labels.statements(code) & set(inside)
  return sorted(found)


def own_lines(code, frame):
  """Statements of the entry function itself."""
  nodes = frames.nodes(code)
  (entry,) = [
    n
    for n in nodes.values()
    if isinstance(n, ast.FunctionDef)
    and n.name == frame.name
    and n.col_offset == 0
  ]
  inside = range(entry.body[0].lineno, entry.end_lineno + 1)
  return sorted(labels.statements(code) & set(inside))


def unrun(code, frame):
  ran = {v.line for v in frame.visits}
  return [n for n in own_lines(code, frame) if n not in ran]


def paths(code, frame, rng, size):
  """Questions for the next line; few of them are answered by -1."""
  nodes = frames.nodes(code)
  visits = [v for v in frame.visits if v.next is not None]
  ends = [v for v in visits if v.next == labels.RETURNS]
  ends = [question('path', v.line, v.occ) for v in ends]
  ends += [question('path', n) for n in unrun(code, frame)]
  others = [v for v in visits if v.next != labels.RETURNS]
  found, places = [], set()
  for _ in range(3 * size):
    if len(found) == size:
      break
    if ends and rng.random() < ENDS:
      one = rng.choice(ends)
    elif others:
      branching = ast.If | ast.For | ast.While
      weights = [
        BRANCHES if isinstance(nodes.get(v.line), branching) else 1
        for v in others
      ]
      (visit,) = rng.choices(others, weights)
      one = question('path', visit.line, visit.occ)
    else:
      continue
    if (one['line'], one['occ']) not in places:
      places.add((one['line'], one['occ']))
      found.append(one)
  return found


def states(code, frame, rng, size):
  """Questions for a variable after a line that has changed it."""
  nodes, found, places = frames.nodes(code), [], set()
  changed = [
    question('state', v.line, v.occ, name)
    for v in frame.visits
    for name in frames.changes(v.before, v.after) or ()
  ]
  missed = [
    question('state', n, 1, name)
    for n in unrun(code, frame)
    for name in narrate.targets(nodes[n])
    if name.isidentifier()
  ]
  for _ in range(3 * size):
    if len(found) == size:
      break
    pool = missed if missed and rng.random() < NIL else changed
    if not pool:
      continue
    one = rng.choice(pool)
    place = one['line'], one['occ'], one['var']
    if place not in places:
      places.add(place)
      found.append(one)
  return found
