"""What makes two programs the same, or nearly: hashes, shingles, skeletons."""

import ast
import builtins
import collections
import hashlib

BUILTINS = frozenset(dir(builtins))
SHINGLE = 5  # tokens


def digest(text: str, characters=16) -> str:
  return hashlib.sha256(text.encode()).hexdigest()[:characters]


def program_hash(code: str) -> str:
  """Of a program without formatting, docstrings and the names it chooses."""
  return digest(ast.dump(renamed(ast.parse(code))))


def function_hashes(code: str) -> set[str]:
  """`program_hash` of each function of a program, methods included."""
  return {
    program_hash(ast.unparse(node))
    for node in ast.walk(ast.parse(code))
    if isinstance(node, ast.FunctionDef)
  }


def renamed(tree):
  """The tree with its own names v0, v1, ... in the order of their first use.

  Its own: functions, classes, parameters, variables and attributes that it
  assigns. Annotations and docstrings go.
  """
  own = _own_names(tree)
  names = {}
  new = lambda name: names.setdefault(name, f'v{len(names)}')
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      node.body = without_docstring(node.body)
      node.name = new(node.name)
    if isinstance(node, ast.FunctionDef):
      node.returns = None
    elif isinstance(node, ast.arg):
      node.arg, node.annotation = new(node.arg), None
    elif isinstance(node, ast.Name) and node.id in own:
      node.id = new(node.id)
    elif isinstance(node, ast.Attribute) and node.attr in own:
      node.attr = new(node.attr)
  return tree


def _own_names(tree):
  own = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      own.add(node.name)
    elif isinstance(node, ast.arg):
      own.add(node.arg)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
      own.add(node.id)
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
      own.add(node.attr)
  return own


def without_docstring(body):
  first = body[0]
  is_text = isinstance(first, ast.Expr) and isinstance(
    first.value, ast.Constant
  )
  return body[1:] or [ast.Pass()] if is_text else body


def statements(tree) -> collections.Counter:
  """{(hash, size)} of the statements in a tree, compound ones by their head.

  Names are numbered within each statement and literals are only their types,
  so that neither order, names nor constants matter. The size is in nodes.
  """
  found = collections.Counter()
  for node in ast.walk(tree):
    if isinstance(node, ast.FunctionDef):
      node.body = without_docstring(node.body)
    if isinstance(node, ast.stmt) and not isinstance(
      node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
    ):
      text, size = _shape(node)
      found[digest(text, 10), size] += 1
  return found


def _shape(statement):
  """(text, size) of a statement without its body, names and constants."""
  names, parts = {}, []

  def visit(node):
    if isinstance(node, ast.UnaryOp) and isinstance(node.operand, ast.Constant):
      node = node.operand  # -1 is a constant as 1 is.
    parts.append(type(node).__name__)
    if isinstance(node, ast.Constant):
      parts[-1] = type(node.value).__name__
    elif isinstance(node, ast.Name):
      known = node.id in BUILTINS
      parts[-1] = node.id if known else names.setdefault(node.id, len(names))
    elif isinstance(node, ast.arg):
      parts[-1] = names.setdefault(node.arg, len(names))
    elif isinstance(node, ast.Attribute):
      parts.append(node.attr)
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.stmt | ast.ExceptHandler):
        continue
      if not isinstance(child, ast.expr_context):
        visit(child)
    parts.append(')')

  visit(statement)
  return ' '.join(map(str, parts)), parts.count(')')


def skeleton(code: str) -> str:
  """Control flow and what is called, in order; no names, no constants."""
  return ' '.join(_skeleton(ast.parse(code).body))


def _skeleton(body):
  for node in body:
    yield type(node).__name__
    heads = [
      c for c in ast.iter_child_nodes(node) if not isinstance(c, ast.stmt)
    ]
    for head in heads:
      for inner in ast.walk(head):
        if isinstance(inner, ast.Call):
          called = inner.func
          if isinstance(called, ast.Attribute):
            yield f'.{called.attr}'
          elif isinstance(called, ast.Name) and called.id in BUILTINS:
            yield called.id
    for part in ('body', 'orelse', 'finalbody'):
      inside = getattr(node, part, None)
      if (
        isinstance(inside, list) and inside and isinstance(inside[0], ast.stmt)
      ):
        yield '('
        yield from _skeleton(inside)
        yield ')'


def shingles(code: str) -> frozenset[int]:
  """Hashes of all runs of SHINGLE nodes, names and constants by their kind."""
  parts = []
  for node in _in_order(renamed(ast.parse(code))):
    parts.append(type(node).__name__)
    if isinstance(node, ast.Attribute):
      parts.append(node.attr)
    elif isinstance(node, ast.Name):
      parts.append(node.id)
    elif isinstance(node, ast.Constant):
      parts.append(type(node.value).__name__)
  runs = (
    ' '.join(parts[i : i + SHINGLE])
    for i in range(max(1, len(parts) - SHINGLE + 1))
  )
  return frozenset(
    int.from_bytes(hashlib.blake2b(run.encode(), digest_size=4).digest())
    for run in runs
  )


def _in_order(node):
  yield node
  for child in ast.iter_child_nodes(node):
    if not isinstance(child, ast.expr_context | ast.arguments):
      yield from _in_order(child)


def features(code: str) -> dict:
  """Numbers of lines, loops, branches, helpers and classes; control depth."""
  tree = ast.parse(code)
  nodes = list(ast.walk(tree))
  count = lambda *kinds: sum(isinstance(n, kinds) for n in nodes)
  return {
    'lines': sum(bool(line.strip()) for line in code.split('\n')),
    'for': count(ast.For),
    'while': count(ast.While),
    'if': count(ast.If),
    'depth': control_depth(tree),
    'functions': count(ast.FunctionDef),
    'classes': count(ast.ClassDef),
  }


def control_depth(node) -> int:
  inner = max(map(control_depth, ast.iter_child_nodes(node)), default=0)
  return inner + isinstance(node, ast.For | ast.While | ast.If)
