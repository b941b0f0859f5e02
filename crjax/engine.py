"""Continuous batching: slots on the device, the queue on the host.

A request takes a slot when one is free. Its prompt is computed once for all
neighbours in the queue that share it; then every slot gets one token a step, in
a jitted loop of up to `chunk` steps. Between chunks the host hands out what was
sampled, refills slots, and fits the cache to the rows that are alive: fewer
slots as they end, as many columns as the longest needs. It does so one chunk
behind the device, which never waits.

A token depends on (key, question, rollout, position) and on the tokens before
it, not on slots, chunks, neighbours or devices; these move its logits by
rounding alone.
"""

import bisect
import collections
from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import NamedTuple

import jax
from jax.sharding import Mesh
import numpy as np

from crjax import decoding, model
from crjax.sharding import gather, replicate

FEW = 8  # Rows that one refill writes; the first filling writes all slots.
MORE_STOPS = 4  # End tokens that a request may add to those of the engine.


class Knobs(NamedTuple):
  """What a token is drawn from; values at run time, none is compiled in."""

  temperature: float = 1.0  # 0 is greedy
  top_p: float = 1.0  # 1 is off
  top_k: int = 0  # 0 is off
  min_p: float = 0.0  # 0 is off


class Request(NamedTuple):
  """One completion of a prompt."""

  tokens: Sequence[int]  # the prompt, one token or more
  question: int  # int32; with `rollout` and the key it names the noise
  rollout: int = 0
  knobs: Knobs = Knobs()
  least: int = 0  # end tokens are not drawn before so many
  most: int = 128  # new tokens
  stop_ids: Sequence[int] = ()  # beside those of the engine
  ends: Callable | None = None  # new tokens -> how many to keep, None: go on
  expected: float = 0.0  # length hint, see `longest_first`
  tag: object = None  # the caller's own


class Piece(NamedTuple):
  """What a request got since its last piece."""

  request: Request
  tokens: list[int]  # new ids, the end token included
  logp: list[float]  # of the distributions they were drawn from
  finish: str | None  # None, or 'stop', 'length', 'cancelled'


class Completion(NamedTuple):
  """All that a request got; `tokens` has the end token if there was one."""

  request: Request
  tokens: list[int]
  logp: list[float]
  finish: str  # 'stop', 'length' or 'cancelled'


class Engine(NamedTuple):
  """Compiled functions and the sizes they are called with; see `make`."""

  mesh: Mesh
  vocabulary: int
  slots: int
  fewest: int
  chunk: int
  length: int
  window: int
  prompts: int
  ahead: bool
  stop_ids: tuple[int, ...]
  prefill: Callable
  insert: Callable
  enroll: Callable
  advance: Callable
  fresh: Callable
  fit_layer: Callable
  fit_rows: Callable


@dataclasses.dataclass
class Job:
  """A request that has a slot."""

  request: Request
  number: int  # in order of admission
  asked: int = 0  # steps that were dispatched for it
  tokens: list = dataclasses.field(default_factory=list)
  done: bool = False


def make(
  cfg,
  mesh,
  *,
  slots: int,
  length: int,
  chunk: int = 16,
  fewest: int = 1,
  window: int = 128,
  prompts: int = 8,
  stop_ids: Sequence[int] = (),
  ahead: bool = True,
) -> Engine:
  """The compiled functions of `stream`; what is compiled, stays.

  Args:
    cfg: shape of the model, without adapters.
    mesh: the devices; call `stream` under `jax.set_mesh(mesh)`.
    slots: rows at a time, at most.
    length: tokens that a row may have, prompt included.
    chunk: steps between two visits of the host.
    fewest: slots to shrink to as rows end; a program each time they halve.
    window: columns of the smallest cache; 2 programs an octave above.
    prompts: prompts to compute together, where so many wait.
    stop_ids: end tokens of every request.
    ahead: dispatch a chunk before the one before it is read.
  """
  cfg = cfg.base
  return Engine(
    mesh,
    cfg.V,
    slots,
    min(fewest, slots),
    chunk,
    length,
    window,
    prompts,
    ahead,
    tuple(stop_ids),
    prefill=jax.jit(lambda *args: model.prefill(cfg, *args)[1]),
    insert=jax.jit(decoding.insert, donate_argnums=0),
    enroll=jax.jit(decoding.enroll, donate_argnums=0),
    advance=jax.jit(
      functools.partial(decoding.advance, cfg, chunk), donate_argnums=(1, 2)
    ),
    fresh=jax.jit(
      functools.partial(decoding.fresh, cfg, len(stop_ids) + MORE_STOPS),
      static_argnums=(0, 1, 2),
    ),
    fit_layer=jax.jit(decoding.fit_layer, static_argnums=2),
    fit_rows=jax.jit(decoding.fit_rows),
  )


