"""The stages of a large build: cases, selection, rows, dataset.

Each stage writes parts, keyed by content (`store`), and skips those that are
there; so a build that was killed goes on where it stopped, and machines that
share a directory, or copy theirs together, build one dataset:

  python -m data_pipeline.build --config=C --stage=cases --shard=i/n  (n jobs)
  python -m data_pipeline.build --config=C --stage=rows --shard=i/n   (n jobs)
  python -m data_pipeline.build --config=C --stage=chains --shard=i/n (n jobs)
  python -m data_pipeline.build --config=C                            (once)

The third line is for a teacher alone. Models are asked within the stages, each
by the jobs that need its answers (`served`): the generator for cases, the
policy for rows, the teacher for chains.
Without --stage the last line does everything on one machine.
"""

import pathlib
import platform
import shutil
import sys

from crjax import rewards
from crjax.execution import Job, Pool
from data_pipeline import (
  asking,
  card,
  cases,
  constant,
  dataset,
  decontaminate,
  propose,
  select,
  served,
  store,
  synth,
  unfold,
  words,
)
from data_pipeline.built import deciding, is_built
from data_pipeline.parallel import mine, run

STAGES = ('all', 'cases', 'rows', 'chains')
# What decides the cases; the rest of a config can change and they stay.
DECIDES = (
  *('seed', 'candidates', 'chunk', 'programs', 'filters', 'cpu_seconds'),
  'generator',
)
ROWS = 200  # of a part of the later stages


def build(c, stage='all', shard=(0, 1)):
  """Builds `c.out`, or this shard of a stage."""
  settings, roles = deciding(c), served.roles(c)
  if stage == 'chains' and 'teacher' not in roles:
    sys.exit('--stage=chains asks a teacher: give --config.teacher.url')
  out = pathlib.Path(c.out)
  if is_built(out, settings):
    print(f'data: {out} already holds this config')
    return
  work = out.with_name(f'{out.name}.work')
  said = {}  # Role -> (directory, number) of the parts with its answers.
  found, count = every_case(c, settings, work, shard, said)
  if not is_done('cases', stage, found, count):
    return
  rows = selected(work, found, count, settings)
  made, parts = every_row(c, settings, rows, shard, said)
  if not is_done('rows', stage, made, parts):
    return
  (summary,) = store.read(rows / 'summary.json')
  if 'policy' in roles:
    made, parts, summary['difficulty'] = thinned(made, parts, settings)
  if 'teacher' in roles:
    source, made = made, beside(made, 'chains', settings['teacher'])
    served.chains(c, shard, source, made, mine(made, parts, shard))
    said['teacher'] = made, parts
    if not is_done('chains', stage, made, parts):
      return
  every = served.every(made, parts)
  summary = served.summary(c, said, summary, every)
  with Pool(1, **pool_settings(settings)) as pool:
    heldout = [row for row in every if row['split'] == 'test']
    summary['constant_baseline'] = constant.baseline(heldout, pool)
  shown = dropped_examples(found, count) | served.rejected(said)
  examples = card.examples(shown)
  summary = dataset.write(out, every, settings, summary, examples)
  shutil.rmtree(work)
  print(card.sizes(summary['lengths']))
  print(f'data: {len(every):,} rows in {out}; see its README.md')


