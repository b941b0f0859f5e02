"""What the parts of expressions were in a run, recorded as Python makes them.

`unfold` takes expressions apart to learn that. This wraps them instead, where
they stand: `f(x.upper())` becomes `f(seen_(0, x.upper()))`. Each call of seen_
is in the trace, with the value at that moment; so neither order nor laziness
can differ from the program's own.
"""

import ast
import collections

from crjax.execution import labels

WRAPPED = ast.Call | ast.BinOp | ast.Subscript | ast.Compare
INNER = ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp
INNER |= ast.GeneratorExp | ast.JoinedStr
RECORD = '\n\ndef seen_(part_, value_):\n    return value_\n'


class Wrap(ast.NodeTransformer):
  """Wraps expressions whose source is one of those wanted."""

  def __init__(self, wanted):
    self.wanted, self.sources = wanted, []

  def visit(self, node):
    if isinstance(node, INNER):
      return node
    source = ast.unparse(node) if isinstance(node, WRAPPED) else ''
    node = self.generic_visit(node)
    if source not in self.wanted or isinstance(
      getattr(node, 'ctx', None), ast.Store | ast.Del
    ):
      return node
    self.sources.append(source)
    number = ast.Constant(len(self.sources) - 1)
    return ast.Call(ast.Name('seen_', ast.Load()), [number, node], [])


def seen(jobs, chains, pool) -> list[dict]:
  """{(line, occ): [(source, text)]} of the parts that each chain tells.

  Args:
    jobs: traced ones; chains: texts, in which a part is a line that begins
      with two spaces.
  """
  wrapped = [
    wrap(job.code, text) for job, text in zip(jobs, chains, strict=True)
  ]
  again = pool.run(
    [
      job._replace(code=code + RECORD)
      for job, (code, sources) in zip(jobs, wrapped, strict=True)
      if sources
    ]
  )
  results = iter(again)
  return [
    recorded(job.code, code, sources, next(results).trace) if sources else {}
    for job, (code, sources) in zip(jobs, wrapped, strict=True)
  ]


def wrap(code, chain):
  """(program with the parts wrapped that the chain tells, their sources)."""
  told = [line[2:] for line in chain.split('\n') if line.startswith('  ')]
  if not told:
    return code, []
  tree = ast.parse(code)
  every = {ast.unparse(n) for n in ast.walk(tree) if isinstance(n, WRAPPED)}
  wanted = {s for s in every if any(x.startswith(f'{s} = ') for x in told)}
  wrapper = Wrap(wanted)
  tree = ast.fix_missing_locations(wrapper.visit(tree))
  return ast.unparse(tree), wrapper.sources


def recorded(code, wrapped, sources, events) -> dict:
  """{(line of `code`, occ): [(source, text)]} of the run of `wrapped`."""
  old, new = (
    sorted(n.lineno for n in ast.walk(ast.parse(x)) if isinstance(n, ast.stmt))
    for x in (code, wrapped)
  )
  lines = dict(zip(new, old, strict=True))
  calls = {e.frame: e for e in events if e.kind == 'call'}
  last, times = {}, collections.Counter()
  found = collections.defaultdict(list)
  for visit in labels.corrected(events, wrapped + RECORD):
    name, caller = calls[visit.frame].value
    if name == 'seen_':
      given = calls[visit.frame].changed
      text = given['value_'][1]
      if caller in last and text is not None:
        found[last[caller]].append((sources[int(given['part_'][1])], text))
      continue
    line = lines[visit.line]
    times[line] += 1
    last[visit.frame] = line, times[line]
  return found
