"""Takes the sentences of chains apart, as `replay` needs them."""

import functools
import re

VALUE_ENDS = ('; ', ' <- ')
FIELDS = {'k': r'\d+', 'a': r'\d+', 'b': r'\d+', 'over': ' with .*?|'}


class Wrong(Exception):
  """A sentence of a chain is not what the trace says."""


def expect(told, truth):
  if told != truth:
    raise Wrong(f'expected {truth!r}')


def claims(text, state) -> tuple[dict, str]:
  """({name: text}, the rest) of `name = value; ...` that are so in a state."""
  if state is None:
    raise Wrong('nothing is known after this line')
  found = {}
  while True:
    name, _, text = text.partition(' = ')
    known = state.get(name, ['', None])[1]
    end = value_end(text)
    if known is None or text[:end] != known:
      raise Wrong(f'{name} is {known}, not {text[:end]}')
    found[name] = known
    text = text[end:]
    if not text.startswith('; '):
      return found, text
    text = text[2:]


def value_end(text) -> int:
  """Where the value at the start of a text ends."""
  quote, depth, i = '', 0, 0
  while i < len(text):
    if quote and text[i] == '\\':
      i += 1
    elif quote:
      quote = '' if text[i] == quote else quote
    elif text[i] in '\'"':
      quote = text[i]
    elif text[i] in '([{':
      depth += 1
    elif text[i] in ')]}':
      depth -= 1
    elif not depth and text.startswith(VALUE_ENDS, i):
      return i
    i += 1
  return len(text)


def matched(template, text) -> dict | None:
  """The fields of a template in a text."""
  found = pattern(template).fullmatch(text)
  return found and found.groupdict()


@functools.cache
def pattern(template):
  parts = re.split(r'\{(\w+)\}', template)
  text = ''.join(
    f'(?P<{part}>{FIELDS.get(part, ".*")})' if i % 2 else re.escape(part)
    for i, part in enumerate(parts)
  )
  return re.compile(text, re.DOTALL)


def between(template, field, fields, text) -> str | None:
  """What stands in the place of a field; None for another sentence."""
  head, found, tail = template.partition(f'{{{field}}}')
  if not found:
    return None
  head, tail = head.format(**fields), tail.format(**fields)
  if not (text.startswith(head) and text.endswith(tail)):
    return None
  return text[len(head) : len(text) - len(tail)]
