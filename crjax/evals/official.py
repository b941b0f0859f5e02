"""What a benchmark's own scorer says of an answer, its defects included.

CRUXEval (`evaluation/utils_general.py`) and LiveCodeBench
(`compute_code_execution_metrics.py`) execute the program followed by
`assert <gold> == <answer>`; what does not raise within 3 s is right. So does
this, but in the sandbox, from which model text reaches nothing. Only ever
reported beside the strict verdicts: whatever evaluates to something equal is
accepted here, `0 or True` as well as an answer with a message behind a comma.
Answers that open files, start threads or import what is not in MODULES fail.
"""

import math

from crjax.evals.prompts import STOP
from crjax.execution import Job, Pool
from crjax.rewards import answers

SECONDS = 3.0
MEMORY_MB = 1024  # The scorers set no limit; no program of theirs comes near.
# Whatever an answer imports exists for the scorers; here, what it may well be.
MODULES = 'unittest.mock', 'numpy', 'logging', 'pathlib', 'argparse', 'tempfile'
MODULES += 'csv', 'glob', 'uuid', 'shutil', 'pickle', 'difflib', 'timeit'
MODULES += 'secrets', 'urllib.parse', 'subprocess', 'asyncio'
# What LiveCodeBench's programs use without importing it. Its own list also has
# numpy and pandas, which the sandbox has not: the gold self-test tells if that
# matters.
PRELUDE = """
from bisect import bisect_left, bisect_right, insort
from collections import Counter, OrderedDict, defaultdict, deque
from copy import deepcopy
from functools import cache, lru_cache, partial, reduce
from heapq import heapify, heappop, heappush, merge
from itertools import accumulate, chain, combinations, count, cycle, groupby
from itertools import islice, permutations, product, repeat, zip_longest
from math import ceil, comb, floor, gcd, inf, isqrt, log, log10, log2, prod
from math import sqrt
from operator import iand, itemgetter, sub
from os.path import commonprefix
from random import randrange, shuffle
from re import search as re_search
from string import ascii_lowercase
from typing import Any, Callable, Dict, Generator, Iterable, Iterator, List
from typing import Optional, Set, Tuple, Union
import bisect, collections, copy, functools, heapq, itertools, math, operator
import random, re, string, sys
"""


def pool(workers: int, *, min_level: int = 2) -> Pool:
  """Workers with the scorers' limits."""
  return Pool(
    workers,
    cpu_seconds=SECONDS,
    memory_mb=MEMORY_MB,
    min_level=min_level,
    modules=MODULES,
  )


def extract(
  benchmark, kind: str, style: str, completion: str, prompt=''
) -> str:
  """The answer as the scorers find it: not parsed, only cut out.

  With 'cot' it follows the first [ANSWER]. CRUXEval stops a model at [/ANSWER];
  LiveCodeBench cuts there afterwards, and without the tag after one line. Of an
  assertion the side is taken that was asked for. Of the zero-shot styles it is
  the last assertion in the answer block.
  """
  text = completion
  if style in ('cot', 'direct'):
    text = continuation(completion, prompt)
    if benchmark == 'cruxeval':
      text = text.split(STOP)[0]
    if style == 'cot' and '[ANSWER]' in text:
      text = text.split('[ANSWER]')[1]
  else:
    text = answers.extract(text).text or _last_fence(text)
    text = text[max(text.rfind('assert '), 0) :]
  sides = text.split('==')
  if kind == 'output':
    said = sides[min(1, len(sides) - 1)].strip()
    if benchmark == 'livecodebench' and style in ('cot', 'direct'):
      said = said.split(STOP if STOP in said else '\n')[0]
    return said.strip()
  before, found, call = sides[0].partition('assert f')
  if found:  # What follows a second `assert f` is dropped as well.
    return 'f' + call.split('assert f')[0].strip()
  return before.strip()


def continuation(completion, prompt):
  """What a model added, where the text begins with the prompt itself."""
  return completion.removeprefix(prompt if isinstance(prompt, str) else '')


def _last_fence(text):
  fenced = answers.FENCE.findall(text)
  return fenced[-1] if fenced else text


def skips(benchmark: str, task: dict, answer: str) -> bool:
  """Whether the scorer drops an answer, which then counts nowhere."""
  call = f'{task["entry"]}({task["args"]})'
  if task['kind'] == 'input':
    return benchmark == 'cruxeval' and 'f(' not in answer
  return task.get('call', call) in answer


def program(benchmark: str, task: dict, answer: str) -> str:
  """What the scorer executes."""
  checked = f'{task["code"]}\nassert {task["output"]} == {answer}'
  return prelude(benchmark) + checked


def prelude(benchmark: str) -> str:
  """What a benchmark's programs use without importing it."""
  return PRELUDE if benchmark == 'livecodebench' else ''


def judge(benchmark, tasks, answers_B, some_pool, progress=None) -> list:
  """For each task and its answer True, False, or None where it is dropped.

  Args:
    benchmark: 'cruxeval' or 'livecodebench'.
    tasks: {kind, code, entry, args, output} each.
    answers_B: one a task, as `extract` finds them.
    some_pool: see `pool`.

  Raises RuntimeError where the sandbox gave no verdict.
  """
  found, jobs = [None] * len(tasks), {}
  for i, (task, answer) in enumerate(zip(tasks, answers_B, strict=True)):
    if not skips(benchmark, task, answer):
      # The program asserts by itself; without an entry nothing is called.
      jobs[i] = Job(program(benchmark, task, answer), '', 'True')
  results = some_pool.run(list(jobs.values()), progress)
  for i, result in zip(jobs, results, strict=True):
    if result.verdict == 'infra':
      raise RuntimeError(
        f'the sandbox gave no verdict on {tasks[i]["id"]}: {result.detail}. '
        'Is the machine short of memory or processes? Run it again'
      )
    found[i] = result.verdict == 'ok'
  return found


def kept(verdicts) -> list[bool]:
  """The scorer's list for one item: without what it dropped.

  So n is smaller than the number of answers, unless none passed.
  """
  some = [v for v in verdicts if v is not None]
  return some if True in some else [False] * len(verdicts)


def pass_at_k(verdicts: list[bool], k: int) -> float:
  """As the scorers compute it: 1 where fewer than k are wrong.

  With too few samples that is no estimate: pass@5 of one wrong answer is 1.
  """
  n, right = len(verdicts), sum(verdicts)
  if n - right < k:
    return 1.0
  return 1 - math.prod(1 - k / i for i in range(n - right + 1, n + 1))
