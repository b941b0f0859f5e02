"""Requests of OpenAI's chat and completions API, read and judged.

Beside its fields: `top_k`, `min_p`, `min_tokens`, `chat_template_kwargs` and
`return_token_ids`, named as vLLM does. A field that is unknown, or asks for
what is not there, is an error and never ignored.
"""

import json
from typing import NamedTuple

from crjax.api import prompts
from crjax.api.served import Refused, Served, check_model, short, switch

NUMBERS = {  # (type, lowest, highest, default)
  'n': (int, 1, 128, 1),
  'max_tokens': (int, 1, 2**31 - 1, None),
  'min_tokens': (int, 0, 2**31 - 1, 0),
  'temperature': (float, 0, 2, 1.0),
  'top_p': (float, 0, 1, 1.0),
  'top_k': (int, -1, 2**31 - 1, 0),
  'min_p': (float, 0, 1, 0.0),
  'seed': (int, -(2**63), 2**63 - 1, None),
}
SWITCHES = ('stream', 'return_token_ids')
# The values of which mean what happens anyway.
ONLY = {
  'frequency_penalty': (0,),
  'presence_penalty': (0,),
  'repetition_penalty': (1,),
  'logit_bias': ({},),
}
ONLY_CHAT = ONLY | {
  'response_format': ({'type': 'text'},),
  'modalities': (['text'],),
  'tools': ([],),
  'tool_choice': ('none', 'auto'),
}
ONLY_TEXT = ONLY | {'echo': (False,), 'suffix': ('',)}
# Books that the provider keeps: no answer depends on them.
IGNORED = {'user', 'metadata', 'store', 'service_tier', 'safety_identifier'}
COMMON = {'model', 'stop', 'stream_options', 'logprobs', *IGNORED, *SWITCHES}
CHAT = COMMON | {
  'messages',
  'max_completion_tokens',
  'top_logprobs',
  'chat_template_kwargs',
  *NUMBERS,
  *ONLY_CHAT,
}
TEXT = COMMON | {'prompt', 'best_of', *NUMBERS, *ONLY_TEXT}
STOPS = 16
TEXT_TOKENS = 16  # of /v1/completions without max_tokens, as OpenAI's


class Ask(NamedTuple):
  """A request that was understood."""

  chat: bool
  prompts: list[list[int]]
  n: int  # choices a prompt
  least: int
  most: list[int]  # tokens, a prompt
  knobs: tuple  # temperature, top_p, top_k, min_p
  seed: int | None
  stops: tuple[str, ...]
  logprobs: bool
  stream: bool
  usage: bool  # as the last event of a stream
  ids: bool  # also as token ids


def read(served: Served, raw: bytes, chat: bool) -> Ask:
  """Raises Refused naming the field, what was found and what is possible."""
  body = _fields(served, parse(raw), chat)
  number = {name: _number(body, name) for name in NUMBERS}
  n, least = number['n'], number['min_tokens']
  of = prompts.of_chat if chat else prompts.of_text
  found = of(served, body)
  most = _most(served, body, found, chat)
  if len(found) * n > served.choices:
    raise Refused(
      f'{len(found)} prompts x n={n} are more than the {served.choices} '
      'choices that one request may have',
      'n',
    )
  if least > min(most):
    raise Refused(f'min_tokens is above the most, {min(most)}', 'min_tokens')
  top_k = max(number['top_k'], 0)  # -1 is off, too, in vLLM.
  stream = switch(body, 'stream')
  return Ask(
    chat=chat,
    prompts=found,
    n=n,
    least=least,
    most=most,
    knobs=(number['temperature'], number['top_p'], top_k, number['min_p']),
    seed=number['seed'],
    stops=_stops(body),
    logprobs=_logprobs(body, chat),
    stream=stream,
    usage=_usage(body, stream),
    ids=switch(body, 'return_token_ids'),
  )


def parse(raw: bytes) -> dict:
  def constant(name):
    raise ValueError(f'{name} is not JSON')

  try:
    body = json.loads(raw, parse_constant=constant)
  except (ValueError, RecursionError) as error:
    raise Refused(f'the body is not JSON: {error}') from error
  if not isinstance(body, dict):
    raise Refused('the body must be a JSON object')
  return body


def _fields(served, body, chat) -> dict:
  """The fields that were given, all of them known; null is not given."""
  if unknown := sorted(body.keys() - (CHAT if chat else TEXT)):
    raise Refused(f'unrecognized field {short(unknown[0])}', unknown[0])
  body = {name: value for name, value in body.items() if value is not None}
  only = ONLY_CHAT if chat else ONLY_TEXT | {'best_of': (body.get('n', 1),)}
  for name, values in only.items():
    if name in body and body[name] not in values:
      raise Refused(f'{name} is only supported as {values[0]!r}', name)
  check_model(served, body.get('model'))
  return body


def _number(body, name, spec=None):
  kind, low, high, default = NUMBERS[spec or name]
  if name not in body:
    return default
  value = body[name]
  kinds = (int,) if kind is int else (int, float)
  if type(value) not in kinds or not low <= value <= high:
    what = 'an integer' if kind is int else 'a number'
    raise Refused(
      f'{name} must be {what} from {low} to {high}, not {short(value)}', name
    )
  return kind(value)


def _stops(body) -> tuple[str, ...]:
  stops = body.get('stop', [])
  stops = [stops] if isinstance(stops, str) else stops
  whole = isinstance(stops, list) and len(stops) <= STOPS
  if not whole or not all(isinstance(x, str) and x for x in stops):
    raise Refused(
      f'stop must be a string or up to {STOPS} of them, none empty', 'stop'
    )
  return tuple(stops)


def _logprobs(body, chat) -> bool:
  if chat:
    if body.get('top_logprobs', 0) != 0:
      raise Refused(
        'top_logprobs must be 0: only log-probs of the sampled tokens exist',
        'top_logprobs',
      )
    return switch(body, 'logprobs')
  value = body.get('logprobs')
  if value is not None and (type(value) is not int or value):
    raise Refused(
      'logprobs must be 0: only log-probs of the sampled tokens exist',
      'logprobs',
    )
  return value is not None


def _usage(body, stream) -> bool:
  options = body.get('stream_options', {})
  if not isinstance(options, dict) or options.keys() - {'include_usage'}:
    raise Refused(
      'stream_options must be {"include_usage": true or false}',
      'stream_options',
    )
  if options and not stream:
    raise Refused('stream_options needs stream: true', 'stream_options')
  return switch(options, 'include_usage')


def _most(served, body, found, chat) -> list[int]:
  """The most new tokens of each prompt; all must fit into the context."""
  field = 'max_completion_tokens' if chat else 'max_tokens'
  field = field if field in body else 'max_tokens'
  given = _number(body, field, 'max_tokens')
  room = [served.length - len(ids) for ids in found]
  most = given or (1 if chat else TEXT_TOKENS)
  if most > min(room):
    longest = served.length - min(room)
    raise Refused(
      f'the context has {served.length} tokens, but {longest} of the prompt '
      f'and {most} of the completion were asked for; shorten one of them',
      'messages' if chat else 'prompt',
      code='context_length_exceeded',
    )
  return room if chat and not given else [most] * len(found)
