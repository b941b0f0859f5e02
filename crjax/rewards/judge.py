"""What an answer says, read strictly: data only, and none of it executed.

Each reader takes a task and an answer's text, and raises ValueError for a text
that is no answer to its question. Values become canonical texts
(`execution.values`), so that two of them are compared as strings.
"""

import ast
import functools
import re
import warnings

from crjax.execution import literals, values

LONGEST = 4096  # bytes of an answer
DIGITS = 9  # of a line number
# Constructors without which a value has no source. `list('ab')` has, and
# leaves the work to us.
WITHOUT_LITERAL = {
  *('set', 'frozenset', 'range', 'bytearray'),
  *('deque', 'Counter', 'OrderedDict'),
}
NUMBERED = re.compile(r'Q(?P<k>\d{1,3}):\s*(?P<answer>\S.*)')
TYPED = re.compile(r'(?P<value>.*);\s*(?P<type>[A-Za-z_]\w*)', re.DOTALL)

# `1(2)` and `'\\d'` in an answer are no news to whoever runs the training.
warnings.filterwarnings('ignore', category=Warning, module='<answer>')


def literal(source: str):
  """The value of one literal, within the bounds of `execution.literals`.

  Raises ValueError for anything else, constructors included where there is a
  literal: `dict(a=1)`, `set([1])`, `list(range(9))`.
  """
  if len(source.encode('utf-8', 'replace')) > LONGEST:
    raise ValueError(f'longer than {LONGEST} bytes')
  value = literals.parse(source)
  _refuse_constructors(_parsed(source.strip(), 'eval'))
  return value


def _refuse_constructors(tree):
  for node in ast.walk(tree):
    if isinstance(node, ast.Call):
      name = node.func.id  # `literals` has let nothing else through.
      if name not in WITHOUT_LITERAL or (name == 'set' and node.args):
        raise ValueError(f'{name}(...) is not a literal')


def output(task, answer) -> tuple[str, str]:
  """(py, strict) texts of the value in an answer to an output question.

  Accepts the literal, or the whole assertion about the call that was asked, in
  either order, also after a repetition of the program's functions and imports.
  """
  node = _statement(answer)
  if not isinstance(node, ast.Compare):
    return texts(literal(answer))
  call, said = _sides(node, task['entry'], answer)
  asked = f'{task["entry"]}({task["args"]})'
  if not _same_call(call, asked, task['entry']):
    raise ValueError('an assertion about another call')
  return texts(literal(said))


def arguments(task, answer) -> str:
  """Source of the arguments in an answer to an input question.

  Accepts `f(args)`, the whole assertion with the output that was asked, or
  the bare arguments; all literals, and what runs is rendered by us.
  """
  entry, call = task['entry'], answer
  try:
    node = _statement(answer)
  except ValueError:  # `1, x=2` is no expression until it is in a call.
    node = None
  if isinstance(node, ast.Compare):
    call, said = _sides(node, entry, answer)
    if not values.equal(texts(literal(said))[0], expected(task['output'])[0]):
      raise ValueError('an assertion about another output')
  elif not _calls(node, entry):
    call = f'{entry}({answer}\n)'  # A comment must not eat the parenthesis.
  args, kwargs = literals.parse_call(call, entry)
  tree = literals.call_tree(call, entry)
  for node in (*tree.args, *tree.keywords):
    _refuse_constructors(node)
  rendered = literals.render_call(args, kwargs)
  if len(rendered.encode('utf-8', 'replace')) > LONGEST:
    raise ValueError(f'arguments longer than {LONGEST} bytes')
  return rendered


def coverage(task, answer) -> str:
  """'YES' or 'NO'."""
  if answer.upper() not in ('YES', 'NO'):
    raise ValueError('neither YES nor NO')
  return answer.upper()


