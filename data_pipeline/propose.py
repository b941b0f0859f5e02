"""Back-end B: programs that a language model writes to order, one an answer.

What is asked for goes round as in back-end A (`synth.aim`). An answer is read
as data and becomes a `synth.Program`, or is dropped with a reason; from there
on it is treated as the grammar's programs are.
"""

import ast
import random
import re

from crjax.execution import literals
from data_pipeline import filters, identity, inventory, literal, synth
from data_pipeline.cases import SHOWN, Dropped

FENCE = re.compile(r'```[a-zA-Z0-9]*[ \t]*\n(.*?)```', re.DOTALL)
SYSTEM = (
  'You write short Python programs for an exercise: its reader predicts, '
  'without a computer, what one call returns.'
)
TASK = """Write a Python program around this operation on a value of type \
{kind}:

    {source}

(the names in it are examples, and it may stand in a larger expression).

- {level}
- The entry is a function `{name}` with {arity}, of type {kinds}. Each \
parameter changes the result.
- The result is an int, bool, str, list, tuple, dict or set; never a float or \
None, and never one of the arguments as it was.
- 3 to 25 lines. No default values, *args, comments, docstrings, annotations, \
print, input, files, randomness or time. Imports, if any, only of {modules}.
- What it computes is not a well-known exercise.

End with one Python code block. It holds the definitions and, as its last \
line, one call of `{name}` with literal arguments, for which most lines run \
and the result is not obvious."""
LEVELS = {
  'nested': (
    'No if, for or while statement. Calls are nested, at least two deep.'
  ),
  'builtins': (
    'No if, for or while statement. Several statements, which use at least '
    'two more builtin functions or methods, of str, list, set or tuple.'
  ),
  'depth1': 'Control flow is one deep: {blueprint}.',
  'depth2': 'Control flow is two deep: {blueprint}.',
  'depth3': 'Control flow is three deep: {blueprint}.',
  'helper': (
    'Two functions: the entry calls the other one. There is control flow, one '
    'or two deep: {blueprint}.'
  ),
  'class': (
    'A small class with __init__ and two methods, one of which changes the '
    'object; the entry makes an object of it and uses both.'
  ),
}
DEPTH = {'depth2': 2, 'depth3': 3}
BLOCKS = ('if', 'for', 'while', 'if with elif')
KINDS = {
  'ints': 'list of int',
  'strs': 'list of str',
  'nested': 'list of lists of int',
  'ituple': 'tuple of int',
  'stuple': 'tuple of str',
  'iset': 'set of int',
  'sset': 'set of str',
  'pairs': 'list of (str, int) pairs',
  'dict': 'dict of str to int',
  'groups': 'dict of str to list of int',
}


def messages(seed, index: int) -> list[dict]:
  """What is asked for the candidate of a seed and a number."""
  rng = random.Random(f'{seed}:{index}')
  level, target, arity = synth.aim(index)
  name, kinds = synth.signature(rng, target, arity)
  blueprint = rng.choices(BLOCKS, k=DEPTH.get(level, 1))
  text = TASK.format(
    kind=english(next(iter(target.holes.values()))),
    source=target.source.format(**{hole: hole for hole in target.holes}),
    level=LEVELS[level].format(blueprint=', in it '.join(blueprint)),
    name=name,
    arity='1 parameter' if arity == 1 else f'{arity} parameters',
    kinds=', '.join(map(english, kinds)),
    modules=', '.join(sorted(filters.MODULES)),
  )
  return [
    {'role': 'system', 'content': SYSTEM},
    {'role': 'user', 'content': text},
  ]


def english(kind) -> str:
  if kind in ('num', 'idx', 'few', 'width'):
    return 'int'
  return 'str' if kind in ('char', 'sub') else KINDS.get(kind, kind)


def programs(answers, first: int, longest_args: int):
  """(programs, {reason: answers that hold none}) of answers in their order.

  Args:
    answers: {text, finish}, the one at place i for the number first + i.
    longest_args: characters.
  """
  found, unread = [], {}
  for index, answer in enumerate(answers, first):
    text = answer['text']
    try:
      found.append(program(text, answer['finish'], index, longest_args))
    except Dropped as error:
      unread.setdefault(str(error), []).append(text[:SHOWN])
  return found, unread


def program(text, finish, index: int, longest_args: int) -> synth.Program:
  """The program of an answer; raises Dropped with the reason."""
  if finish != 'stop':
    raise Dropped('model: cut off')
  blocks = FENCE.findall(text.rpartition('</think>')[2])
  if not blocks:
    raise Dropped('model: no code block')
  try:
    tree = ast.parse(blocks[-1])
    code, entry, args = _parts(tree)
  except literals.UNREADABLE:
    raise Dropped('model: not definitions and one call') from None
  if len(synth.source_of(args)) > longest_args:
    raise Dropped('model: long arguments')
  level, target, _ = synth.aim(index)
  if not operations(target) <= attributes(ast.parse(code)):
    raise Dropped('model: without the operation')
  kinds = tuple(map(literal.kind_of, args))
  return synth.Program(
    code, entry, kinds, args, target.name, level_of(code, level)
  )


def _parts(tree):
  """(source of the definitions, name, arguments) of what is called last."""
  *body, last = tree.body
  if not isinstance(last, ast.Assert | ast.Expr):
    raise ValueError('no call at the end')
  node = last.test if isinstance(last, ast.Assert) else last.value
  if isinstance(node, ast.Compare):  # assert f(1) == 2
    node = node.left
  if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print':
    (node,) = node.args
  known = ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
  if not body or not all(isinstance(one, known) for one in body):
    raise ValueError('something else beside the definitions')
  entry = getattr(getattr(node, 'func', None), 'id', '')
  args, keywords = literals.parse_call(ast.unparse(node), entry)
  if keywords:
    raise ValueError('arguments by name')
  for one in ast.walk(tree):
    if isinstance(one, ast.FunctionDef | ast.ClassDef):
      one.body = identity.without_docstring(one.body)
  return ast.unparse(ast.Module(body, [])), entry, tuple(args)


def operations(target: inventory.Entry) -> set[str]:
  """The methods that the source of an entry calls."""
  source = target.source.format(**{hole: hole for hole in target.holes})
  return attributes(ast.parse(source))


def attributes(tree) -> set[str]:
  return {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}


def level_of(code, asked: str) -> str:
  """The level that a program has, whatever was asked for."""
  found = identity.features(code)
  if found['classes']:
    return 'class'
  if found['functions'] > 1:
    return 'helper'
  if found['depth']:
    return f'depth{min(found["depth"], 3)}'
  return asked if asked in ('nested', 'builtins') else 'builtins'
