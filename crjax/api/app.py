"""The HTTP side: routes, keys, bodies, streams, and clients that leave."""

import asyncio
import hmac

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from crjax.api import answers, asks
from crjax.api.completion import Completion
from crjax.api.served import Refused, check_model

BODY = 8 << 20  # bytes
BODY_S = 60  # for a body to arrive
RETRY_S = 1


def make(served, desk, key=None) -> Starlette:
  """The application; with `key`, all under /v1 asks for it.

  `desk` takes requests to the engine: see serve.Desk.
  """

  def guarded(answer):
    async def endpoint(request):
      given = request.headers.get('authorization', '')
      if key and not hmac.compare_digest(
        given.encode(), f'Bearer {key}'.encode()
      ):
        raise Refused(
          'this server needs its key, as Authorization: Bearer KEY',
          status=401,
          code='invalid_api_key',
        )
      return await answer(request)

    return endpoint

  async def models(request):
    return reply({'object': 'list', 'data': [model(served)]})

  async def one_model(request):
    check_model(served, request.path_params['name'])
    return reply(model(served))

  async def health(request):
    counts = desk.counts()
    return reply(counts, 200 if counts['status'] == 'ok' else 503)

  return Starlette(
    routes=[
      Route('/health', health),
      Route('/v1/models', guarded(models)),
      Route('/v1/models/{name:path}', guarded(one_model)),
      *(
        Route(path, guarded(completer(served, desk, chat)), methods=['POST'])
        for path, chat in (
          ('/v1/chat/completions', True),
          ('/v1/completions', False),
        )
      ),
    ],
    exception_handlers={
      Refused: refused,
      HTTPException: not_found,
      ClientDisconnect: left,
      Exception: failed,
    },
  )


def completer(served, desk, chat: bool):
  """The endpoint of /v1/chat/completions or /v1/completions."""

  async def complete(request):
    raw = await body(request)
    ask = await asyncio.to_thread(asks.read, served, raw, chat)
    count = len(ask.prompts) * ask.n
    completions = [
      Completion(served.tok, ask.stops, ask.least) for _ in range(count)
    ]
    work = desk.submit(ask)
    head = answers.head(served, ask)
    if ask.stream:
      events = stream(desk, work, head, ask, completions)
      return closing(
        StreamingResponse(
          events,
          media_type='text/event-stream',
          headers={'cache-control': 'no-cache'},
        ),
        lambda: desk.drop(work),
      )
    try:
      if not await unless_gone(request, finish(desk, work, completions)):
        return Response(status_code=499)  # Nobody reads it.
    finally:
      desk.drop(work)
    return reply(answers.whole(head, ask, completions))

  return complete


async def grow(desk, work, completions):
  """Yields the index of each completion that grew, until all are finished."""
  left = set(range(len(completions)))
  while left:
    index, ids, logps, finish = await desk.piece(work)
    if index not in left:  # On its way when a stop string was found.
      continue
    completions[index].add(ids, logps, finish)
    if completions[index].finish:
      left.remove(index)
      if not finish:
        desk.drop(work, index)
    yield index


async def finish(desk, work, completions) -> bool:
  async for _ in grow(desk, work, completions):
    pass
  return True


async def stream(desk, work, head, ask, completions):
  """Server-sent events; an error after the first of them is one more."""
  dumps = lambda answer: answers.server_event(answers.dumps(answer))
  try:
    if ask.chat:
      for index in range(len(completions)):
        yield dumps(answers.opening(head, ask, index))
    async for index in grow(desk, work, completions):
      new = answers.event(head, ask, index, completions[index])
      if new is not None:
        yield dumps(new)
    if ask.usage:
      yield dumps(answers.closing(head, ask, completions))
    yield answers.server_event(b'[DONE]')
  except Refused as error:
    yield dumps(answers.error(str(error), 'server_error'))


async def unless_gone(request, work):
  """What `work` returns, or None if the client leaves before."""

  async def gone():
    while (await request.receive())['type'] != 'http.disconnect':
      pass

  tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
  try:
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    return tasks[0].result() if tasks[0].done() else None
  finally:
    for task in tasks:
      task.cancel()


def closing(response, done):
  """A response after which `done` is called, however it ends."""

  async def respond(scope, receive, send):
    try:
      await response(scope, receive, send)
    finally:
      done()

  return respond


async def body(request) -> bytes:
  """The body. A client reads no answer while it sends: one that is too long is
  read to its end, too, and not kept.
  """
  parts, size = [], 0
  try:
    async with asyncio.timeout(BODY_S):
      async for part in request.stream():
        size += len(part)
        if size <= BODY:
          parts.append(part)
  except TimeoutError as error:
    raise Refused(
      f'the body did not arrive within {BODY_S} s', status=408
    ) from error
  if size > BODY:
    raise Refused(f'the body has {size} bytes, more than {BODY}', status=413)
  return b''.join(parts)


def model(served) -> dict:
  return {
    'id': served.name,
    'object': 'model',
    'created': 0,
    'owned_by': 'crjax',
    'max_model_len': served.length,
  }


def reply(answer, status=200, headers=None) -> Response:
  return Response(
    answers.dumps(answer), status, headers, media_type='application/json'
  )


async def refused(request, error):
  again = {'retry-after': str(RETRY_S)} if error.status == 429 else None
  kind = {429: 'rate_limit_error'}.get(
    error.status,
    'server_error' if error.status >= 500 else 'invalid_request_error',
  )
  said = answers.error(str(error), kind, error.param, error.code)
  return reply(said, error.status, again)


async def not_found(request, error):
  path = f'{request.method} {request.url.path}'
  said = answers.error(f'{path}: {error.detail}')
  return reply(said, error.status_code, error.headers)


async def left(request, error):
  return Response(status_code=499)  # Nobody reads it.


async def failed(request, error):
  return reply(answers.error('the server failed', 'server_error'), 500)