def path(task, answer) -> str:
  """The number of the line that an answer names, -1 for none.

  Raises ValueError for a text that is no line, or that several lines share.
  """
  if re.fullmatch(rf'-?\d{{1,{DIGITS}}}', answer):
    return str(int(answer))
  lines = task['code'].split('\n')
  found = [i for i, x in enumerate(lines, 1) if x.strip() == answer]
  if len(found) != 1 or not answer:
    raise ValueError(f'{len(found)} lines of the program read so')
  return str(found[0])


def state(task, answer) -> str:
  """Canonical text of `value; type`, or 'Nil'.

  Raises ValueError if the value is not of that very type.
  """
  if answer == 'Nil':
    return answer
  found = TYPED.fullmatch(answer)
  if not found:
    raise ValueError('neither `value; type` nor Nil')
  value = literal(found['value'])
  if type(value).__name__ != found['type']:
    raise ValueError(f'a {type(value).__name__}, not a {found["type"]}')
  _, strict = texts(value)
  if values.NAN in strict:
    raise ValueError('NaN equals nothing')
  return strict


STEPS = {'coverage': coverage, 'path': path, 'state': state}


def step(task, question, answer) -> bool:
  """Whether an answer to a question about a step is one of its gold ones."""
  read = STEPS[question['kind']]
  return read(task, answer) in [read(task, x) for x in question['gold']]


def numbered(answer) -> dict[int, str]:
  """{k: answer} of lines `Qk: answer`.

  Raises ValueError for any other line and for a question answered twice.
  """
  found = {}
  for line in answer.split('\n'):
    match = NUMBERED.fullmatch(line.strip())
    if not match:
      raise ValueError(f'not an answer `Qk: ...`: {line:.40}')
    if int(match['k']) in found:
      raise ValueError(f'Q{match["k"]} is answered twice')
    found[int(match['k'])] = match['answer']
  return found


def texts(value) -> tuple[str, str]:
  """As `values.texts`; raises ValueError."""
  try:
    return values.texts(value)
  except values.Unsupported as error:
    raise ValueError(str(error)) from error


@functools.lru_cache(maxsize=4096)
def expected(source: str) -> tuple[str, str]:
  """(py, strict) texts of a task's own output; raises ValueError."""
  try:
    return texts(literals.parse(source))
  except ValueError as error:
    raise ValueError(f'task with the output {source!r:.80}: {error}') from error


def _parsed(source, mode):
  """The syntax tree of an answer; raises ValueError."""
  if len(source.encode('utf-8', 'replace')) > LONGEST:
    raise ValueError(f'longer than {LONGEST} bytes')
  try:
    return ast.parse(source, '<answer>', mode)
  except literals.UNREADABLE as error:
    raise ValueError(f'not Python: {error!s:.120}') from error


def _statement(source):
  """The one expression that counts: the last, for `assert x` that is x."""
  *before, last = _parsed(source, 'exec').body or [None]
  if not all(
    isinstance(x, ast.FunctionDef | ast.Import | ast.ImportFrom) for x in before
  ):
    raise ValueError('more than one statement')
  if isinstance(last, ast.Assert) and not last.msg:
    return last.test
  if isinstance(last, ast.Expr) and not before:
    return last.value
  raise ValueError('not one expression')


def _sides(node, entry, source):
  """Sources of (call, other side) of `entry(...) == x`, in either order."""
  if len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq):
    sides = node.left, node.comparators[0]
    for call, other in (sides, sides[::-1]):
      if _calls(call, entry) and not _calls(other, entry):
        part = lambda x: ast.get_source_segment(source, x)
        # In parentheses: it may go over several lines.
        return part(call), f'({part(other)})'
  raise ValueError(f'not an assertion about {entry}')


def _same_call(source, asked, entry) -> bool:
  """Whether two calls read the same, or have equal literal arguments."""
  a, b = (_parsed(x.strip(), 'eval') for x in (source, asked))
  if ast.dump(a) == ast.dump(b):
    return True
  a, b = (texts(list(literals.parse_call(x, entry))) for x in (source, asked))
  return values.equal(a[1], b[1])


def _calls(node, name) -> bool:
  return (
    isinstance(node, ast.Call)
    and isinstance(node.func, ast.Name)
    and node.func.id == name
  )
