"""How varied programs are, beside those of CRUXEval where its file is there."""

import collections
import random
import statistics

from crjax.execution import Job, Pool, literals
from data_pipeline import decontaminate, identity, near

SAMPLE = 500  # programs; skeletons are counted among as many of both
TYPES = ('str', 'list', 'int', 'dict', 'bool', 'tuple')


def table(rows, settings) -> str:
  """Markdown: one column for these rows, one for CRUXEval."""
  columns = {'this dataset': [program(row) for row in rows]}
  if settings['cruxeval']:
    columns['CRUXEval'] = crux(settings)
  size = min(SAMPLE, *(len({p['code'] for p in c}) for c in columns.values()))
  found = {name: measures(some, size) for name, some in columns.items()}
  lines = [f'| | {" | ".join(found)} |', '|---' * (len(found) + 1) + '|']
  for name in next(iter(found.values())):
    values = ' | '.join(column[name] for column in found.values())
    lines.append(f'| {name} | {values} |')
  return '\n'.join(lines) + '\n'


def program(row) -> dict:
  return {
    'code': row['verify']['code'],
    'type': row['type'],
    'events': row['events'],
    'output': row['verify']['output'],
  }


def crux(settings) -> list[dict]:
  """The programs of CRUXEval, run and traced as ours are."""
  rows = decontaminate.read(settings['cruxeval'])
  jobs = [Job(r['code'], 'f', r['input'], trace=True) for r in rows]
  with Pool(1, min_level=settings['sandbox_min_level']) as pool:
    results = pool.run(jobs)
  return [
    {
      'code': row['code'],
      'type': type(literals.parse(row['output'])).__name__,
      'events': sum(e.kind == 'line' for e in result.trace),
      'output': row['output'],
    }
    for row, result in zip(rows, results, strict=True)
    if result.verdict == 'ok'
  ]


def measures(programs, size) -> dict[str, str]:
  """{what is measured: text}."""
  distinct = list({p['code']: p for p in programs}.values())
  some = random.Random(0).sample(distinct, size)
  features = [identity.features(p['code']) for p in some]
  skeletons = [identity.skeleton(p['code']) for p in some]
  calls = collections.Counter(
    word for s in skeletons for word in set(s.split()) if word[0] == '.'
  )
  types = collections.Counter(p['type'] for p in programs)
  share = lambda kind: f'{kind} {100 * types[kind] / len(programs):.0f} %'
  nearest = similarities(some)
  return {
    'programs looked at': f'{size:,} of {len(distinct):,}',
    'characters': spread([len(p['code']) for p in some]),
    'lines': spread([f['lines'] for f in features]),
    'control depth': spread([f['depth'] for f in features]),
    'executed lines of a run': spread([p['events'] for p in programs]),
    'distinct methods called': f'{len(calls)}',
    'most frequent method': f'{100 * max(calls.values()) / size:.0f} %',
    'output types': ', '.join(map(share, TYPES)),
    'distinct skeletons per 1,000': f'{1000 * len(set(skeletons)) / size:.0f}',
    'nearest neighbour, Jaccard': spread(nearest, 2),
  }


def spread(values, digits=0) -> str:
  cuts = statistics.quantiles(values, n=20, method='inclusive')
  text = [f'{x:.{digits}f}' for x in (cuts[0], cuts[9], cuts[18])]
  return f'median {text[1]} (5 % {text[0]}, 95 % {text[2]})'


def similarities(programs) -> list[float]:
  """Of each program to the most similar other one; all pairs."""
  sets = [identity.shingles(p['code']) for p in programs]
  return [
    max(near.jaccard(one, other) for other in sets if other is not one)
    for one in sets
  ]
