"""Group-relative policy optimization with execution rewards, read from `run`.

Tokens that were sampled are the tokens that are trained on: text is decoded
for rewards and logs only, and never encoded again.
"""

from concurrent import futures
import time

import jax
import numpy as np

from crjax import (
  advantages,
  branches,
  data,
  engine,
  rewards,
  sampling,
  tokenizer,
  watch,
)
from crjax.sharding import all_processes, gather


def run(
  state, prompts, *, collect, advantage, batch, update, log, due, save, steps
):
  """Trains to `steps` from wherever `state` and `prompts` stand.

  Args:
    state: see optim.py; donated, step by step.
    prompts: iterator of `data.Prompts`; its position belongs to the state.
    collect: (state, prompts) -> (Prompts, Rollout on the host, rewards_QR,
      rows of samples), see `make_collect`.
    advantage: (Prompts, Rollout, rewards_QR) -> adv_QR, see `make_advantage`.
    batch: (Prompts, Rollout, rewards_QR, adv_QR, rows) -> Batch.
    update: (state, Batch on the host) -> (state, metrics on the device).
    log: called with (step, metrics, Batch, tokens sampled, rows of samples); it
      may end the run.
    due: step -> whether its state is kept, asked once a step.
    save: called with (step, state, prompts) where it is.
    steps: total batches of the run.
  """
  start = int(gather(state['step']))
  if due(start):
    save(start, state, prompts)
  for step in range(start + 1, steps + 1):
    questions, rolled, rewards_QR, rows = collect(state, prompts)
    adv_QR = advantage(questions, rolled, rewards_QR)
    inputs = batch(questions, rolled, rewards_QR, adv_QR, rows)
    state, metrics = update(state, inputs)
    host = watch.summarize(rewards_QR, adv_QR, rolled, rows)
    watch.describe(rows, adv_QR, rolled)
    metrics = gather(metrics) | host
    log(step, metrics, inputs, tokens=int(rolled.mask_BT.sum()), rows=rows)
    if due(step):
      save(step, state, prompts)
  return state


def timed(collect, log, clock):
  """(collect, log) of `run` that log a step's seconds by phase, `time/...`.

  `clock` is a Counter to which `make_judge` adds. What sampling takes is what
  rewards do not; the update has all from there to the log.
  """
  ended = [0.0]

  def timed_collect(state, prompts):
    clock.clear()
    began = time.perf_counter()
    found = collect(state, prompts)
    ended[0] = time.perf_counter()
    clock['time/rollout_s'] = ended[0] - began - clock['time/rewards_s']
    return found

  def timed_log(step, metrics, *args, **kwargs):
    clock['time/update_s'] = time.perf_counter() - ended[0]
    log(step, metrics | clock, *args, **kwargs)

  return timed_collect, timed_log


def make_collect(rollout, judge, *, groups: int, rounds: int, observe):
  """(state, prompts) -> what was asked, sampled and judged for one update.

  Asks, a batch of questions a round, until `groups` groups have rewards that
  differ, at most `rounds` times (dynamic sampling, DAPO).

  Args:
    rollout: (state, Prompts) -> iterator of Completions.
    judge: (tasks, Completions) -> (Rollout on the host, rewards_QR, rows).
    observe: called with (ids_Q, rewards_QR, length_QR) of every round.
  """

  def one_round(state, prompts):
    questions = next(prompts)
    completions = rollout(state, questions)
    rolled, rewards_QR, rows = judge(questions.tasks, completions)
    length_QR = rolled.mask_BT.sum(1).reshape(rewards_QR.shape)
    observe(questions.ids_Q, rewards_QR, length_QR)
    return questions, rolled, rewards_QR, rows

  def collect(state, prompts):
    parts, found = [], 0
    while not parts or (found < groups and len(parts) < rounds):
      parts.append(one_round(state, prompts))
      found += advantages.varied(parts[-1][2]).sum()
    return join(parts)

  return collect


def join(parts):
  """(Prompts, Rollout, rewards_QR, rows) of several rounds as of one."""
  asked, rolled, rewards, rows = zip(*parts, strict=True)
  first = 0
  for rewards_QR, some in zip(rewards, rows, strict=True):
    for row in some:
      row['row'] += first
    first += rewards_QR.size
  *arrays, tasks = zip(*asked, strict=True)
  tasks = [task for some in tasks for task in some]
  return (
    data.Prompts(*map(np.concatenate, arrays), tasks),
    sampling.Rollout(*map(np.concatenate, zip(*rolled, strict=True))),
    np.concatenate(rewards),
    [row for some in rows for row in some],
  )


