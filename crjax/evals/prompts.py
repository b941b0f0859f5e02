"""Prompts of benchmarks: their own few-shot texts, and zero-shot ones.

A few-shot prompt is one text that ends in an open tag, which base models
continue and chat models get as the user's message. The texts are files beside
this one; those of benchmarks are theirs, word for word (texts/NOTICE.txt).
"""

import functools
import pathlib

from crjax import tokenizer

TEXTS = pathlib.Path(__file__).parent / 'texts'
STYLES = ('cot', 'direct', 'zero_shot', 'trained')
STOP = '[/ANSWER]'  # of the few-shot prompts
EXPERT = 'You are a programming expert.'


def ask(benchmark: str, task: dict, style: str):
  """The prompt of a task: a text, or chat messages for the zero-shot styles.

  Args:
    benchmark: 'cruxeval', 'livecodebench', 'reval', or '' for tasks of ours.
    task: {kind, code, entry, args, output}, as `rewards.score` takes it, with
      its `prompt` where its file has one; or a question of `reval.load`.
    style: 'cot' or 'direct', the benchmark's few-shot prompts; 'zero_shot', a
      task sentence, the program and an assertion with a hole, as CodeReasoner
      and its successors ask; 'trained', what this library trains on.

  Raises ValueError for a style or direction that the benchmark does not have.
  """
  kind = task['kind']
  if benchmark == 'reval':
    return _reval(task, style)
  known = 'kind', 'code', 'entry', 'args', 'output'
  if style == 'trained' and 'prompt' in task:
    return task['prompt']
  if style == 'trained':
    asked = {k: task[k] for k in known}
    return tokenizer.messages(**asked, questions=task.get('questions', ()))
  name = f'{benchmark}_{kind}_{style}'
  if style == 'zero_shot':
    name = f'{kind}_zero_shot'
  call = f'{task["entry"]}({task["args"]})'
  filled = text(name).format(call=call, **{k: task[k] for k in known[1:]})
  if style != 'zero_shot':
    return filled
  return [
    {'role': 'system', 'content': EXPERT},
    {'role': 'user', 'content': filled.strip()},
  ]


def _reval(question, style):
  """Its own few-shot texts have no licence and are not here."""
  lines = question['code'].split('\n')
  numbered = '\n'.join(f'{i}\t{x}' for i, x in enumerate(lines, 1))
  here = {'numbered': numbered}
  if 'line' in question:
    here['codeline'] = lines[question['line'] - 1].strip()
  filled = text(f'reval_{question["kind"]}_{style}').format(**question | here)
  return [
    {'role': 'system', 'content': EXPERT},
    {'role': 'user', 'content': filled.strip()},
  ]


def chat(prompt, system: str = ''):
  """A prompt as chat messages, whatever it is."""
  if not isinstance(prompt, str):
    return prompt
  before = [{'role': 'system', 'content': system}] if system else []
  return [*before, {'role': 'user', 'content': prompt}]


@functools.cache
def text(name: str) -> str:
  path = TEXTS / f'{name}.txt'
  if not path.exists():
    some = sorted(p.stem for p in TEXTS.glob('*_*.txt'))
    raise ValueError(f'there is no prompt {name!r}; there are {some}')
  return path.read_text(encoding='utf-8')
