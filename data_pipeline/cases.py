"""From candidate programs to executed cases: inputs, execution, triviality.

A program is {pid, code, entry, method, level, features, cases}; a case is
{args, output, type, events, difficulty, mutated, asks}; `asks` are the kinds
of questions that it can answer. Everything is source text or a number.
"""

import collections
import random
from typing import NamedTuple

from crjax.execution import Job, Pool, literals
from data_pipeline import asking, filters, identity, literal, synth

HASH_SEEDS = (0, 1, 12345)  # of str; set order differs between them.
TRIES = 4  # of a mutation that must be new
EXAMPLES = 3  # of what each filter dropped, a chunk
SHOWN = 1_500  # characters of what a model wrote


class Found(NamedTuple):
  """What became of some candidates."""

  programs: list
  dropped: collections.Counter  # programs by reason
  inputs: collections.Counter  # inputs by fate, 'kept' included
  examples: dict  # reason -> programs that it dropped


class Dropped(Exception):
  """A program goes; the message is the reason."""


def pools(workers, seeds=HASH_SEEDS, **settings) -> list[Pool]:
  """One pool a hash seed; only one of them works at a time."""
  return [Pool(workers, hash_seed=seed, **settings) for seed in seeds]


def collect(candidates, some_pools, settings, benchmarks, small=None) -> Found:
  """Executes candidates and keeps those that make good questions.

  Args:
    candidates: `synth.Program`s.
    some_pools: of `pools`.
    settings: mutants, most_cases, most_events, easiest, longest_args, chains
      (of `asking.ask`), and what `filters.value` takes.
    benchmarks: `decontaminate.Hashes`.
    small: of `literal.small_value`, where values are small.
  """
  found = Found([], collections.Counter(), collections.Counter(), {})
  kept, seen = [], set()
  for program in candidates:
    reason = before(program, settings['shortest'], benchmarks, seen)
    if reason:
      drop(found, program, reason)
    else:
      kept.append((program, inputs(program, settings, small)))
  runs = execute(kept, some_pools)
  ready = []
  for (program, given), results in zip(kept, runs, strict=True):
    try:
      cases = judged(program, given, results, settings, benchmarks, found)
      ready.append((program, cases))
    except Dropped as error:
      drop(found, program, str(error))
  for program, cases in backward(ready, some_pools[0]):
    found.programs.append(row(program, cases))
  return found


def drop(found, program, reason):
  found.dropped[reason] += 1
  some = found.examples.setdefault(reason, [])
  if len(some) < EXAMPLES:
    some.append(f'{program.code}\n# {synth.source_of(program.args)}')


def before(program, shortest, benchmarks, seen) -> str:
  """Why a program is not executed, or ''; `seen` gets its hash."""
  if reason := filters.static(program.code, program.entry, shortest):
    return reason if reason == 'not Python' else f'static: {reason}'
  if (pid := identity.program_hash(program.code)) in seen:
    return 'duplicate: exact'
  seen.add(pid)
  reason = benchmarks.fault(program.code)
  return f'benchmark: {reason}' if reason else ''


def inputs(program, settings, small) -> list[tuple]:
  """Distinct arguments: the program's own, then changed ones."""
  rng = random.Random(f'inputs {program.code}')
  found = {synth.source_of(program.args): program.args}
  for _ in range(TRIES * settings['mutants']):
    if len(found) > settings['mutants']:
      break
    args = list(rng.choice(list(found.values())))
    for i in rng.sample(range(len(args)), rng.randint(1, len(args))):
      args[i] = literal.changed(rng, program.kinds[i], args[i], small)
    found.setdefault(synth.source_of(args), tuple(args))
  return [
    args
    for source, args in found.items()
    if len(source) <= settings['longest_args']
  ]


def execute(kept, some_pools):
  """[[(traced result, results of the other seeds)] an input] a program."""
  jobs = [
    Job(program.code, program.entry, synth.source_of(args), trace=True)
    for program, given in kept
    for args in given
  ]
  first, *others = some_pools
  traced = tried(first, jobs)
  again = [
    job._replace(trace=False)
    for job, result in zip(jobs, traced, strict=True)
    if result.verdict == 'ok'
  ]
  seeds = [dict(zip(again, tried(p, again), strict=True)) for p in others]
  results = iter(zip(jobs, traced, strict=True))
  for _, given in kept:
    rows = []
    for _, (job, result) in zip(given, results, strict=False):
      plain = job._replace(trace=False)
      rows.append((result, [seed[plain] for seed in seeds if plain in seed]))
    yield rows


