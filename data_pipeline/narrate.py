"""Chains of reasoning told from real traces; no value in them is guessed.

What each line made, loops summarised after the first rounds, calls of the
program's own functions told once. Wording varies with the seed of a row.
"""

import ast
import random

from data_pipeline import frames

LOOPS = ast.For | ast.While
JUMPS = {ast.Break: 'break', ast.Continue: 'continue', ast.Pass: 'pass'}
# Rounds of a loop that are told, calls of a function that are, and whether the
# parts of expressions are; the first row whose chain fits is taken.
DETAILS = (
  *((3, 2, True), (2, 1, True), (1, 1, True), (1, 0, True)),
  *((2, 1, False), (1, 0, False), (0, 0, False)),
)
LONGEST_PART = 160  # characters
SHOWN = 60  # characters of a source line
FULL = {  # Sentences around the lines; empty ones are left out.
  'return': True,  # Whether a line that returns is told.
  'openings': (
    'We run {call}.',
    'The call is {call}.',
    'Let us trace {call} step by step.',
    'Start: {call}.',
  ),
  'so': 'So {call} is {output}.',
  'goals': (
    'We need arguments for which {entry} returns {output}.',
    'The result has to be {output}.',
    'Which call of {entry} gives {output}? Go back from the end.',
  ),
  'returned': 'Line {n} returns {source}, so there {old}.',
  'undone': '{where}: {made} <- {old}.',
  'made': '{where}: {made}.',
  'arguments': 'So the arguments are {args}.',
  # A chain that goes back ends with a run forwards.
  'checks': ('Check {call}.', 'Try it: {call}.', 'Forwards, {call}:'),
  'right': 'This is {output}, as it has to be.',
}
STYLES = {
  'lines': FULL
  | {
    'line': 'Line {n}, `{code}`: {told}.',
    'round': 'Round {k}:',
    'hidden': 'After rounds {a} to {b}{over}: {told}.',
    'single': 'After round {a}{over}: {told}.',
    'call': 'Line {n} calls {call}:',
    'short': 'Line {n} calls {call}, which returns {value}.',
    'back': 'It returns {value}.',
  },
  'brackets': FULL
  | {
    'line': '[L{n}] {told}.',
    'round': '* round {k}',
    'hidden': '* rounds {a}-{b}{over} leave {told}.',
    'single': '* round {a}{over} leaves {told}.',
    'call': '[L{n}] Into {call}:',
    'short': '[L{n}] {call} -> {value}.',
    'back': 'Back with {value}.',
  },
  'arrows': FULL
  | {
    'line': '{n}. {code} -> {told}',
    'round': '({k})',
    'hidden': '({a} to {b}{over}) -> {told}',
    'single': '({a}{over}) -> {told}',
    'call': '{n}. call {call}',
    'short': '{n}. {call} returns {value}',
    'back': 'returns {value}',
  },
  'after': FULL
  | {
    'line': 'After line {n}: {told}.',
    'round': 'The loop, time {k}.',
    'hidden': 'The loop, times {a} to {b}{over}; now {told}.',
    'single': 'The loop, time {a}{over}; now {told}.',
    'call': 'Line {n} needs {call}.',
    'short': 'Line {n} needs {call}, that is {value}.',
    'back': 'So it gives {value}.',
  },
}
# For models that can hardly read: nothing but what the lines hold.
STYLES['bare'] = STYLES['arrows'] | {
  'return': False,
  'line': '{code} # {told}',
  'openings': ('{args}',),
  'so': '',
  'goals': ('',),
  'returned': '',
  'undone': '{code} # {old}',
  'made': '{code} # new',
  'arguments': '{args}',
  'checks': ('',),
  'right': '',
}
ALL = tuple(STYLES)[:-1]


