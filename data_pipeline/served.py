"""What models are asked for during a build, part by part, and what it cost.

A part is [head, *rows]; the head has the keys of the answers in it with their
tokens, so that parts of several machines add up and none is counted twice. The
answers themselves are in `<out>.answers`, which a build leaves behind.
"""

import asyncio
import collections
import contextlib
import pathlib
import sys
import time

from crjax.execution import Pool
from data_pipeline import distill, propose, store
from data_pipeline.built import ROLES
from data_pipeline.chat import Chat, Stopped, without_secrets
from data_pipeline.dataset import is_trained
from data_pipeline.journal import Journal

SAMPLING = ('model', 'temperature', 'top_p', 'max_tokens')
TELL_SECONDS = 10.0
MILLION = 1e6  # Prices are for so many tokens.


def roles(c) -> dict:
  """{role: its config} of those that have a server.

  Exits where one of them cannot be asked.
  """
  found = {r: c[r] for r in ROLES if r in c and c[r].url}
  for name, role in found.items():
    if not role.url.startswith(('http://', 'https://')):
      sys.exit(f'--config.{name}.url={role.url}: give http://HOST:PORT/v1')
    if not role.model:
      sys.exit(f'--config.{name}.url is set: give --config.{name}.model too')
  return found


def programs(c, shard, target, numbers):
  """Parts of answers that hold a program each."""

  def requests(number):
    first = number * c.chunk
    last = min(first + c.chunk, c.candidates)
    return [(propose.messages(c.seed, i), i) for i in range(first, last)]

  def finish(_, answers):
    return {}, [{'text': a.text, 'finish': a.finish} for a in answers]

  make('generator', c, shard, target, numbers, requests, finish)


def passes(c, shard, source, target, numbers):
  """Parts of rows with `passed`: how many of the policy's samples are right.

  None for rows of splits without a band.
  """
  k, bands = c.policy.samples, c.policy.keep

  def requests(number):
    some = [r for r in rows_of(source, number) if r['split'] in bands]
    return [(r['prompt'], sample) for r in some for sample in range(k)]

  def finish(number, answers):
    rows = rows_of(source, number)
    some = [r for r in rows if r['split'] in bands]
    texts = [
      distill.spoken(a.text) if a.finish == 'stop' else '' for a in answers
    ]
    worth = distill.judged(some, texts, k, pool)
    rates = iter((worth == 1).sum(1).tolist())
    rate = lambda row: next(rates) if row['split'] in bands else None
    return {}, [row | {'passed': rate(row)} for row in rows]

  with judge(c, numbers) as pool:
    make('policy', c, shard, target, numbers, requests, finish)


def chains(c, shard, source, target, numbers):
  """Parts of rows; those that are trained on have the teacher's chains."""
  n, settings = c.teacher.samples, c.teacher.to_dict()

  def requests(number):
    some = [r for r in rows_of(source, number) if is_trained(r['split'])]
    asked = [distill.messages(r['prompt']) for r in some]
    return [(messages, sample) for messages in asked for sample in range(n)]

  def finish(number, answers):
    rows = rows_of(source, number)
    return distill.taught(rows, answers, pool, settings)

  with judge(c, numbers) as pool:
    make('teacher', c, shard, target, numbers, requests, finish)


def judge(c, numbers):
  """The pool in which answers are judged; none where there is nothing to do."""
  if not numbers:
    return contextlib.nullcontext()
  settings = {'cpu_seconds': c.cpu_seconds, 'min_level': c.sandbox_min_level}
  return Pool(c.workers, **settings)


def make(name, c, shard, target, numbers, requests, finish):
  """Makes parts as the answers to their questions come; exits if it cannot.

  Args:
    requests: part number -> [(messages, sample)].
    finish: (part number, their Answers) -> (head, rows).
  """
  if not numbers:
    return
  out = pathlib.Path(c.out)
  directory = out.with_name(f'{out.name}.answers') / name
  with Journal(directory, shard) as journal:
    try:
      asyncio.run(_make(name, c, journal, target, numbers, requests, finish))
    except Stopped as error:
      sys.exit(
        f'data: {name} at {without_secrets(c[name].url)}: {error}.\n'
        f'data: {len(journal.places):,} answers are in {directory} and stay; '
        'the same command goes on from there.'
      )


