"""Chains for the question of an input: from the result back to the arguments.

Told from the trace of arguments that give the result, and closed with a check
forwards; whoever reads it sees what each step was made from.
"""

import ast
import random

from data_pipeline import frames, narrate

GOALS = (
  'We need arguments for which {entry} returns {output}.',
  'The result has to be {output}.',
  'Which call of {entry} gives {output}? Go back from the end.',
)
CHECKS = ('Check {call}.', 'Try it: {call}.', 'Forwards, {call}:')


def backward(code, frame, call, output, seed, longest, *, parts=()):
  """From the result back to the arguments, then a check; None if too long."""
  rng = random.Random(seed)
  style, goal, check = (rng.choice(x) for x in (narrate.STYLES, GOALS, CHECKS))
  entry = call.partition('(')[0]
  for rounds, calls, inner in narrate.DETAILS[1:]:
    shown = parts if inner else ()
    told = [goal.format(entry=entry, output=output)]
    told += undone(code, frame)
    if None not in frame.args.values():
      told.append(f'So the arguments are {narrate.claims(frame.args)}.')
    told.append(check.format(call=call))
    told += narrate.Teller(code, style, rounds, calls, shown).frame(frame)
    told.append(f'This is {output}, as it has to be.')
    text = '\n'.join(told)
    if len(text) <= longest:
      return text
  return None


def undone(code, frame) -> list[str]:
  """The statements of the function's own body last to first, loops as one."""
  nodes, told, i = frames.nodes(code), [], 0
  visits = frame.visits
  while i < len(visits):
    node, j = nodes.get(visits[i].line), i + 1
    if isinstance(node, narrate.LOOPS | ast.If):
      while j < len(visits) and narrate.within(node, visits[j]):
        j += 1
    told.append(_undo(node, visits[i], visits[j - 1]))
    i = j
  return [line for line in reversed(told) if line]


def _undo(node, first, last) -> str:
  """What a statement was made from, and what it made."""
  if isinstance(node, ast.Return):
    read = narrate.known(frames.names_in(node), first.before or {})
    value = ast.unparse(node.value) if node.value else 'None'
    if not read:
      return ''
    return (
      f'Line {node.lineno} returns {value}, so there {narrate.claims(read)}.'
    )
  made = frames.changes(first.before, last.after)
  if not made:
    return ''
  read = set(frames.names_in(node)) if node else set()
  old = narrate.known([n for n in first.before if n in read], first.before)
  where = f'Line {first.line}'
  if isinstance(node, narrate.LOOPS | ast.If):
    where = f'Lines {node.lineno} to {node.end_lineno}'
  if not old:
    return f'{where}: {narrate.claims(made)}.'
  return f'{where}: {narrate.claims(made)} <- {narrate.claims(old)}.'
