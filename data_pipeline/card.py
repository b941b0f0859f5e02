"""The dataset card: funnel, balance, examples, diversity; plain Markdown."""

import collections
import random

from data_pipeline import decontaminate, diversity, inventory
from data_pipeline.built import TOKENIZER

SHOWN = 20  # random rows of each kind
EXAMPLES = 2  # programs of each reason

HEAD = """---
configs:
- config_name: rl
  default: true
  data_files:
{prompts}- config_name: sft
  data_files:
{messages}---
# Code execution cases

{origin}, executed and traced; built by
`python -m data_pipeline.build`. `manifest.json` has settings, versions and
hashes. `verify` is what `crjax.rewards.score` needs; nothing is pickled.
`load_dataset(path, 'sft')` has `messages`, `load_dataset(path, 'rl')` prompts.

Decontaminated against hashes of functions of programs: {programs}.
REval consists of programs of HumanEval and ClassEval. Not checked:
LiveCodeBench, whose file was not there when the hashes were made. As in
CRUXEval, programs are made around methods of builtin types: being close in
distribution is part of why such data helps there.
"""


def funnel(heads, duplicates, unused, used, rows) -> dict:
  """What became of programs, inputs and cases; the numbers add up."""
  total = lambda name: dict(
    sum((collections.Counter(h[name]) for h in heads), collections.Counter())
  )
  candidates = sum(h['candidates'] for h in heads)
  dropped = total('dropped')
  for reason, n in duplicates.items():  # Some were seen before they were run.
    dropped[reason] = dropped.get(reason, 0) + n
  left_over = unused.pop('programs left over')
  dropped['not needed'] = left_over
  exhausted = candidates - sum(dropped.values()) - used
  dropped['all cases capped'] = exhausted
  return {
    'candidates': candidates,
    'dropped_programs': dict(sorted(dropped.items())),
    'programs': used,
    'inputs': dict(sorted(total('inputs').items())),
    'unused_cases': dict(sorted(unused.items())),
    'rows': rows,
  }


def examples(dropped) -> dict:
  """The first few programs of each reason."""
  return {k: v[:EXAMPLES] for k, v in sorted(dropped.items())}


def balance(rows, settings, directory) -> dict:
  """Shares of kinds, golds, levels, types and owners; sizes of chains."""
  own = directory / TOKENIZER
  path = own if own.exists() else settings['tokenizer']
  count = lambda name: dict(
    sorted(collections.Counter(r[name] for r in rows).items())
  )
  owners = collections.Counter(r['method'].partition('.')[0] for r in rows)
  golds = {
    kind: dict(
      collections.Counter(
        bucket(r['verify']['gold'][0]) for r in rows if r['kind'] == kind
      ).most_common()
    )
    for kind in ('coverage', 'path', 'state')
  }
  kinds = {
    split: dict(
      sorted(
        collections.Counter(
          r['kind'] for r in rows if r['split'] == split
        ).items()
      )
    )
    for split in settings['splits']
  }
  return {
    'kinds': kinds,
    'golds': golds,
    'levels': count('level'),
    'types': count('type'),
    'owners': dict(sorted(owners.items())),
    'methods': len({r['method'] for r in rows}),
    'lengths': lengths(rows, path),
  }


def bucket(gold) -> str:
  return gold if gold in ('YES', 'NO', '-1', 'Nil') else 'other'


def lengths(rows, path) -> dict:
  """{kind: mean and 95th percentile} of completions.

  In tokens where there is a tokenizer, else in characters.
  """
  size, unit = len, 'characters'
  if path:
    from crjax import tokenizer

    tok = tokenizer.load(path)
    size, unit = lambda text: len(tok(text)['input_ids']), 'tokens'
  found, measured = (
    {'unit': unit},
    [(r['kind'], size(r['completion'])) for r in rows],
  )
  for kind in ['all', *sorted({k for k, _ in measured})]:
    sizes = sorted(n for k, n in measured if kind in ('all', k))
    found[kind] = {
      'mean': round(sum(sizes) / len(sizes), 1),
      'p95': sizes[int(0.95 * (len(sizes) - 1))],
      'longest': sizes[-1],
    }
  return found


