"""Reads a chain of reasoning beside a trace and compares every value in it.

The other way round from `narrate`: the chain is text, the trace is what the
program did, and a cursor goes through both. A sentence must be about the next
execution of its line, a round must have its number, and whatever is left out
must have been announced; so a value that some other step had is wrong too.
"""

import ast

from data_pipeline import backward, frames, narrate, sentences
from data_pipeline.cursor import Cursor
from data_pipeline.sentences import Wrong, between, expect, matched

NOTHING = 'nothing else new'


class Reader:
  """Goes through the sentences of one chain; `values` counts what it compared.

  Args:
    code: the program.
    frame: of `frames.entry`.
    seen: {(line, occ): [(source, text)]}, what each part of an expression was,
      in the order of evaluation (`instrument`).
    style: one of `narrate.STYLES`.
  """

  def __init__(self, code, frame, seen, style):
    self.code, self.nodes = code, frames.nodes(code)
    self.seen, self.style = seen, style
    self.values, self.pending = 0, []
    self.stack = [Cursor(frame, self.nodes)]

  def forward(self, texts):
    """Sentences of a run."""
    for text in texts:
      if text.startswith('  '):
        self.pending.append(text[2:])
      elif not (self.returns(text) or self.round(text) or self.hidden(text)):
        self.step(text)
    if len(self.stack) > 1:
      raise Wrong('a call does not end')
    self.parts(self.stack[-1].at, len(self.stack[-1].frame.visits))

  def returns(self, text) -> bool:
    """Whether the sentence ends a call."""
    if len(self.stack) == 1:
      return False
    value = self.stack[-1].frame.value
    if text != self.style['back'].format(value=value):
      return False
    cursor = self.stack.pop()
    self.parts(cursor.at, len(cursor.frame.visits), cursor)
    cursor.leave_out(len(cursor.frame.visits))
    self.values += 1
    return True

  def round(self, text) -> bool:
    found = matched(self.style['round'], text)
    if not found:
      return False
    cursor = self.stack[-1]
    i = cursor.round(int(found['k']) - 1)
    self.enter(cursor, i)
    cursor.entered = i
    return True

  def enter(self, cursor, i):
    """Goes on with a round of the loop that comes next."""
    cursor.leave_out(cursor.header())
    self.parts(cursor.at, i)
    cursor.move(i)

  def hidden(self, text) -> bool:
    """Rounds that are told by what they leave behind."""
    found = matched(self.style['hidden'], text) or matched(
      self.style['single'], text
    )
    if not found:
      return False
    cursor = self.stack[-1]
    i = cursor.header()
    heads = cursor.headers(i)
    first = int(found['a']) - 1
    last = int(found.get('b') or found['a']) - 1
    if heads.index(i) != first or last + 1 >= len(heads):
      raise Wrong('these are not the rounds that come next')
    self.enter(cursor, i)
    name = self.over(cursor, heads[first : last + 1], found['over'])
    cursor.move(heads[last + 1])
    visits = cursor.frame.visits
    before, after = visits[i].before, visits[cursor.at - 1].after
    changed = frames.changes(before, after)
    changed.pop(name, None)
    said = found['told']
    if changed != (self.compare(said, after)[0] if said != NOTHING else {}):
      raise Wrong(f'what changed is {changed}')
    return True

  def over(self, cursor, heads, text) -> str:
    """The loop variable, if it is said what it was in the rounds."""
    if not text:
      return ''
    name, values = text.removeprefix(' with ').split(' = ', 1)
    visits = [cursor.frame.visits[i] for i in heads]
    node = self.nodes[visits[0].line]
    truth = [(v.after or {}).get(name, ['', None])[1] for v in visits]
    if name != ast.unparse(node.target) or values != ', '.join(map(str, truth)):
      raise Wrong(f'{name} was {truth}')
    self.values += len(truth)
    return name

  def step(self, text):
    """A call of the next visit that the sentence fits, or what it made."""
    cursor = self.stack[-1]
    for i in range(cursor.at, len(cursor.frame.visits)):
      if self.called(text, i):
        return
      told = self.about(text, i)
      if told is None:
        continue
      if cursor.is_header(i) and cursor.entered != i:
        line = cursor.frame.visits[i].line
        i = cursor.round(-1)  # No round begins: the loop ends here.
        if cursor.frame.visits[i].line != line:
          raise Wrong('another loop comes next')
        self.enter(cursor, i)
      self.parts(cursor.at, i + 1)
      cursor.leave_out(i)
      self.made(told, cursor.frame, i)
      cursor.move(i + 1)
      return
    raise Wrong('no line that comes is told like this')

  def about(self, text, i) -> str | None:
    """What the sentence says about a visit, None if it is about another."""
    line = self.stack[-1].frame.visits[i].line
    fields = {'n': line, 'code': narrate.shown(self.code, line)}
    return between(self.style['line'], 'told', fields, text)

  def called(self, text, i) -> bool:
    cursor = self.stack[-1]
    visit = cursor.frame.visits[i]
    used = cursor.used if i == cursor.at else 0
    for k, call in enumerate(visit.calls[used:], used + 1):
      if call.value is None or None in call.args.values():
        continue
      args = ', '.join(f'{name}={value}' for name, value in call.args.items())
      fields = {'n': visit.line, 'call': f'{call.name}({args})'}
      fields['value'] = call.value
      is_short = text == self.style['short'].format(**fields)
      if not is_short and text != self.style['call'].format(**fields):
        break
      self.parts(cursor.at, i)
      cursor.leave_out(i)
      cursor.move(i)
      cursor.used = k
      self.values += len(call.args) + is_short
      if not is_short:
        self.stack.append(Cursor(call, self.nodes))
      return True
    return False

  def made(self, told, frame, i):
    """What a line is said to choose, return or leave."""
    visit = frame.visits[i]
    node = self.nodes.get(visit.line)
    if isinstance(node, ast.Return):
      expect(told, f'return {frame.value}')
      self.values += 1
    elif word := narrate.JUMPS.get(type(node)):
      expect(told, word)
    elif isinstance(node, ast.If | ast.While):
      answer, _, read = told.partition(' with ')
      expect(answer, 'true' if frames.enters(node, visit) else 'false')
      if read:
        self.compare(read, visit.after)
    elif told == 'the loop ends':
      if not isinstance(node, ast.For) or frames.enters(node, visit):
        raise Wrong('the loop goes on')
    elif told == 'nothing changes':
      if visit.before != visit.after:
        raise Wrong('something changes')
    elif self.whole(told, visit, visit.after, narrate.targets(node)):
      raise Wrong('more than claims')

  def compare(self, told, state) -> tuple[dict, str]:
    """Claims against a state; ({name: text}, what follows them)."""
    found, rest = sentences.claims(told, state)
    self.values += len(found)
    return found, rest

  def whole(self, told, visit, after, bound=()) -> str:
    """Claims that name all that changed, and no more; what follows them.

    Where nothing did, they may be about what the line has `bound` again.
    """
    found, rest = self.compare(told, after)
    changed = frames.changes(visit.before, after) or {}
    if found != changed and (changed or not found.keys() <= set(bound)):
      raise Wrong(f'what changed is {changed}')
    return rest

  def parts(self, first, last, cursor=None):
    """The pending parts of expressions, in order, in these visits."""
    visits = (cursor or self.stack[-1]).frame.visits[first:last]
    truth = iter(
      f'{source} = {text}'
      for v in visits
      for source, text in self.seen.get((v.line, v.occ), ())
    )
    for claim in self.pending:
      if claim not in truth:  # Goes on where the last one was.
        raise Wrong(f'no such part of an expression: {claim}')
      self.values += 1
    self.pending = []

  def undone(self, texts, frame):
    """Sentences from the end of a call to its beginning."""
    groups = backward.groups(self.code, frame)
    for text in texts:
      while groups:
        node, start, end = groups.pop()
        visits = frame.visits[start], frame.visits[end - 1]
        if self.undo(text, node, *visits):
          break
      else:
        raise Wrong('no line before is told like this')

  def undo(self, text, node, first, last) -> bool:
    """Whether a sentence is about these visits; what it says is compared."""
    fields = {'n': first.line, 'code': narrate.shown(self.code, first.line)}
    if isinstance(node, ast.Return):
      fields['source'] = ast.unparse(node.value)
      old = between(self.style['returned'], 'old', fields, text)
      if old:
        self.compare(old, first.before)
      return bool(old)
    fields['where'] = f'Line {first.line}'
    if isinstance(node, narrate.LOOPS | ast.If):
      fields['where'] = f'Lines {node.lineno} to {node.end_lineno}'
    if '{made}' not in self.style['made']:
      if text == self.style['made'].format(**fields):
        return True
      old = between(self.style['undone'], 'old', fields, text)
      if old:
        self.compare(old, first.before)
      return bool(old)
    said = between(self.style['made'], 'made', fields, text)
    if said:
      rest = self.whole(said, first, last.after)
      if rest:
        self.compare(rest.removeprefix(' <- '), first.before)
    return bool(said)


