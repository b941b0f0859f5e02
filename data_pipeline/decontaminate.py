"""Keeps programs of benchmarks out; knows them by hashes alone.

  python -m data_pipeline.decontaminate --cruxeval=FILE --humaneval=FILE

writes benchmarks.json beside this file; further JSONL files of programs with a
field `code` (REval's, LiveCodeBench's) go behind --more. A program is rejected
if one of its functions, or the whole of it,

- equals a benchmark's function up to names (hash of the renamed tree), or
- has nearly the same statements, in any order and with any constants:
  weighted by their size, SAME of the union of both, or
- contains nearly all statements of a long enough one.

A case is rejected if its arguments and its output are both those of a
benchmark.
"""

import ast
import collections
import functools
import gzip
import hashlib
import json
import pathlib

from absl import app, flags

from data_pipeline import identity

FILE = pathlib.Path(__file__).with_name('benchmarks.json')
SAME = 0.75  # of the weight of two functions' statements together
INSIDE = 0.85  # of the weight of a benchmark's function, if that is LONG
LONG = 60  # nodes
METHOD = 3  # statements: shorter methods of a benchmark are like any other
SHORT = 6  # nodes: below, equal shapes say nothing (`return x`)
LONGEST_COMMON = 8  # characters of arguments and of outputs that prove nothing


class Hashes:
  """What is known of the benchmarks."""

  def __init__(self, found: dict):
    self.programs = found.get('programs', {})
    self.trees = frozenset(found['trees'])
    self.pairs = frozenset(found['pairs'])
    self.functions = [
      {(key, size): n for key, size, n in rows} for rows in found['functions']
    ]
    self.sizes = [weight(rows) for rows in self.functions]
    self.where = collections.defaultdict(list)
    for i, rows in enumerate(self.functions):
      for key in rows:
        self.where[key].append(i)

  def fault(self, code: str) -> str:
    """Why a program may come from a benchmark, or ''."""
    if identity.program_hash(code) in self.trees or (
      identity.function_hashes(code) & self.trees
    ):
      return 'equal to a function of a benchmark up to names'
    tree = ast.parse(code)
    parts = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    for part in parts if len(parts) == 1 else [*parts, tree]:
      if reason := self._statements(identity.statements(part)):
        return reason
    return ''

  def _statements(self, mine):
    size, common = weight(mine), collections.Counter()
    for key, n in mine.items():
      for i in self.where.get(key, ()):
        common[i] += key[1] * min(n, self.functions[i][key])
    for i, shared in sorted(common.items()):
      theirs = self.sizes[i]
      if min(size, theirs) >= SHORT and (
        shared >= SAME * (size + theirs - shared)
      ):
        return 'statements of a function of a benchmark'
      if theirs >= LONG and shared >= INSIDE * theirs:
        return 'contains a function of a benchmark'
    return ''

  def has_case(self, args: str, output: str) -> bool:
    long = min(len(args), len(output)) > LONGEST_COMMON
    return long and pair(args, output) in self.pairs


def weight(rows) -> int:
  return sum(size * n for (_, size), n in rows.items())


def pair(args, output) -> str:
  return identity.digest(f'{args} => {output}')


@functools.cache
def load() -> Hashes:
  """The hashes that are shipped; they are read once."""
  return Hashes(json.loads(FILE.read_text()))


def make(programs, pairs) -> dict:
  """What `Hashes` reads, of benchmark programs and (arguments, output)."""
  trees, functions = set(), {}
  for code in programs:
    tree = ast.parse(code)
    for node in telling(tree):
      trees.add(identity.program_hash(ast.unparse(node)))
      rows = identity.statements(node)
      key = tuple(sorted((*k, n) for k, n in rows.items()))
      functions[key] = None
  return {
    'trees': sorted(trees),
    'functions': sorted(functions),
    'pairs': sorted(
      {pair(a, b) for a, b in pairs if min(len(a), len(b)) > LONGEST_COMMON}
    ),
  }


def telling(tree) -> list:
  """The program and its functions, without methods that anyone would write."""
  classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
  short = {m for c in classes for m in c.body if size(m) < METHOD}
  functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
  return [tree, *(f for f in functions if f not in short)]


def size(node) -> int:
  """Statements inside one."""
  return sum(isinstance(n, ast.stmt) for n in ast.walk(node)) - 1


def read(path) -> list[dict]:
  """The rows of a JSONL file, gzipped or not."""
  data = pathlib.Path(path).read_bytes()
  if data[:2] == b'\x1f\x8b':
    data = gzip.decompress(data)
  return [json.loads(line) for line in data.decode().splitlines() if line]


def whole(row) -> str:
  """The program of a row of HumanEval."""
  return row['prompt'] + row['canonical_solution']


def main(_):
  f = flags.FLAGS
  crux, human = read(f.cruxeval), read(f.humaneval)
  more = [read(path) for path in f.more]
  programs = [r['code'] for rows in [crux, *more] for r in rows]
  programs += map(whole, human)
  found = make(programs, [(r['input'], r['output']) for r in crux])
  names = ['cruxeval', 'humaneval', *(pathlib.Path(p).stem for p in f.more)]
  sources = dict(zip(names, map(len, [crux, human, *more]), strict=True))
  digests = [
    hashlib.sha256(pathlib.Path(p).read_bytes()).hexdigest()
    for p in (f.cruxeval, f.humaneval, *f.more)
  ]
  found = {'programs': sources, 'files': digests} | found
  FILE.write_text(json.dumps(found, separators=(',', ':')) + '\n')
  print(f'{FILE}: {sources}, {len(found["functions"])} functions')


def define_flags():
  flags.DEFINE_string('cruxeval', None, 'cruxeval.jsonl', required=True)
  flags.DEFINE_string('humaneval', None, 'HumanEval.jsonl.gz', required=True)
  flags.DEFINE_multi_string('more', [], 'Further JSONL files with `code`.')


if __name__ == '__main__':
  define_flags()
  app.run(main)
