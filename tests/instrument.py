"""What a tracer should see, by other means: the program tells it itself.

The syntax tree is rewritten so that every statement first reports its line and
the locals. Nothing of sys.settrace or of the tracer's code is used. Programs
may use what `tests/programs.py` generates: no `with`, `match`, or async.
"""

import ast
import itertools
import sys


class Witness:
  """Collects what an instrumented program reports.

  visits: [frame, line, next line, state] as `labels.corrected` gives them: next
  is -1 for a return, None (and so the state) where the line raised or paused.
  """

  def __init__(self):
    self.visits, self.frames = [], 0

  def enter(self):
    self.frames += 1
    return {'number': self.frames - 1, 'pending': None, 'error': None}

  def line(self, frame, line, variables):
    self._close(frame, line, variables)
    frame['pending'] = len(self.visits)
    self.visits.append([frame['number'], line, None, None])

  def caught(self, frame, line, variables):
    self.raised(frame)
    self.line(frame, line, variables)

  def raised(self, frame):
    """An exception passes; the line before raised it, or a `finally` ended."""
    error = sys.exc_info()[1]
    if frame['error'] is not error:
      frame['pending'], frame['error'] = None, error

  def loop(self, frame, line, items):
    """The items of a `for`, whose line runs again before each but the first."""
    items = iter(items)
    for again in itertools.chain([False], itertools.repeat(True)):
      if again:
        self.line(frame, line, dict(sys._getframe(1).f_locals))
      try:
        item = next(items)
      except StopIteration:
        return
      yield item

  def pause(self, frame, value=None):
    frame['pending'] = None
    return value

  def leave(self, frame, variables):
    self._close(frame, -1, variables)

  def _close(self, frame, following, variables):
    if frame['pending'] is not None:
      self.visits[frame['pending']][2:] = following, shown(variables)
    frame['pending'] = None


def shown(variables):
  data = (int, bool, str, list, tuple, set, type(None))
  return {
    name: [type(value).__name__, repr(value) if type(value) in data else None]
    for name, value in variables.items()
    if not name.startswith('_w')
  }


def instrumented(code: str, witness) -> dict:
  """The namespace of the program, whose functions report to `witness`."""
  tree = ast.parse(code)
  for node in tree.body:
    if isinstance(node, ast.FunctionDef):
      function(node)
  space = {'_w': witness, '__name__': 'program'}
  exec(
    compile(ast.fix_missing_locations(tree), '<instrumented>', 'exec'), space
  )
  return space


def function(node):
  body = block(node.body)
  guarded = parse(
    """
try:
  pass
except BaseException:
  _w.pause(_wf)
  raise
finally:
  _w.leave(_wf, locals())
"""
  )
  guarded[0].body = body
  node.body = parse('_wf = _w.enter()') + guarded


def block(statements):
  return [new for node in statements for new in statement(node)]


def statement(node):
  """The statement, after a report of its line."""
  Pauses().visit(node)
  report = parse(f'_w.line(_wf, {node.lineno}, locals())')
  if isinstance(node, ast.FunctionDef):
    function(node)
  elif isinstance(node, ast.Try):
    return report + attempt(node)
  elif isinstance(node, ast.If | ast.For | ast.While):
    node.body, node.orelse = block(node.body), block(node.orelse)
  if isinstance(node, ast.For):
    call = parse(f'_w.loop(_wf, {node.lineno}, 0)')[0].value
    call.args[2], node.iter = node.iter, call
  elif isinstance(node, ast.While):  # Its line runs before each pass.
    test = parse(f'_w.line(_wf, {node.lineno}, locals()) or 0')[0].value
    test.values[1], node.test, report = node.test, test, []
  return [*report, node]


def attempt(node):
  node.body, node.orelse = block(node.body), block(node.orelse)
  for i, handler in enumerate(node.handlers):
    report = 'line' if i else 'caught'  # The first one fits or leads on.
    source = f'_w.{report}(_wf, {handler.lineno}, locals()) or 0'
    handler.body = block(handler.body)
    if handler.type is None:
      handler.body = parse(source) + handler.body
    else:
      test = parse(source)[0].value
      test.values[1], handler.type = handler.type, test
  last, node.finalbody = block(node.finalbody), []
  if not last:
    return [node]
  outer = parse(
    """
try:
  pass
except BaseException:
  _w.raised(_wf)
  raise
finally:
  pass
"""
  )
  outer[0].body = [node] if node.handlers else node.body
  outer[0].finalbody = last
  return outer


class Pauses(ast.NodeTransformer):
  """`yield x` tells that its line pauses; only of this very function."""

  def visit_Yield(self, node):
    call = parse('_w.pause(_wf)')[0].value
    call.args += [node.value] if node.value else []
    return ast.Yield(call)

  def visit_FunctionDef(self, node):
    return node

  visit_Lambda = visit_FunctionDef

  def generic_visit(self, node):
    if isinstance(node, ast.stmt) and getattr(node, 'body', None):
      return node  # Its own statements get their turn.
    return super().generic_visit(node)


def parse(source):
  return ast.parse(source.strip()).body