def compiled(engine) -> int:
  """Programs compiled so far; engines share what does not depend on them."""
  return sum(f._cache_size() for f in engine if hasattr(f, '_cache_size'))


def longest_first(requests):
  """A list of requests, the groups of a prompt expected longest in front.

  Started last, a long row would run on alone.
  """
  requests, longest = list(requests), {}
  for request in requests:
    known = longest.setdefault(request.question, 0.0)
    longest[request.question] = max(known, request.expected)
  place = {question: i for i, question in enumerate(longest)}
  rank = lambda r: (-longest[r.question], place[r.question], -r.expected)
  return sorted(requests, key=rank)


def stream(engine, params, requests, *, key, cancelled=None, tally=None):
  """Yields the Pieces of all requests, in an order that they alone decide.

  Args:
    engine: from `make`; the mesh must be set.
    params: the decode copy.
    requests: an iterable; it may yield None for "none waits right now", and
      should then take its time if nothing is running.
    key: a PRNG key, whole on every device.
    cancelled: Request -> whether to give it up, asked once a chunk.
    tally: a Counter that is kept up to date: tokens, steps, slot_steps,
      prefilled (prompt tokens computed), requests.

  Raises:
    ValueError: a request that the engine cannot serve; names the field.
  """
  cancelled = cancelled or (lambda request: False)
  tally = collections.Counter() if tally is None else tally
  source, state, flight = iter(requests), empty(), collections.deque()
  while True:
    taken, more = take(source, engine.slots - len(running(state)))
    for request in taken:
      check(engine, request)
    if taken or running(state):
      state = fit(engine, params, state, taken)
    if taken:
      state = admit(engine, params, state, taken, key, tally)
    busy = any(j.asked < j.request.most for j in running(state))
    if busy:
      state, chunk = dispatch(engine, params, state)
      flight.append((chunk, state['jobs']))
    if flight and not (busy and engine.ahead and len(flight) < 2):
      pieces = harvest(*flight.popleft(), cancelled, tally)
      state['jobs'] = [
        None if j is None or j.done else j for j in state['jobs']
      ]
      yield from pieces
    if not more and not flight and not running(state):
      return


def completions(pieces):
  """The Completions of a stream's Pieces, each as soon as it has ended."""
  open_ones = {}
  for request, tokens, logp, finish in pieces:
    before, logps = open_ones.setdefault(id(request), ([], []))
    before += tokens
    logps += logp
    if finish:
      yield Completion(request, *open_ones.pop(id(request)), finish)


def stop_strings(tok, strings):
  """`Request.ends`: the tokens up to the one that completes a string.

  Judged on the text of whole prefixes, so that no token is cut in two.
  """

  def ends(tokens):
    holds = lambda n: any(s in tok.decode(tokens[:n]) for s in strings)
    if not holds(len(tokens)):
      return None
    return bisect.bisect_left(range(len(tokens) + 1), True, key=holds)

  return ends


def empty():
  """No slots: jobs by slot, the caches, the rows, and prompts at hand."""
  return {'jobs': [], 'cache': None, 'rows': None, 'known': {}, 'admitted': 0}


def running(state) -> list[Job]:
  return [job for job in state['jobs'] if job]


def take(source, free: int):
  """(up to `free` requests, whether the source may have more)."""
  taken = []
  while len(taken) < free:
    try:
      request = next(source)
    except StopIteration:
      return taken, False
    if request is None:
      break
    taken.append(request)
  return taken, True


