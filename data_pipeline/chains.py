"""Chains of reasoning rendered from real execution traces.

Forward: every executed line with what it made. Backward: the same lines last
to first, each with what it was made from, down to the arguments.
"""

import ast


def forward(code: str, steps, value: str) -> str:
  """How the call runs, line by line; begins with the arguments."""
  call, told = _narrate(code, steps, value, backward=False)
  return '\n'.join([call, *told])


def backward(code: str, steps, value: str) -> str:
  """How the value is undone, line by line; ends with the arguments."""
  call, told = _narrate(code, steps, value, backward=True)
  return '\n'.join([*reversed(told), call])


def completion(reasoning: str, answer: str) -> str:
  return (
    f'<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>'
  )


def _narrate(code, steps, value, *, backward):
  """(the arguments, one note a step) of a trace that begins with its call."""
  lines, nodes = code.split('\n'), _statements(code)
  variables, told = dict(steps[0].changed), []
  for step, after in zip(steps[1:], [*steps[2:], None], strict=True):
    before, variables = variables, variables | step.changed
    node = nodes[step.line]
    if isinstance(node, ast.Return):
      if isinstance(node.value, ast.Name):
        continue  # The line before has told it, or the answer will.
      note = value
    elif isinstance(node, ast.If | ast.While):
      note = str(_enters(node, after))
    elif isinstance(node, ast.For):
      note = variables[node.target.id] if _enters(node, after) else 'done'
    else:
      note = (before if backward else variables).get(_subject(node), 'new')
    told.append(f'{lines[step.line - 1].strip()} # {note}')
  call = ', '.join(f'{k} = {v}' for k, v in steps[0].changed.items())
  return call, told


def _statements(code):
  """Line number -> the statement that starts there."""
  nodes = ast.walk(ast.parse(code))
  return {node.lineno: node for node in nodes if isinstance(node, ast.stmt)}


def _enters(node, after):
  """Whether the step after a test or loop line is in its body."""
  first, last = node.body[0].lineno, node.body[-1].end_lineno
  return after is not None and first <= after.line <= last


def _subject(node):
  """The variable that a simple statement makes or changes."""
  target = node.targets[0] if isinstance(node, ast.Assign) else node
  target = getattr(target, 'target', target)  # x += 1
  if isinstance(target, ast.Expr):  # x.append(1)
    target = target.value.func
  while not isinstance(target, ast.Name):  # x[0] = 1
    target = target.value
  return target.id
