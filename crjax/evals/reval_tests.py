"""Programs that run REval's inputs: calls of HumanEval, tests of ClassEval.

A test runs without unittest, which the sandbox lacks: its assertions are
methods of a small class, and what is recorded is the class that it tests.
"""

import ast
import re
import textwrap

HOLE = '??'
# Enough of unittest.TestCase for every assertion that REval's files hold.
CASE = """
class DREvalCase:
    def setUp(self):
        pass
    def assertTrue(self, x, *_):
        if not x:
            raise AssertionError
    def assertFalse(self, x, *_):
        self.assertTrue(not x)
    def assertEqual(self, a, b, *_):
        self.assertTrue(a == b)
    def assertNotEqual(self, a, b, *_):
        self.assertTrue(a != b)
    def assertAlmostEqual(self, a, b, places=None, msg=None, delta=None):
        far = abs(a - b) > delta if delta else round(abs(a - b), places or 7)
        self.assertTrue(a == b or not far)
    def assertIsNone(self, x, *_):
        self.assertTrue(x is None)
    def assertIsNotNone(self, x, *_):
        self.assertTrue(x is not None)
    def assertIn(self, x, xs, *_):
        self.assertTrue(x in xs)
    def assertNotIn(self, x, xs, *_):
        self.assertTrue(x not in xs)
    def assertIsInstance(self, x, kind, *_):
        self.assertTrue(isinstance(x, kind))
    def assertRaises(self, kind):
        return DREvalRaises(kind)
class DREvalRaises:
    def __init__(self, kind):
        self.kind = kind
    def __enter__(self):
        return self
    def __exit__(self, kind, value, trace):
        return kind is not None and issubclass(kind, self.kind)
"""


def prepare(program: dict, entry: dict) -> dict:
  """What it takes to run one input of a program.

  Returns:
    {source: 'HumanEval' or 'ClassEval', invocation: as a prompt shows it,
    traced, entry, args: the call to record, gold: the assertions with their
    values, program: the source before an answer that is executed}.

  Raises ValueError for inputs of another form.
  """
  make = _class if program['test'] else _function
  return make(program, entry)


def _function(program, entry):
  name, given = program['entry_point'], program['inputs'][entry['input_idx']]
  if not given.endswith(',)') or entry['input_idx'] >= len(program['outputs']):
    raise ValueError(f'an input is a tuple `(x,)` with an output, not {given}')
  value = program['outputs'][entry['input_idx']]
  return {
    'source': 'HumanEval',
    'invocation': f'{name}{given[:-2]})',
    'traced': program['code'],
    'entry': name,
    'args': given[1:-2],
    'gold': entry['output_pred'].replace(HOLE, value),
    'program': program['code'],
  }


def _class(program, entry):
  given = program['inputs'][entry['input_idx']]
  tests = ast.parse(program['test'])
  imports = [
    x for x in tests.body if isinstance(x, ast.Import | ast.ImportFrom)
  ]
  imports = [
    ast.unparse(x) for x in imports if 'unittest' not in ast.unparse(x)
  ]
  setup = _setup(tests, program['entry_point'], entry['input_idx'])
  case = '\n'.join([*imports, CASE, 'class DREvalTest(DREvalCase):'])
  case += '\n' + textwrap.indent(setup or 'pass', '    ')
  body = re.sub(r'(?<![\w.])assert(?=[A-Z])', 'self.assert', given)
  traced = [
    f'{program["code"]}\n{case}',
    'dreval_self = DREvalTest()',
    'dreval_self.setUp()',  # Not recorded: it runs before the call.
    'def dreval_test(self=dreval_self):',
    textwrap.indent(body.rstrip(), '    '),
  ]
  shown = ''
  if setup:
    lines = [f'# {line}' for line in setup.split('\n')[1:]]
    shown = '\n'.join(['# setup code executed previously', *lines])
  return {
    'source': 'ClassEval',
    'invocation': f'{shown}\n{given.rstrip()}',
    'traced': '\n'.join(traced),
    'entry': 'dreval_test',
    'args': '',
    'gold': given.rstrip(),
    'program': f'{program["code"]}\n{case}',
  }


def _setup(tests, name, index) -> str:
  """Source of setUp of the test class that an input belongs to; or ''."""
  classes = [
    x
    for x in tests.body
    if isinstance(x, ast.ClassDef) and re.match(f'{name}Test', x.name)
  ]
  if index >= len(classes):
    raise ValueError(f'input {index} has no test class')
  for node in classes[index].body:
    if isinstance(node, ast.FunctionDef) and node.name == 'setUp':
      return ast.unparse(node)
  return ''
