"""A small build that asks models, and a script that answers in each role."""

import hashlib
import random
import re
import subprocess
import sys

import datasets

from data_pipeline import asking, narrate, propose, synth
from tests.conftest import ROOT

SPLITS = {'sft_train': 24, 'rl_train': 12, 'dev': 3, 'test': 3}
TRIED = {'sft_train': 48, 'rl_train': 24, 'dev': 3, 'test': 3}  # spare = 2
CANDIDATES, CONCURRENCY, TRIES, SAMPLES = 80, 6, 4, 3
MODELS = {'generator': 'writer', 'policy': 'student', 'teacher': 'professor'}
SECRET = 'sk-not-for-anyone'


def command(out, splits, *flags):
  return [
    sys.executable,
    '-m',
    'data_pipeline.build',
    f'--config={ROOT / "configs" / "data_7b.py"}',
    f'--config.out={out}',
    '--config.workers=1',
    f'--config.candidates={CANDIDATES}',
    '--config.chunk=20',
    '--config.largest_share=0.2',
    f'--config.client.concurrency={CONCURRENCY}',
    *(f'--config.splits.{k}={v}' for k, v in splits.items()),
    *flags,
  ]


def asks(server, *roles):
  """The flags of a build that asks a server in these roles."""
  for role in roles:
    yield f'--config.{role}.url={server.url}'
    yield f'--config.{role}.model={MODELS[role]}'
    yield f'--config.{role}.price_in=2'
    yield f'--config.{role}.price_out=10'
  if 'policy' in roles:
    yield f'--config.policy.samples={TRIES}'
    yield '--config.policy.spare=2'
    yield '--config.policy.keep.sft_train=(0, 0.8)'
    yield '--config.policy.keep.rl_train=(0.1, 1)'
  if 'teacher' in roles:
    yield f'--config.teacher.samples={SAMPLES}'
    yield '--config.teacher.shortest=40'


def run(out, splits, *flags):
  done = subprocess.run(
    command(out, splits, *flags),
    cwd=ROOT,
    capture_output=True,
    text=True,
    env={'PATH': '/usr/bin:/bin', 'OPENAI_API_KEY': SECRET},
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def draw(*parts) -> random.Random:
  return random.Random(hashlib.sha256(repr(parts).encode()).hexdigest())


class Exam:
  """Answers of all roles; gold ones are known once a dataset was built."""

  def __init__(self):
    self.gold = {}
    self.index = {
      propose.messages(0, i)[1]['content']: i for i in range(CANDIDATES)
    }

  def learn(self, rows):
    for row in rows:
      turns = row.get('messages') or row['prompt']
      task = row['verify']
      said = asking.answer(row['kind'], task, task['questions'] or [task])
      text = narrate.completion('One could say\nthat it is so.', said)
      if 'messages' in row:
        text = turns[-1]['content']
      self.gold[turns[1]['content']] = text

  def __call__(self, body):
    question, seed = body['messages'][1]['content'], body['seed']
    return {
      'writer': self.write,
      'student': self.try_it,
      'professor': self.teach,
    }[body['model']](question, draw(question, seed))

  def write(self, question, rng):
    """A program of the grammar, or something that holds none."""
    made = synth.program(0, self.index[question])
    call = f'{made.entry}({synth.source_of(made.args)})'
    block = f'```python\n{made.code}\n\n{call}\n```'
    return rng.choices(
      [f'Well.\n{block}', made.code, (block[:-20], 'length')], [12, 1, 1]
    )[0]

  def try_it(self, question, rng):
    """Some questions are always answered, some never, most sometimes."""
    often = draw(question).choice((0, 0.5, 0.5, 0.5, 1))
    gold = self.gold[question]
    return gold if rng.random() < often else narrate.completion('Hm.', '"no"')

  def teach(self, question, rng):
    gold = self.gold[question]
    worse = ('wrong', 'untagged', 'doubled', 'loop', 'foreign', 'cut off')
    how = rng.choice(worse)
    if draw('easy', question).random() < 0.75:
      how = rng.choice((*worse, 'gold', 'gold', 'long', 'long'))
    return {
      'gold': gold,
      'long': with_preface(gold),
      'wrong': re.sub(
        '(?s)<answer>.*</answer>', "<answer>\n'no'\n</answer>", gold
      ),
      'untagged': gold.replace('</reasoning>', ''),
      'doubled': gold + '\n<answer>\n1\n</answer>',
      'loop': gold.replace('</reasoning>', 'I go on and on. ' * 99 + '\n'
                           '</reasoning>'),
      'foreign': gold.replace('<reasoning>', '<reasoning>\n所以'),
      'cut off': (gold, 'length'),
    }[how]  # fmt: skip


def load(out):
  return {
    split: datasets.Dataset.from_parquet(
      str(out / f'{split}.parquet')
    ).to_list()
    for split in SPLITS
  }


def with_preface(gold):
  return gold.replace('<reasoning>\n', '<reasoning>\nLet us see.\n')