async def _make(name, c, journal, target, numbers, requests, finish):
  role = c[name]
  chat = Chat(
    journal,
    url=role.url,
    sampling={k: role[k] for k in SAMPLING},
    key=role.key,
    **c.client,
  )
  sizes = [len(requests(number)) for number in numbers]
  # Parts that are open together: enough to keep the server busy.
  room = asyncio.Semaphore(2 + c.client.concurrency // max(1, *sizes))
  turn = asyncio.Lock()  # Programs run for one part at a time.

  async def one(number):
    async with room:
      try:
        answers = await asyncio.gather(
          *(chat.ask(*question) for question in requests(number))
        )
        async with turn:
          head, rows = await asyncio.to_thread(finish, number, answers)
        head['answers'] = {a.key: a.tokens for a in answers}
        head['endpoints'] = sorted({a.endpoint for a in answers})
        store.write(store.part(target, number), [head, *rows])
      except Exception as error:
        chat.stop(str(error))  # The others need not go on.
        raise

  teller = asyncio.create_task(tell(name, role, chat, sum(sizes)))
  try:
    done = await asyncio.gather(*map(one, numbers), return_exceptions=True)
  finally:
    await chat.close()
    teller.cancel()
    print(state(name, role, chat, sum(sizes), chat.began), flush=True)
  errors = [x for x in done if isinstance(x, BaseException)]
  for error in sorted(errors, key=lambda x: isinstance(x, Stopped)):
    raise error


async def tell(name, role, chat, total):
  while True:
    await asyncio.sleep(TELL_SECONDS)
    print(state(name, role, chat, total, chat.began), flush=True)


def state(name, role, chat, total, began) -> str:
  """One line: how far, how fast, how long, at what cost, what went wrong."""
  seconds = max(time.monotonic() - began, 1e-3)
  new, kept, spent = (chat.counts[k] for k in ('answers', 'kept', 'out'))
  left = (total - new - kept) * seconds / max(new, 1)
  price = dollars(role, chat.counts['in'], spent)
  text = (
    f'data: {name}: {new + kept:,} of {total:,} answers'
    + f' ({kept:,} were there)' * bool(kept)
    + f', {new / seconds:.1f} requests/s, {spent / seconds:,.0f} tokens/s, '
    + f'{seconds:.0f} s, about {left:.0f} s left, ${price:.2f} so far'
  )
  failed = ', '.join(f'{n} x {why}' for why, n in chat.failures.most_common())
  return text + f'; tried again: {failed}' * bool(failed)


def dollars(role, tokens_in, tokens_out) -> float:
  return (tokens_in * role.price_in + tokens_out * role.price_out) / MILLION


def rows_of(directory, number) -> list:
  """The rows of a part, without its head if it has one."""
  rows = store.read(store.part(directory, number))
  return rows[1:] if rows and 'answers' in rows[0] else rows


def every(directory, count) -> list:
  return [row for i in range(count) for row in rows_of(directory, i)]


def heads(directory, count) -> list[dict]:
  return [store.first(store.part(directory, i)) for i in range(count)]


def summary(c, said, found, rows) -> dict:
  """The summary of a build with what models did and cost.

  Args:
    said: {role: (directory, number of parts)} of the roles that were asked.
    found: of `card.funnel`.
  """
  if not said:
    return found
  known = {role: heads(*where) for role, where in said.items()}
  found = found | {'models': [spent(r, c[r], x) for r, x in known.items()]}
  used = len({row['pid'] for row in rows})
  gone = {'no row is left': found['programs'] - used}
  found['dropped_programs'] = found['dropped_programs'] | gone
  found |= {'programs': used, 'rows': len(rows)}
  for name in ('samples', 'chains') if 'teacher' in said else ():
    counts = (collections.Counter(h[name]) for h in known['teacher'])
    found[name] = dict(sorted(sum(counts, collections.Counter()).items()))
  return found


def spent(role, config, some_heads) -> dict:
  """What a role took; an answer that several parts have counts once."""
  answers, endpoints = {}, set()
  for head in some_heads:
    answers |= head['answers']
    endpoints |= set(head['endpoints'])
  tokens_in, tokens_out = map(sum, zip((0, 0), *answers.values(), strict=True))
  return {
    'role': role,
    'model': config.model,
    'endpoints': sorted(endpoints),
    'answers': len(answers),
    'tokens_in': tokens_in,
    'tokens_out': tokens_out,
    'dollars': round(dollars(config, tokens_in, tokens_out), 4),
  }


def rejected(said) -> dict:
  """{why: samples of the teacher that were not taken}."""
  examples = {}
  for head in heads(*said['teacher']) if 'teacher' in said else ():
    for reason, some in head['examples'].items():
      examples.setdefault(f'sample: {reason}', []).extend(some)
  return examples