def chain(code, frame, seen, texts, call, output) -> int:
  """Compares the sentences of a chain but the conclusions; counts its values.

  Args:
    texts: lines.
    output: what the call returns, of a chain that goes backwards; '' of one
      that does not.

  Raises Wrong with the reason, in the style that comes furthest.
  """
  best = (-1, '')
  for style in narrate.STYLES.values():
    reader = Reader(code, frame, seen, style)
    try:
      start = back if output else begin
      reader.forward(start(reader, frame, texts, call, output))
      return reader.values
    except Wrong as error:
      best = max(best, (reader.values, str(error)))
  raise Wrong(best[1])


def begin(reader, frame, texts, call, _) -> list[str]:
  """Checks the opening; the sentences of the run that follows."""
  args = narrate.arguments(frame)
  known = [x.format(call=call, args=args) for x in reader.style['openings']]
  if texts[0] not in known:
    raise Wrong('another call')
  return texts[1:]


def back(reader, frame, texts, call, output) -> list[str]:
  """Checks what goes backwards; the sentences of the run that follows."""
  style, entry, texts = reader.style, call.partition('(')[0], list(texts)
  goals = [x.format(entry=entry, output=output) for x in style['goals']]
  if any(goals) and texts.pop(0) not in goals:
    raise Wrong('another goal')
  run = []
  if any(style['checks']):
    checks = [x.format(call=call) for x in style['checks']]
    places = [i for i, text in enumerate(texts) if text in checks]
    if not places or texts.pop() != style['right'].format(output=output):
      raise Wrong('another call or another result')
    texts, run = texts[: places[0]], texts[places[0] + 1 :]
  if None not in frame.args.values():
    args = narrate.arguments(frame)
    if not texts or texts.pop() != style['arguments'].format(args=args):
      raise Wrong('other arguments')
    reader.values += len(frame.args)
  reader.undone(texts, frame)
  return run
