"""How far a chain has told a call."""

import ast

from data_pipeline import frames, narrate
from data_pipeline.sentences import Wrong

# Statements that are told even where they change nothing.
TOLD = (ast.Return, ast.If, ast.While, ast.For, *narrate.JUMPS)


class Cursor:
  """A call, and how far a chain has told it."""

  def __init__(self, frame, nodes):
    self.frame, self.nodes = frame, nodes
    self.at = self.used = 0  # The next visit; how many of its calls are told.
    self.entered = -1  # The visit at which the last round began.

  def header(self) -> int:
    """The place of the next visit of the head of a loop."""
    for i in range(self.at, len(self.frame.visits)):
      if self.is_header(i):
        return i
    raise Wrong('no loop goes on')

  def round(self, k) -> int:
    """The place of round k of the loop that comes next; -1 is the last one.

    Rounds before it that nothing was said about must have changed nothing.
    """
    i = self.header()
    heads = self.headers(i)
    target = heads[k] if k < len(heads) else -1
    if target < i:
      raise Wrong('another round comes next')
    visits = self.frame.visits
    if target > i and frames.changes(
      visits[i].before, visits[target - 1].after
    ):
      raise Wrong('rounds are left out that change something')
    return target

  def is_header(self, i) -> bool:
    node = self.nodes.get(self.frame.visits[i].line)
    return isinstance(node, narrate.LOOPS)

  def headers(self, i) -> list[int]:
    """Visits of the head at place i in the one run of its loop."""
    visits, node = self.frame.visits, self.nodes[self.frame.visits[i].line]
    first = i
    while first and narrate.within(node, visits[first - 1]):
      first -= 1
    last = i
    while last < len(visits) and narrate.within(node, visits[last]):
      last += 1
    return [k for k in range(first, last) if visits[k].line == node.lineno]

  def move(self, i):
    if i != self.at:
      self.at, self.used = i, 0

  def leave_out(self, last):
    """Nothing is said about the visits before place `last`."""
    for visit in self.frame.visits[self.at : last]:
      node = self.nodes.get(visit.line)
      if visit.after is not None and (
        isinstance(node, TOLD) or frames.changes(visit.before, visit.after)
      ):
        raise Wrong(f'nothing is said about line {visit.line}')