def every_case(c, settings, work, shard, said):
  """(directory, number) of the parts of cases; this shard's are made."""
  decides = {k: settings[k] for k in DECIDES if k in settings}
  found = work / f'cases-{store.key(versions(), decides)}'
  count, source = -(-c.candidates // c.chunk), None
  if 'generator' in settings:
    if words.words(settings['programs']) != words.ALL:
      sys.exit(
        'data: config.programs is for the grammar; the generator writes '
        'all levels: leave config.programs as configs/data_7b.py has it'
      )
    source = beside(found, 'programs')
    served.programs(c, shard, source, mine(source, count, shard))
    said['generator'] = source, count
  here = mine(found, count, shard)
  run('cases', make_cases, settings, found, source, here, c.workers)
  return found, count


def every_row(c, settings, rows, shard, said):
  """(directory, number) of the parts of rows; this shard's are made.

  With a policy they are those with its pass rates.
  """
  made, parts = beside(rows, 'rows'), len(list(rows.glob('[0-9]*.jsonl')))
  here = mine(made, parts, shard)
  run('rows', make_rows, settings, made, rows, here, c.workers)
  if 'policy' not in settings:
    return made, parts
  passed = beside(made, 'passes')
  served.passes(c, shard, made, passed, mine(passed, parts, shard))
  said['policy'] = passed, parts
  return passed, parts


def beside(directory, name, *more):
  """The directory for what is made of another one, and of `more`."""
  key = directory.name.partition('-')[2]
  return directory.with_name(f'{name}-{store.key(key, *more) if more else key}')


def versions() -> list[str]:
  return [store.code_hash(), platform.python_version()]


def is_done(name, stage, directory, count) -> bool:
  """Whether the build goes on behind a stage; says so where it does not."""
  missing = len(store.missing(directory, count))
  if missing and STAGES.index(stage) > STAGES.index(name):
    sys.exit(
      f'data: {missing} of {count} parts of {name} are not in {directory}: all '
      f'jobs of --stage={name} must end before those of --stage={stage} start'
    )
  if missing or stage == name:
    print(
      f'data: {name}: {count - missing} of {count} parts are in {directory}'
      + ', the others are left to other shards' * bool(missing)
    )
  return not missing and stage != name


def shard_of(text, stage) -> tuple[int, int]:
  """(i, n) of 'i/n'; exits where it is none, or no stage is named for it."""
  i, _, n = text.partition('/')
  if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
    sys.exit(f'--shard={text}: give i/n with 0 <= i < n, such as 0/8')
  if int(n) > 1 and stage == 'all':
    sys.exit(f'--shard={text} needs a --stage: cases, rows or chains')
  return int(i), int(n)


def pool_settings(settings):
  return {
    'cpu_seconds': settings['cpu_seconds'],
    'min_level': settings['sandbox_min_level'],
  }


def make_cases(settings, target, source, numbers):
  """Parts [what was dropped, *programs], each of one chunk of candidates.

  Args:
    source: parts of answers with programs in them, None for the grammar's.
  """
  chosen, wanted = words.words(settings['programs']), settings['filters']
  pools = cases.pools(1, wanted['hash_seeds'], **pool_settings(settings))
  benchmarks = decontaminate.load()
  for number in numbers:
    first = number * settings['chunk']
    last = min(first + settings['chunk'], settings['candidates'])
    if source:
      answers = served.rows_of(source, number)
      longest = wanted['longest_args']
      candidates, unread = propose.programs(answers, first, longest)
    else:
      candidates = [
        synth.program(settings['seed'], i, chosen) for i in range(first, last)
      ]
      unread = {}
    found = cases.collect(candidates, pools, wanted, benchmarks, chosen.small)
    dropped = {reason: len(some) for reason, some in unread.items()}
    shown = {reason: some[: cases.EXAMPLES] for reason, some in unread.items()}
    head = {
      'candidates': last - first,
      'dropped': dict(found.dropped) | dropped,
      'inputs': dict(found.inputs),
      'examples': found.examples | shown,
    }
    store.write(store.part(target, number), [head, *found.programs])
  for pool in pools:
    pool.close()


def selected(work, found, count, settings) -> pathlib.Path:
  """The directory of the rows that are wanted; made where it is missing."""
  # What a teacher says changes no row that it is asked about.
  settings = {k: v for k, v in settings.items() if k != 'teacher'}
  name = store.key(versions(), settings, store.digest(found, count))
  target = work / f'selected-{name}'
  if (target / 'summary.json').exists():
    return target
  print('data: looking for duplicates', flush=True)
  heads, programs = [], []
  for i in range(count):
    head, *some = store.read(store.part(found, i))
    heads.append(head)
    programs += some
  distinct, duplicates = select.distinct(programs, settings)
  rows, unused = select.assign(distinct, select.with_spare(settings))
  write_parts(target, rows)
  used = len({row['program']['pid'] for row in rows})
  summary = card.funnel(heads, duplicates, unused, used, len(rows))
  store.write(target / 'summary.json', [summary])
  return target


def write_parts(target, rows):
  for i, start in enumerate(range(0, len(rows), ROWS)):
    store.write(store.part(target, i), rows[start : start + ROWS])


def thinned(passed, parts, settings):
  """(directory, number of parts, counts) of rows in the policy's bands."""
  kept, fates = select.in_bands(served.every(passed, parts), settings)
  target = beside(passed, 'thinned', store.digest(passed, parts))
  write_parts(target, kept)
  return target, -(-len(kept) // ROWS), fates


def make_rows(settings, target, source, numbers):
  """Parts of rows with prompts, gold answers and chains, each one judged."""
  with Pool(1, **pool_settings(settings)) as pool:
    for number in numbers:
      wanted = store.read(store.part(source, number))
      rows = make_part(wanted, pool, settings['filters']['chains'])
      store.write(store.part(target, number), rows)


def make_part(wanted, pool, chains) -> list[dict]:
  """Rows of what was selected; RuntimeError if an answer of ours is wrong."""
  rows = []
  runs = traced(wanted, pool, chains['parts'])
  for want, events, parts in zip(wanted, *runs, strict=True):
    made = asking.ask(
      want['asked'],
      want['program'],
      want['case'],
      events,
      chains,
      parts,
    )
    rows.append(dataset.row(want, made))
  tasks = [{'kind': row['kind']} | row['verify'] for row in rows]
  texts = [row['completion'] for row in rows]
  worth, infos = rewards.score(tasks, texts, [False] * len(rows), pool)
  for row, reward, info in zip(rows, worth, infos, strict=True):
    if reward != 1:
      raise RuntimeError(f'our own answer is not right: {row["id"]}, {info}')
  return rows


def traced(wanted, pool, has_parts=True):
  """(events, values of the parts of expressions) of each selected case."""
  jobs = [
    Job(w['program']['code'], w['program']['entry'], w['case']['args'], True)
    for w in wanted
  ]
  events = [result.trace for result in pool.run(jobs)]
  if not has_parts:
    return events, [{} for _ in events]
  unfolded = [unfold.unfold(job.code) for job in jobs]
  again = pool.run(
    [
      job._replace(code=new[0]) if new else job
      for job, new in zip(jobs, unfolded, strict=True)
    ]
  )
  parts = [
    unfold.parts(job.code, one, new, two.trace) if new and two.trace else {}
    for job, one, new, two in zip(jobs, events, unfolded, again, strict=True)
  ]
  return events, parts


def dropped_examples(found, count):
  """{reason: up to three programs} of the first parts that have any."""
  examples = {}
  for i in range(count):
    for reason, some in store.read(store.part(found, i))[0]['examples'].items():
      examples.setdefault(reason, []).extend(some)
  return examples