def check(engine, request):
  """Raises ValueError naming what of a request cannot be served."""
  n, where = len(request.tokens), f'question {request.question}'
  if not n:
    raise ValueError(f'{where}: field "tokens" is empty; give a prompt')
  if strange := [t for t in request.tokens if not 0 <= t < engine.vocabulary]:
    raise ValueError(
      f'{where}: token {strange[0]} is outside the vocabulary, '
      f'0..{engine.vocabulary - 1}'
    )
  if not 0 <= request.least <= request.most or request.most < 1:
    raise ValueError(
      f'{where}: least={request.least}, most={request.most}; it takes '
      '0 <= least <= most and most >= 1'
    )
  if n + request.most > engine.length:
    raise ValueError(
      f'{where}: {n} prompt tokens and most={request.most} new ones exceed '
      f'length={engine.length}; ask for fewer'
    )
  if len(request.stop_ids) > MORE_STOPS:
    raise ValueError(f'{where}: more than {MORE_STOPS} stop_ids')


def bucket(n: int, least: int) -> int:
  """The first of least x 1, 2, 3, 4, 6, 8, 12 ... that is not below n."""
  size = doubled(n, least)
  between = 3 * size // 4
  return between if n <= between and size > 2 * least else size


def doubled(n: int, least: int) -> int:
  """The first of least x 1, 2, 4 ... that is not below n."""
  while least < n:
    least *= 2
  return least


def fit(engine, params, state, taken):
  """The state with the slots and columns that the coming chunk needs.

  Columns shrink where half of them or slots go, for a copy costs about what a
  step does.
  """
  slots, columns = needed(engine, state, taken)
  if state['cache'] is None:
    dtype = params['embed_VD'].dtype
    cache, rows = engine.fresh(slots, columns, dtype)
    return state | {'cache': cache, 'rows': rows, 'jobs': [None] * slots}
  have = state['cache'][0][0].shape[2]
  if slots == len(state['jobs']) and have // 2 < columns <= have:
    return state
  kept = [i for i, job in enumerate(state['jobs']) if job]
  take_B = np.full(slots, -1, np.int32)
  take_B[: len(kept)] = kept
  there_B = replicate(engine.mesh, take_B)
  cache = state['cache']
  for i, kv in enumerate(cache):  # One at a time: the old one goes with it.
    cache[i] = engine.fit_layer(kv, there_B, columns)
  return state | {
    'rows': engine.fit_rows(state['rows'], there_B),
    'jobs': [state['jobs'][i] if i >= 0 else None for i in take_B],
  }


def needed(engine, state, taken):
  """(slots, columns) for the running jobs and the requests taken."""
  jobs = running(state)
  slots = doubled(len(jobs) + len(taken), engine.fewest)
  steps = [(j.request, j.asked) for j in jobs] + [(r, 0) for r in taken]
  longest = max(len(r.tokens) + asked for r, asked in steps)
  # A row that ended is moved on with the others to the end of the chunk.
  columns = min(longest, engine.length) + engine.chunk
  return min(slots, engine.slots), bucket(columns, engine.window)


def admit(engine, params, state, taken, key, tally):
  """The state in which each request taken has a slot and its prompt's cache."""
  free = [i for i, job in enumerate(state['jobs']) if not job][: len(taken)]
  jobs = list(state['jobs'])
  for n, (slot, request) in enumerate(zip(free, taken, strict=True)):
    jobs[slot] = Job(request, state['admitted'] + n)
  known = compute_prompts(engine, params, state['known'], taken, tally)
  cache = state['cache']
  for prefix, source, slots in by_prefix(known, taken, free):
    size = FEW if len(source) <= FEW < len(jobs) else len(jobs)
    pad = size - len(source)
    source_I = np.array(source + [0] * pad, np.int32)
    slot_I = np.array(slots + [len(jobs)] * pad, np.int32)
    cache = engine.insert(cache, prefix, *put(engine, source_I, slot_I))
  tally['requests'] += len(taken)
  return {
    'jobs': jobs,
    'cache': cache,
    'rows': enroll_all(engine, state['rows'], jobs, free, key),
    'known': {k: v for k, v in known.items() if k == tuple(taken[-1].tokens)},
    'admitted': state['admitted'] + len(taken),
  }