def tried(pool, jobs) -> list:
  """Results; what crashed or took too long is run once more.

  On a busy machine that can be said of any program, and every build must say
  the same.
  """
  results = list(pool.run(jobs))
  odd = [i for i, r in enumerate(results) if r.verdict in ('crash', 'timeout')]
  for i, result in zip(odd, pool.run([jobs[i] for i in odd]), strict=True):
    results[i] = result
  return results


def judged(program, given, results, settings, benchmarks, found) -> list[dict]:
  """The cases of a program that differ and are worth asking about.

  Raises Dropped with the reason where there is none.
  """
  fates, cases, seen = [], [], set()
  outputs = collections.Counter()
  depth = identity.features(program.code)['depth']
  for args, (result, others) in zip(given, results, strict=True):
    reason = fault(result, others, settings)
    output = '' if reason else literals.render(literals.parse(result.value))
    lines = tuple(sorted({e.line for e in result.trace if e.kind == 'line'}))
    source = synth.source_of(args)
    outputs[output] += not reason
    if not reason and filters.is_argument(output, args):
      reason = 'trivial: output is an argument'
    if not reason and benchmarks.has_case(source, output):
      reason = 'benchmark: arguments and output'
    if not reason and (output, lines) in seen:
      reason = 'nothing new'
    events = sum(e.kind == 'line' for e in result.trace)
    hard = filters.difficulty(events, depth)
    if not reason and hard < settings['easiest']:
      reason = 'too easy'
    fates.append(reason or 'kept')
    if reason:
      continue
    seen.add((output, lines))
    if len(cases) == settings['most_cases']:
      continue
    case = {
      'args': source,
      'output': output,
      'type': type(literals.parse(output)).__name__,
      'events': events,
      'difficulty': hard,
      'mutated': args is not given[0],
    }
    case['asks'] = asking.possible(
      program, case, result.trace, settings['chains']
    )
    cases.append(case)
  found.inputs.update(fates)
  if fates and fates[0] != 'kept' and fates[0].startswith('execution'):
    raise Dropped(fates[0])  # Its own arguments are of the right types.
  if len(+outputs) == 1 and outputs.total() > settings['mutants'] // 2:
    raise Dropped('trivial: constant')
  if not cases:
    raise Dropped(collections.Counter(fates).most_common(1)[0][0])
  return cases


def fault(result, others, settings) -> str:
  """Why a run is no case, or ''; RuntimeError where the machinery failed."""
  if 'infra' in (result.verdict, *(r.verdict for r in others)):
    raise RuntimeError(
      'a worker died without an answer, which no program causes; is the '
      'machine out of memory? Try fewer --config.workers.'
    )
  if result.verdict != 'ok':
    return f'execution: {result.verdict}'
  if any(r.verdict != 'ok' or r.strict != result.strict for r in others):
    return 'execution: depends on the hash seed'
  if len(result.trace) > settings['most_events']:
    return 'value: long trace'
  reason = filters.value(result.value, settings)
  return f'value: {reason}' if reason else ''


def backward(ready, pool):
  """Takes the question for its input from cases that a lucky guess solves."""
  jobs = []
  for program, cases in ready:
    outputs = [case['output'] for case in cases]
    arity = len(program.kinds)
    seed = identity.digest(program.code)
    jobs.append(
      Job(*filters.search(program.code, program.entry, outputs, arity, seed))
    )
  for (program, cases), result in zip(ready, tried(pool, jobs), strict=True):
    # A search that hangs or runs out of memory has found too little to say.
    solved = literals.parse(result.value) if result.verdict == 'ok' else None
    for i, case in enumerate(cases):
      if solved is None or i in solved:
        case['asks'] = [x for x in case['asks'] if x != 'input']
    yield program, cases


def row(program, cases) -> dict:
  return {
    'pid': identity.program_hash(program.code),
    'code': program.code,
    'entry': program.entry,
    'method': program.method,
    'level': program.level,
    'features': identity.features(program.code),
    'cases': cases,
  }
