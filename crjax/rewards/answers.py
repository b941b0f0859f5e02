"""Finds the answer in a completion and says whether its form was kept."""

import re
from typing import NamedTuple

from crjax.rewards.judge import NUMBERED

FORM = re.compile(
  r'\s*<reasoning>(?P<reasoning>.*?)</reasoning>'
  r'\s*<answer>(?P<answer>.*?)</answer>\s*',
  re.DOTALL,
)
ANSWER = re.compile(r'<answer>((?:(?!<answer>).)*?)</answer>', re.DOTALL)
# Tempered: a model that repeats the tag must not cost quadratic time.
BENCHMARK = re.compile(
  r'\[ANSWER\]((?:(?!\[ANSWER\]).)*?)\[/ANSWER\]', re.DOTALL
)
FENCE = re.compile(r'```[a-zA-Z]*\n(.*?)\n?```', re.DOTALL)
TAGS = ('<reasoning>', '</reasoning>', '<answer>', '</answer>')


class Answer(NamedTuple):
  """The last well-formed answer, None if there is none, and its form."""

  text: str | None
  format_ok: bool


def extract(completion: str) -> Answer:
  """The last answer block; the form is one reasoning, then one answer block.

  Text around the two blocks, a block more or a block less breaks the form but
  not the answer. `[ANSWER]` tags, which benchmarks ask for, are read where
  there is no answer block; they never satisfy the form.
  """
  once = all(completion.count(tag) == 1 for tag in TAGS)
  format_ok = once and FORM.fullmatch(completion) is not None
  found = ANSWER.findall(completion) or BENCHMARK.findall(completion)
  if not found:
    return Answer(None, False)
  text = found[-1].strip()
  fenced = FENCE.fullmatch(text)
  return Answer(fenced[1].strip() if fenced else text, format_ok)


def line_spans(completion: str) -> dict[int, tuple[int, int]]:
  """{k: (start, end)} of the characters of each line `Qk: ...` of the answer.

  It is the last answer block, as for `extract`.
  """
  spans = {}
  for block in list(ANSWER.finditer(completion))[-1:]:
    start = block.start(1)
    for line in block[1].split('\n'):
      if match := NUMBERED.fullmatch(line.strip()):
        spans[int(match['k'])] = start, start + len(line)
      start += len(line) + 1
  return spans