def text(rows, settings, summary, some) -> str:
  files = {
    split: f'  - split: {split}\n    path: {split}.parquet\n'
    for split in settings['splits']
  }
  messages = files.pop('sft_train')
  known = ', '.join(
    f'{n} of {k}' for k, n in decontaminate.load().programs.items() if n
  )
  parts = [
    HEAD.format(
      origin=origin(settings),
      prompts=''.join(files.values()),
      messages=messages,
      programs=known,
    ),
    *of_models(summary),
    '## Funnel\n',
    counts('programs', {'candidates': summary['candidates']}),
    counts('dropped because', summary['dropped_programs']),
    counts('inputs', summary['inputs']),
    counts('cases left unused because', summary['unused_cases']),
    '## Balance\n',
    *(counts(f'kinds of {k}', v) for k, v in summary['kinds'].items()),
    *(counts(f'answers to {k}', v) for k, v in summary['golds'].items()),
    *(counts(name, summary[name]) for name in ('levels', 'types', 'owners')),
    f'Programs are built around {summary["methods"]} of '
    f'{len(inventory.ENTRIES)} uses of builtins.\n',
    sizes(summary['lengths']),
    '## Diversity\n',
    diversity.table(rows, settings),
    '## What was dropped\n',
    *(f'{reason}:\n\n{fence(x)}' for reason, v in some.items() for x in v),
    '## Rows\n',
    *sampled(rows, settings['seed']),
  ]
  return '\n'.join(parts) + '\n'


def origin(settings) -> str:
  if 'generator' in settings:
    return f'Programs that {settings["generator"]["model"]} wrote to order'
  return 'Programs of a seeded grammar'


def of_models(summary):
  """What was asked of models, what it cost and what became of it."""
  if 'models' not in summary:
    return
  yield '## Models\n'
  heads = ('role', 'model', 'endpoints', 'answers')
  heads += ('tokens_in', 'tokens_out', 'dollars')
  lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
  for one in summary['models']:
    cells = one | {'endpoints': ', '.join(one['endpoints'])}
    lines.append(f'| {" | ".join(str(cells[name]) for name in heads)} |')
  yield '\n'.join(lines) + '\n'
  for split, found in summary.get('difficulty', {}).items():
    yield counts(f'rows of {split} by difficulty', found)
  for title in ('samples', 'chains'):
    if title in summary:
      yield counts(f'{title} of sft_train', summary[title])


def counts(title, values) -> str:
  total = sum(values.values())
  lines = [f'| {title} | count | share |', '|---|---|---|']
  lines += [
    f'| {name} | {n:,} | {100 * n / max(total, 1):.1f} % |'
    for name, n in values.items()
  ]
  return '\n'.join(lines) + '\n'


def sizes(found) -> str:
  lines = [f'| completion, {found["unit"]} | mean | 95 % | longest |']
  lines.append('|---|---|---|---|')
  lines += [
    f'| {kind} | {v["mean"]} | {v["p95"]} | {v["longest"]} |'
    for kind, v in found.items()
    if kind != 'unit'
  ]
  return '\n'.join(lines) + '\n'


def fence(code) -> str:
  return f'````\n{code}\n````\n'


def sampled(rows, seed):
  """Random rows of each kind, whole."""
  rng = random.Random(seed)
  for kind in sorted({r['kind'] for r in rows}):
    some = [r for r in rows if r['kind'] == kind]
    yield f'### {kind}\n'
    for one in rng.sample(some, min(SHOWN, len(some))):
      yield fence(f'{one["prompt"][1]["content"]}\n\n{one["completion"]}')
