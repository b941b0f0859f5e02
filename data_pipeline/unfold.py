"""Names the parts of nested expressions, so that a trace has their values.

`y = f(x.upper())[1:]` becomes `part_0 = x.upper()`, `part_1 = f(part_0)`,
`y = part_1[1:]`. Parts are computed in the order in which Python would, and
only those that it computes in any case: what is behind `if`, `and`, `or` or in
a comprehension or lambda stays. Whether the rewritten program does the same is
checked by running it (`parts`).
"""

import ast
import collections
import copy

from crjax.execution import labels

NAME = 'part_'
LAZY = (ast.IfExp, ast.BoolOp, ast.Lambda, ast.ListComp, ast.SetComp)
LAZY += (ast.DictComp, ast.GeneratorExp, ast.JoinedStr, ast.NamedExpr)
NAMED = (ast.Call, ast.BinOp, ast.Subscript, ast.Compare)
PLAIN = (ast.Assign, ast.Return, ast.AugAssign, ast.Expr)


def unfold(code: str):
  """(program, lines, sources): line of the new program -> of the old one, and
  of a line that computes a part -> (its name, the source of the part).

  None where no expression is nested, or the program has such names itself.
  """
  if NAME in code:
    return None
  tree = ast.parse(code)
  sources = {}
  _rewrite(tree, sources)
  if not sources:
    return None
  text = ast.unparse(ast.fix_missing_locations(tree))
  lines, parts = {}, {}
  # Both have the same statements in the same order, but for the parts.
  old = iter(_statements(ast.parse(code)))
  for node in _statements(ast.parse(text)):
    name = _part_of(node)
    if name is None:
      lines[node.lineno] = next(old).lineno
    else:
      parts[node.lineno] = name
  named = {line: (name, sources[name]) for line, name in parts.items()}
  return text, lines, named


def _statements(tree):
  """All statements from top to bottom, `except` lines with them."""
  kinds = ast.stmt | ast.ExceptHandler
  nodes = [n for n in ast.walk(tree) if isinstance(n, kinds)]
  return sorted(nodes, key=lambda n: (n.lineno, n.col_offset))


def _part_of(node):
  if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
    name = node.targets[0].id
    return name if name.startswith(NAME) else None
  return None


def _rewrite(node, sources):
  """Puts the parts of the statements in a body before them, in place."""
  for field in ('body', 'orelse', 'finalbody'):
    body = getattr(node, field, None)
    if not isinstance(body, list):
      continue
    made = []
    for statement in body:
      if isinstance(statement, PLAIN) and statement.value is not None:
        statement.value = _named(statement.value, made, sources, outer=True)
      else:
        _rewrite(statement, sources)
      made.append(statement)
    setattr(node, field, made)


def _named(node, before, sources, outer=False):
  """The expression with its parts named; their assignments go to `before`."""
  if isinstance(node, LAZY) or not isinstance(node, ast.expr):
    return node
  if isinstance(node, ast.Compare) and len(node.ops) > 1:
    return node  # a < b < c may never look at c.
  original = copy.deepcopy(node)
  callee = node.func if isinstance(node, ast.Call) else None
  for field, value in ast.iter_fields(node):
    if value is callee and isinstance(callee, ast.Attribute):
      callee.value = _named(callee.value, before, sources)
    elif isinstance(value, ast.expr):
      setattr(node, field, _named(value, before, sources))
    elif isinstance(value, list):
      setattr(node, field, [_inside(v, before, sources) for v in value])
  if outer or not isinstance(node, NAMED) or not _depends(original):
    return node
  name = f'{NAME}{len(sources)}'
  sources[name] = ast.unparse(original)
  target = ast.Name(name, ast.Store())
  before.append(ast.Assign([target], node))
  return ast.Name(name, ast.Load())


def _inside(node, before, sources):
  if isinstance(node, ast.keyword):
    node.value = _named(node.value, before, sources)
    return node
  return _named(node, before, sources)


def _depends(node) -> bool:
  """Whether there is anything to compute, as there is not in `-1`."""
  return any(isinstance(n, ast.Name) for n in ast.walk(node))


def parts(code, events, unfolded, again) -> dict:
  """{(line, occ): [(source, text)]} of the parts of the lines of a run.

  Args:
    events: the trace of the program.
    unfolded: of `unfold`; again: the trace of that program.

  Calls happen in the same order in both, so frames have the same numbers. {}
  where the two runs differ in anything that both have.
  """
  text, lines, sources = unfolded
  mine, theirs = collections.defaultdict(list), collections.defaultdict(list)
  times = collections.Counter()
  for visit in labels.corrected(events, code):
    times[visit.line] += 1
    mine[visit.frame].append((visit, times[visit.line]))
  for visit in labels.corrected(again, text):
    theirs[visit.frame].append(visit)
  found = {}
  for frame, visits in theirs.items():
    told, own = [], iter(mine[frame])
    for visit in visits:
      if visit.line in sources:
        name, source = sources[visit.line]
        told.append((source, (visit.state or {}).get(name, ['', None])[1]))
        continue
      same, occ = next(own, (None, 0))
      if same is None or not _same(same, visit, lines):
        return {}
      found[same.line, occ] = [x for x in told if x[1] is not None]
      told = []
    if next(own, None) is not None:
      return {}
  return found if mine.keys() == theirs.keys() else {}


def _same(mine, theirs, lines) -> bool:
  """Whether two visits are of one line and leave the same variables."""
  if mine.line != lines.get(theirs.line):
    return False
  if mine.state is None or theirs.state is None:
    return mine.state is theirs.state
  plain = {k: v for k, v in theirs.state.items() if not k.startswith(NAME)}
  return plain == mine.state