class Teller:
  """How one chain is told: wording, details, and visits that must be shown."""

  def __init__(self, code, style, rounds, calls, parts=(), focus=()):
    self.code, self.nodes = code, frames.nodes(code)
    self.style, self.rounds, self.calls = style, rounds, calls
    self.parts, self.focus, self.seen = dict(parts), set(focus), {}

  def frame(self, frame) -> list[str]:
    return self.block(frame, frame.visits)

  def block(self, frame, visits):
    """Lines about visits of one frame in order, loops as wholes."""
    told, i = [], 0
    while i < len(visits):
      node = self.nodes.get(visits[i].line)
      if isinstance(node, LOOPS):
        j = i + 1
        while j < len(visits) and within(node, visits[j]):
          j += 1
        told += self.loop(frame, node, visits[i:j])
        i = j
      else:
        told += self.step(frame, node, visits[i])
        i += 1
    return told

  def loop(self, frame, node, visits):
    """The first rounds, those in focus, and what the others leave behind."""
    starts = [i for i, v in enumerate(visits) if v.line == node.lineno]
    ends = [*starts[1:], len(visits)]
    rounds = [visits[a:b] for a, b in zip(starts, ends, strict=True)]
    shown = [
      k < self.rounds or any((v.line, v.occ) in self.focus for v in one)
      for k, one in enumerate(rounds)
    ]
    shown[-1] = True  # Where it ends, or is left.
    told, k = [], 0
    while k < len(rounds):
      if shown[k]:
        is_round = frames.enters(node, rounds[k][0])
        told += [self.style['round'].format(k=k + 1)] * is_round
        told += self.step(frame, node, rounds[k][0])
        told += self.block(frame, rounds[k][1:])
        k += 1
        continue
      last = k
      while not shown[last + 1]:
        last += 1
      told += self.hidden(node, rounds, k, last)
      k = last + 1
    return told

  def hidden(self, node, rounds, first, last):
    """One line for rounds that are not told."""
    before, after = rounds[first][0].before, rounds[last][-1].after
    made = frames.changes(before, after)
    if not made:
      return []
    over = ''
    if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
      name = node.target.id
      values = [(r[0].after or {}).get(name, ['', None])[1] for r in rounds]
      values = values[first : last + 1]
      if None not in values and len(values) < 12:
        over = f' with {name} = {", ".join(values)}'
        made.pop(name, None)
    told = claims(made) or 'nothing else new'
    template = self.style['single' if first == last else 'hidden']
    return [template.format(a=first + 1, b=last + 1, over=over, told=told)]

  def step(self, frame, node, visit):
    """Lines about one visit: what it calls, then what it makes."""
    told = []
    for call in visit.calls:
      told += self.called(visit, call)
    for source, value in self.parts.get((visit.line, visit.occ), ()):
      if len(source) + len(value) <= LONGEST_PART:
        told.append(f'  {source} = {value}')
    text = self.made(frame, node, visit)
    if text:
      source = shown(self.code, visit.line)
      told.append(
        self.style['line'].format(n=visit.line, code=source, told=text)
      )
    return told

  def called(self, visit, call):
    times = self.seen[call.name] = self.seen.get(call.name, 0) + 1
    if call.value is None or None in call.args.values():
      return []
    args = ', '.join(f'{k}={v}' for k, v in call.args.items())
    text = f'{call.name}({args})'
    if times > self.calls:
      return [
        self.style['short'].format(n=visit.line, call=text, value=call.value)
      ]
    head = self.style['call'].format(n=visit.line, call=text)
    return [
      head,
      *self.frame(call),
      self.style['back'].format(value=call.value),
    ]

  def made(self, frame, node, visit) -> str:
    """What a line makes, chooses or returns; '' for nothing to say."""
    if isinstance(node, ast.Return):
      is_told = self.style['return'] and frame.value is not None
      return f'return {frame.value}' if is_told else ''
    for kind, word in JUMPS.items():
      if isinstance(node, kind):
        return word
    if visit.next is None or visit.after is None:
      return ''
    if isinstance(node, ast.If | ast.While):
      answer = 'true' if frames.enters(node, visit) else 'false'
      read = known(frames.names_in(node.test), visit.after)
      return f'{answer} with {claims(read)}' if read else answer
    if isinstance(node, ast.For) and not frames.enters(node, visit):
      return 'the loop ends'
    made = frames.changes(visit.before, visit.after)
    if made or made is None:
      return claims(made or {})
    # What is bound anew is told even if it was the same before.
    if again := known(targets(node), visit.after):
      return claims(again)
    same = visit.before == visit.after
    return 'nothing changes' if same and is_whole(visit.after) else ''


def shown(code, line) -> str:
  """The source of a line, cut where it is long."""
  source = code.split('\n')[line - 1].strip().rstrip(':')
  return source if len(source) <= SHOWN else source[:SHOWN] + '...'


def targets(node) -> list[str]:
  """The variables that a loop or an assignment binds."""
  if isinstance(node, ast.Assign):
    return [n for target in node.targets for n in frames.names_in(target)]
  if isinstance(node, ast.For | ast.AugAssign):
    return frames.names_in(node.target)
  return []


def within(loop, visit) -> bool:
  return loop.lineno <= visit.line <= loop.end_lineno


def claims(values: dict) -> str:
  return '; '.join(f'{name} = {text}' for name, text in values.items())


def known(names, state) -> dict:
  """{name: text} of the names that have a text in a state."""
  found = {n: state[n][1] for n in names if n in state}
  return {n: text for n, text in found.items() if text is not None}


def is_whole(state) -> bool:
  return all(text is not None for _, text in state.values())


def forward(
  code,
  frame,
  call,
  seed,
  longest,
  styles=ALL,
  *,
  parts=(),
  focus=(),
  until=None,
):
  """The run as text, or None where it does not fit.

  Args:
    frame: of `frames.entry`.
    call: the call's source.
    longest: characters.
    styles: names; which one is told depends on the seed.
    parts: of `unfold.parts`.
    focus: (line, occ) of visits of the entry that must be told.
    until: the (line, occ) after which nothing need be told.
  """
  rng = random.Random(seed)
  style = drawn(rng, styles)
  opening = rng.choice(style['openings'])
  opening = opening.format(call=call, args=arguments(frame))
  if until is not None:
    places = [(v.line, v.occ) for v in frame.visits]
    frame = frame._replace(visits=frame.visits[: places.index(until) + 1])
  for rounds, calls, inner in DETAILS:
    shown = parts if inner else ()
    teller = Teller(code, style, rounds, calls, shown, focus)
    told = [opening, *teller.frame(frame)]
    text = '\n'.join(told)
    if len(text) <= longest:
      return text
  return None


def drawn(rng, styles) -> dict:
  """One of the named styles, the first draw of a chain's seed."""
  return STYLES[rng.choice(styles)]


def arguments(frame) -> str:
  """Claims about the parameters of a call that have a text."""
  return claims({k: v for k, v in frame.args.items() if v is not None})


def completion(reasoning: str, answer: str) -> str:
  return (
    f'<reasoning>\n{reasoning}\n</reasoning>\n<answer>\n{answer}\n</answer>'
  )