def make_rollout(
  cfg,
  mesh,
  *,
  frozen,
  rollouts: int,
  length: int,
  steps: int,
  stop_ids,
  dtype,
  temperature: float,
  slots: int,
  chunk: int,
  expected,
):
  """(state, Prompts) -> iterator of Completions, each as soon as it has ended.

  Rollout r of row q has tag q * R + r; its noise is named by the question's id,
  the step and r. `length`: tokens of a prompt at most; `steps` those of a
  completion. `slots`, `chunk`: see engine.py. `frozen`: see
  `policy.make_update`. `expected`: ids_Q -> tokens of a completion of each;
  what is expected longest starts first.
  """
  decode_copy = sampling.make_decode_copy(cfg, mesh, dtype)
  made = engine.make(
    cfg,
    mesh,
    slots=slots,
    fewest=max(slots // 8, 1),
    length=length + steps,
    chunk=chunk,
    stop_ids=stop_ids,
  )
  step_key = jax.jit(
    lambda key, step: jax.random.fold_in(jax.random.wrap_key_data(key), step)
  )
  knobs = engine.Knobs(temperature)

  def rollout(state, questions):
    params = decode_copy(state['params'], frozen)
    key = step_key(state['key'], state['step'])
    requests = [
      engine.Request(
        tokens_P[mask_P].tolist(),
        int(question),
        r,
        knobs,
        most=steps,
        expected=hint,
        tag=q * rollouts + r,
      )
      for q, (tokens_P, mask_P, question, hint) in enumerate(
        zip(*questions[:3], expected(questions.ids_Q), strict=True)
      )
      for r in range(rollouts)
    ]
    requests = engine.longest_first(requests)
    pieces = engine.stream(made, params, requests, key=key)
    yield from engine.completions(pieces)

  return rollout


def make_judge(tok, pool, *, rollouts: int, steps: int, pad_id: int, clock):
  """(tasks, Completions) -> (Rollout on the host, rewards_QR, rows).

  Completions are judged while others are sampled, each process its share; all
  processes see all `rows`, which describe completions for the sample table.
  `clock`: a Counter; to `time/rewards_s` is added what sampling did not hide,
  to `time/rewards_busy_s` all that judging took.
  """

  def timed(*args):
    began = time.perf_counter()
    rows = score(*args)
    clock['time/rewards_busy_s'] += time.perf_counter() - began
    return rows

  def judge(tasks, completions):
    tasks_B = [task for task in tasks for _ in range(rollouts)]
    rolled = no_rollout(len(tasks_B), steps, pad_id)
    rows, work, waiting = [], None, []
    with futures.ThreadPoolExecutor(1) as thread:
      for done in completions:
        write(rolled, done)
        if done.request.tag % jax.process_count() == jax.process_index():
          waiting.append(done)
        if waiting and (work is None or work.done()):
          rows += work.result() if work else []
          work = thread.submit(timed, tasks_B, waiting, tok, pool)
          waiting = []
      began = time.perf_counter()
      rows += work.result() if work else []
      rows += timed(tasks_B, waiting, tok, pool)
      clock['time/rewards_s'] += time.perf_counter() - began
    rows = sorted(all_processes(rows), key=lambda row: row['row'])
    rewards_B = np.array([row['reward'] for row in rows], np.float32)
    return rolled, rewards_B.reshape(-1, rollouts), rows

  return judge


def no_rollout(B: int, T: int, pad_id: int):
  """A Rollout of B empty completions, to be filled by `write`."""
  return sampling.Rollout(
    np.full((B, T), pad_id, np.int32),
    np.zeros((B, T), np.float32),
    np.zeros((B, T), bool),
    np.zeros(B, bool),
  )


def write(rolled, done):
  """Writes a Completion to its row, its tag."""
  b, n = done.request.tag, len(done.tokens)
  rolled.tokens_BT[b, :n] = done.tokens
  rolled.logp_BT[b, :n] = done.logp
  rolled.mask_BT[b, :n] = True
  rolled.stopped_B[b] = done.finish == 'stop'


def score(tasks_B, completions, tok, pool):
  """A dict for each Completion: row, reward, text, its task and verdict."""
  tokens, rows_B = (
    [c.tokens for c in completions],
    [c.request.tag for c in completions],
  )
  cut = [c.finish == 'length' for c in completions]
  length_B = [len(t) - (not c) for t, c in zip(tokens, cut, strict=True)]
  texts = tokenizer.decode(tok, tokens, length_B)  # Without the end token.
  some = [tasks_B[b] for b in rows_B]
  rewards_B, infos = rewards.score(some, texts, cut, pool)
  return [
    {'row': b, 'reward': float(reward), 'text': text} | task | info
    for b, reward, text, task, info in zip(
      rows_B, rewards_B, texts, some, infos, strict=True
    )
  ]


def make_advantage(
  name: str, *, eps: float, limit: int, overlong: int, kl_coef=0.0, penalty=None
):
  """(Prompts, Rollout, rewards_QR) -> adv_QR of `advantages.ADVANTAGES[name]`.

  `overlong`: the last tokens before the `limit` that cost reward, see
  `advantages.soft_overlong`. `penalty`: what `kl_coef` times costs reward, see
  `policy.make_penalty`; None for nothing. Canaries have no advantage.
  """

  def advantage(questions, rolled, rewards_QR):
    length_QR = rolled.mask_BT.sum(1).reshape(rewards_QR.shape)
    shaped_QR = advantages.soft_overlong(
      rewards_QR, length_QR, limit=limit, buffer=overlong
    )
    if penalty is not None:
      shaped_QR = shaped_QR - kl_coef * penalty(questions, rolled)
    probe_Q = [task['id'].startswith(data.CANARY) for task in questions.tasks]
    shaped_QR = np.where(np.array(probe_Q)[:, None], np.nan, shaped_QR)
    return advantages.ADVANTAGES[name](shaped_QR, eps)

  return advantage


def make_lines(tok, *, rollouts: int, coef: float):
  """(Rollout, rows) -> extra_BT, or None if `coef` is 0.

  What a token of an answer's line `Qk: ...` has beside the advantage of its
  completion: `coef` times `advantages.intra` of that line. An answer out of
  form, or cut off, has no right line.
  """

  def lines(rolled, rows):
    if not coef:
      return None
    extra_BT = np.zeros(rolled.mask_BT.shape, np.float32)
    for first in range(0, len(rows), rollouts):
      group = rows[first : first + rollouts]
      right_RS = [
        np.array(row.get('hits', ()), float)
        * (row['format_ok'] and rolled.stopped_B[row['row']])
        for row in group
      ]
      for row, adv_S in zip(group, advantages.intra(right_RS), strict=True):
        if not adv_S.any():
          continue
        b, spans = row['row'], rewards.line_spans(row['text'])
        tokens = rolled.tokens_BT[b][rolled.mask_BT[b]].tolist()
        found = tokenizer.token_spans(tok, tokens, spans.values())
        for k, (start, stop) in zip(spans, found, strict=True):
          if k <= len(adv_S):
            extra_BT[b, start:stop] = coef * adv_S[k - 1]
    return extra_BT

  return lines


def make_batch(
  questions,
  rolled,
  rewards_QR,
  adv_QR,
  extra_BT=None,
  *,
  groups: int,
  minibatches: int,
  length: int,
  rows: int,
  aggregation: str,
  limit: int,
  everything: bool,
  mask_truncated: bool,
) -> branches.Batch:
  """The update's input from prompts, their rollouts and advantages; NumPy.

  Of the groups that were sampled, `groups` are kept: in dispatch order those
  with an advantage, then, where they do not suffice, the others (dynamic
  sampling, DAPO). Order of completion plays no part, so short answers win
  nothing. What was not judged is left out; what has no advantage counts in the
  mean and, unless `everything` is asked for, is not computed.

  Args:
    questions: `data.Prompts`; rolled: a Rollout on the host.
    rewards_QR: NaN where not judged; adv_QR: see advantages.py.
    extra_BT: what single tokens have beside it, see `make_lines`.
    minibatches: optimizer updates; each has its own mean.
    length: tokens of a row; `rows`: of a slice, see `branches.pack`.
    aggregation: a key of `branches.AGGREGATIONS`.
    limit: the most tokens a completion may have.
    everything: there is a gradient without advantage, of KL or entropy.
    mask_truncated: completions without an end are left out, too.
  """
  Q, R = adv_QR.shape
  out_QR = np.isnan(rewards_QR)
  if mask_truncated:
    out_QR |= ~rolled.stopped_B.reshape(Q, R)
  length_QR = np.where(out_QR, 0, rolled.mask_BT.sum(1).reshape(Q, R))
  if extra_BT is None:
    extra_BT = np.zeros(rolled.mask_BT.shape, np.float32)
  signal_QR = (adv_QR != 0) | (extra_BT != 0).any(1).reshape(Q, R)
  used_QR = (length_QR > 0) & (everything | signal_QR)

  def completions(kept):
    weight_QR = branches.AGGREGATIONS[aggregation](length_QR[kept], limit)
    for q, weight_R in zip(kept, weight_QR, strict=True):
      prompt = questions.tokens_QP[q][questions.mask_QP[q]]
      for r in np.flatnonzero(used_QR[q]):
        n, b = length_QR[q, r], q * R + r
        yield branches.Completion(
          question=q,
          prompt=prompt,
          tokens=rolled.tokens_BT[b, :n],
          logp=rolled.logp_BT[b, :n],
          adv=adv_QR[q, r] + extra_BT[b, :n],
          weight=weight_R[r],
        )

  parts = np.split(keep(signal_QR, groups), minibatches)
  updates = [list(completions(kept)) for kept in parts]
  return branches.pack(updates, length=length, rows=rows)


def keep(signal_QR, groups: int):
  """Indices of the groups to train on, ascending; see `make_batch`."""
  silent_Q = ~(signal_QR != 0).any(1)
  return np.sort(np.argsort(silent_Q, kind='stable')[:groups])