def put(engine, *arrays):
  return [replicate(engine.mesh, x) for x in arrays]


def compute_prompts(engine, params, known, taken, tally):
  """`known`, and the caches of those prompts taken that it lacks.

  A prompt's entry is (caches of a batch of prompts, its row). The last token
  is left to the first step, so one token alone needs no entry.
  """
  prompts = dict.fromkeys(tuple(r.tokens) for r in taken if len(r.tokens) > 1)
  lacking = [p for p in prompts if p not in known]
  known = dict(known)
  while lacking:
    size = engine.prompts if len(lacking) > 1 else 1
    some, lacking = lacking[:size], lacking[size:]
    columns = bucket(max(map(len, some)), engine.window)
    tokens_BP = np.zeros((size, columns), np.int32)
    for row, prompt in zip(tokens_BP, some, strict=False):
      row[: len(prompt)] = prompt
    prefix = engine.prefill(params, *put(engine, tokens_BP))
    known |= {prompt: (prefix, i) for i, prompt in enumerate(some)}
    tally['prefilled'] += sum(map(len, some))
  return known


def by_prefix(known, taken, free):
  """Triples (caches, rows in them, slots for them)."""
  found = {}
  for request, slot in zip(taken, free, strict=True):
    if len(request.tokens) > 1:
      prefix, row = known[tuple(request.tokens)]
      _, rows, slots = found.setdefault(id(prefix), (prefix, [], []))
      rows.append(row)
      slots.append(slot)
  return found.values()


def enroll_all(engine, rows, jobs, slots, key):
  """The rows of the device with new ones at `slots`."""
  whole = np.zeros((len(decoding.INTEGERS), len(jobs)), np.int32)
  width = rows['stop_BE'].shape[1]
  stop_BE = np.full((len(jobs), width), -1, np.int32)
  real = np.zeros((len(decoding.REALS), len(jobs)), np.float32)
  for slot in slots:
    r = jobs[slot].request
    last, n = r.tokens[-1], len(r.tokens)
    whole[:, slot] = (
      last,
      n - 1,
      r.least,
      r.most,
      r.knobs.top_k,
      r.question,
      r.rollout,
      1,
    )
    real[:, slot] = r.knobs.temperature, r.knobs.top_p, r.knobs.min_p
    stops = (*engine.stop_ids, *r.stop_ids)
    stop_BE[slot, : len(stops)] = stops
  return engine.enroll(rows, *put(engine, whole, real, stop_BE), key)


def dispatch(engine, params, state):
  """(state, Chunk) of the next steps, which may still be running."""
  keep_B = np.array([job is not None for job in state['jobs']])
  cache, rows, chunk = engine.advance(
    params, state['cache'], state['rows'], *put(engine, keep_B)
  )
  for job in running(state):
    job.asked += engine.chunk
  return state | {'cache': cache, 'rows': rows}, chunk


def harvest(chunk, jobs, cancelled, tally):
  """The Pieces of a chunk, in order of admission; marks jobs that are done."""
  chunk, pieces = gather(chunk), []
  tally['steps'] += int(chunk.steps)
  tally['slot_steps'] += int(chunk.steps) * len(jobs)
  for slot, job in enumerate(jobs):
    if job is None or job.done:
      continue
    n = int(chunk.count_B[slot])
    new = chunk.tokens_BC[slot, :n].tolist()
    finish = None
    if not chunk.live_B[slot]:
      finish = 'stop' if chunk.stopped_B[slot] else 'length'
    before, kept = len(job.tokens), None
    job.tokens += new
    if job.request.ends:
      kept = job.request.ends(job.tokens)
    if kept is not None:
      new, finish = new[: max(kept - before, 0)], 'stop'
    elif finish is None and cancelled(job.request):
      finish = 'cancelled'
    job.done = finish is not None
    tally['tokens'] += len(new)
    if new or finish:
      logp = chunk.logp_BC[slot, : len(new)].tolist()
      pieces.append((job.number, Piece(job.request, new, logp, finish)))
  return [piece for _, piece in sorted(pieces, key=lambda p: p[0])]
