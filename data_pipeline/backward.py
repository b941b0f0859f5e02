"""Chains for the question of an input: from the result back to the arguments.

Told from the trace of arguments that give the result, and closed with a check
forwards; whoever reads it sees what each step was made from.
"""

import ast
import random

from data_pipeline import frames, narrate


def backward(
  code, frame, call, output, seed, longest, styles=narrate.ALL, *, parts=()
):
  """From the result back to the arguments, then a check; None if too long."""
  rng = random.Random(seed)
  style = narrate.drawn(rng, styles)
  goal, check = (rng.choice(style[x]) for x in ('goals', 'checks'))
  entry = call.partition('(')[0]
  for rounds, calls, inner in narrate.DETAILS[1:]:
    shown = parts if inner else ()
    told = [
      goal.format(entry=entry, output=output),
      *undone(code, frame, style),
    ]
    if None not in frame.args.values():
      args = narrate.arguments(frame)
      told.append(style['arguments'].format(args=args))
    if check:
      told.append(check.format(call=call))
      told += narrate.Teller(code, style, rounds, calls, shown).frame(frame)
      told.append(style['right'].format(output=output))
    text = '\n'.join(filter(None, told))
    if len(text) <= longest:
      return text
  return None


def undone(code, frame, style) -> list[str]:
  """The statements of the function's own body last to first, loops as one."""
  told = [
    _undo(code, node, frame.visits[i], frame.visits[j - 1], style)
    for node, i, j in groups(code, frame)
  ]
  return [line for line in reversed(told) if line]


def groups(code, frame):
  """(node, first, behind the last visit) of the statements of a body."""
  nodes, found, i = frames.nodes(code), [], 0
  visits = frame.visits
  while i < len(visits):
    node, j = nodes.get(visits[i].line), i + 1
    if isinstance(node, narrate.LOOPS | ast.If):
      while j < len(visits) and narrate.within(node, visits[j]):
        j += 1
    found.append((node, i, j))
    i = j
  return found


def _undo(code, node, first, last, style) -> str:
  """What a statement was made from, and what it made."""
  if isinstance(node, ast.Return):
    read = narrate.known(frames.names_in(node), first.before or {})
    value = ast.unparse(node.value) if node.value else 'None'
    return read and style['returned'].format(
      n=node.lineno, source=value, old=narrate.claims(read)
    )
  made = frames.changes(first.before, last.after)
  if not made:
    return ''
  read = set(frames.names_in(node)) if node else set()
  old = narrate.known([n for n in first.before if n in read], first.before)
  where = f'Line {first.line}'
  if isinstance(node, narrate.LOOPS | ast.If):
    where = f'Lines {node.lineno} to {node.end_lineno}'
  return style['undone' if old else 'made'].format(
    where=where,
    code=narrate.shown(code, first.line),
    made=narrate.claims(made),
    old=narrate.claims(old),
  )
