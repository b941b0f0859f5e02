"""The stages of a large build: cases, selection, rows, dataset.

Each stage writes parts, keyed by content (`store`), and skips those that are
there; so a build that was killed goes on where it stopped, and machines that
share a directory, or copy theirs together, build one dataset:

  python -m data_pipeline.build --config=C --stage=cases --shard=i/n  (n jobs)
  python -m data_pipeline.build --config=C --stage=rows --shard=i/n   (n jobs)
  python -m data_pipeline.build --config=C                            (once)

Without --stage the last line does everything on one machine.
"""

import multiprocessing
from multiprocessing import connection
import os
import pathlib
import platform
import shutil
import sys
import threading
import time

from crjax import rewards
from crjax.execution import Job, Pool
from data_pipeline import (
  asking,
  card,
  cases,
  constant,
  dataset,
  decontaminate,
  select,
  store,
  synth,
  unfold,
  words,
)
from data_pipeline.built import deciding, is_built

STAGES = ('all', 'cases', 'rows')
# What decides the cases; the rest of a config can change and they stay.
DECIDES = ('seed', 'candidates', 'chunk', 'programs', 'filters', 'cpu_seconds')
ROWS = 200  # of a part of the last stage
TELL_SECONDS = 10.0


def build(c, stage='all', shard=(0, 1)):
  """Builds `c.out`, or this shard of a stage."""
  settings = deciding(c)
  out = pathlib.Path(c.out)
  if is_built(out, settings):
    print(f'data: {out} already holds this config')
    return None
  work = out.with_name(f'{out.name}.work')
  versions = [store.code_hash(), platform.python_version()]
  count = -(-c.candidates // c.chunk)
  decides = {k: settings[k] for k in DECIDES}
  found = work / f'cases-{store.key(versions, decides)}'
  run('cases', settings, found, None, count, c.workers, shard)
  if stage == 'rows' and (lacking := store.missing(found, count)):
    sys.exit(
      f'data: {len(lacking)} of {count} parts of cases are not in {found}: all '
      'jobs of --stage=cases must end before those of --stage=rows start'
    )
  if stage == 'cases' or store.missing(found, count):
    return left('cases', found, count)
  rows = selected(work, found, count, settings, versions)
  made = work / f'rows-{rows.name.partition("-")[2]}'
  parts = len(list(rows.glob('[0-9]*.jsonl')))
  run('rows', settings, made, rows, parts, c.workers, shard)
  if stage == 'rows' or store.missing(made, parts):
    return left('rows', made, parts)
  (summary,) = store.read(rows / 'summary.json')
  every = [r for i in range(parts) for r in store.read(store.part(made, i))]
  examples = dropped_examples(found, count)
  with Pool(1, **pool_settings(settings)) as pool:
    heldout = [row for row in every if row['split'] == 'test']
    summary['constant_baseline'] = constant.baseline(heldout, pool)
  summary = dataset.write(
    out, every, settings, summary, card.examples(examples)
  )
  shutil.rmtree(work)
  print(card.sizes(summary['lengths']))
  print(f'data: {len(every):,} rows in {out}; see its README.md')
  return None


def shard_of(text, stage) -> tuple[int, int]:
  """(i, n) of 'i/n'; exits where it is none, or no stage is named for it."""
  i, _, n = text.partition('/')
  if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
    sys.exit(f'--shard={text}: give i/n with 0 <= i < n, such as 0/8')
  if int(n) > 1 and stage == 'all':
    sys.exit(f'--shard={text} needs a --stage: cases, then rows')
  return int(i), int(n)


def left(stage, directory, count):
  missing = store.missing(directory, count)
  print(
    f'data: {stage}: {count - len(missing)} of {count} parts are in {directory}'
    + (', the others are left to other shards' if missing else '')
  )


def run(stage, settings, target, source, count, workers, shard):
  """Makes the parts of a stage that are missing and this shard's."""
  mine = [i for i in store.missing(target, count) if i % shard[1] == shard[0]]
  if not mine:
    return
  workers = min(workers, len(mine))
  context = multiprocessing.get_context('spawn')
  processes = [
    context.Process(
      target=work_on,
      args=(stage, settings, target, source, mine[i::workers]),
    )
    for i in range(workers)
  ]
  for process in processes:
    process.start()
  try:
    watch(stage, processes, target, mine)
  finally:
    for process in processes:
      process.terminate()
      process.join()


def watch(stage, processes, target, mine):
  """Tells how far the parts are until the processes end; exits if one fails."""
  began, told = time.monotonic(), 0.0
  alive = {p.sentinel: p for p in processes}
  while alive:
    for sentinel in connection.wait(list(alive), timeout=1.0):
      process = alive.pop(sentinel)
      process.join()
      if process.exitcode:
        sys.exit(
          f'data: a process of the stage {stage!r} ended with status '
          f'{process.exitcode}; what it said is above. The parts that are done '
          'stay: the same command goes on.'
        )
    seconds = time.monotonic() - began
    if seconds - told > TELL_SECONDS or not alive:
      told = seconds
      done = sum(store.part(target, i).exists() for i in mine)
      rest = seconds / max(done, 1) * (len(mine) - done)
      print(
        f'data: {stage}: {done} of {len(mine)} parts, {seconds:.0f} s, '
        f'about {rest:.0f} s left',
        flush=True,
      )


def work_on(stage, settings, target, source, numbers):
  """The main function of a worker process; ends with its parent."""
  threading.Thread(target=end_with_parent, daemon=True).start()
  make = {'cases': make_cases, 'rows': make_rows}[stage]
  make(settings, target, source, numbers)


def end_with_parent():
  connection.wait([multiprocessing.parent_process().sentinel])
  os._exit(1)


def pool_settings(settings):
  return {
    'cpu_seconds': settings['cpu_seconds'],
    'min_level': settings['sandbox_min_level'],
  }


def make_cases(settings, target, _, numbers):
  """Parts [what was dropped, *programs], each of one chunk of candidates."""
  chosen, wanted = words.words(settings['programs']), settings['filters']
  pools = cases.pools(1, wanted['hash_seeds'], **pool_settings(settings))
  benchmarks = decontaminate.load()
  for number in numbers:
    first = number * settings['chunk']
    last = min(first + settings['chunk'], settings['candidates'])
    candidates = [
      synth.program(settings['seed'], i, chosen) for i in range(first, last)
    ]
    found = cases.collect(candidates, pools, wanted, benchmarks, chosen.small)
    head = {
      'candidates': last - first,
      'dropped': dict(found.dropped),
      'inputs': dict(found.inputs),
      'examples': found.examples,
    }
    store.write(store.part(target, number), [head, *found.programs])
  for pool in pools:
    pool.close()


def selected(work, found, count, settings, versions) -> pathlib.Path:
  """The directory of the rows that are wanted; made where it is missing."""
  name = store.key(versions, settings, store.digest(found, count))
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
  rows, unused = select.assign(distinct, settings)
  for i, start in enumerate(range(0, len(rows), ROWS)):
    store.write(store.part(target, i), rows[start : start + ROWS])
  used = len({row['program']['pid'] for row in rows})
  summary = card.funnel(heads, duplicates, unused, used, len(rows))
  store.write(target / 'summary.json', [summary])
  return target


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
