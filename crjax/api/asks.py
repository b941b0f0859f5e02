"""Requests of OpenAI's chat and completions API, read and judged.

Beside its fields: `top_k`, `min_p`, `min_tokens`, `chat_template_kwargs` and
`return_token_ids`, named as vLLM does. A field that is unknown, or asks for
what is not there, is an error and never ignored.
"""

import json
from typing import NamedTuple

import jinja2

from crjax import tokenizer

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
ROLES = ('system', 'user', 'assistant')
STOPS = 16
TEXT_TOKENS = 16  # of /v1/completions without max_tokens, as OpenAI's


class Refused(Exception):
  """A request that cannot be answered: HTTP status and OpenAI's fields."""

  def __init__(self, message, param=None, *, status=400, code=None):
    super().__init__(message)
    self.status, self.param, self.code = status, param, code


class Served(NamedTuple):
  """What is served: requests are judged by it."""

  name: str
  tok: object
  vocabulary: int
  length: int  # of prompt and completion together
  choices: int  # in one request, at most


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
  prompts = _chat(served, body) if chat else _prompts(served, body)
  most = _most(served, body, prompts, chat)
  if len(prompts) * n > served.choices:
    raise Refused(
      f'{len(prompts)} prompts x n={n} are more than the {served.choices} '
      'choices that one request may have',
      'n',
    )
  if least > min(most):
    raise Refused(f'min_tokens is above the most, {min(most)}', 'min_tokens')
  top_k = max(number['top_k'], 0)  # -1 is off, too, in vLLM.
  stream = _switch(body, 'stream')
  return Ask(
    chat=chat,
    prompts=prompts,
    n=n,
    least=least,
    most=most,
    knobs=(number['temperature'], number['top_p'], top_k, number['min_p']),
    seed=number['seed'],
    stops=_stops(body),
    logprobs=_logprobs(body, chat),
    stream=stream,
    usage=_usage(body, stream),
    ids=_switch(body, 'return_token_ids'),
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
    raise Refused(f'unrecognized field {_short(unknown[0])}', unknown[0])
  body = {name: value for name, value in body.items() if value is not None}
  only = ONLY_CHAT if chat else ONLY_TEXT | {'best_of': (body.get('n', 1),)}
  for name, values in only.items():
    if name in body and body[name] not in values:
      raise Refused(f'{name} is only supported as {values[0]!r}', name)
  check_model(served, body.get('model'))
  return body


def check_model(served, name):
  if name != served.name:
    raise Refused(
      f'model must be {served.name!r}, the one that is served here',
      'model',
      status=404,
      code='model_not_found',
    )


def _number(body, name, spec=None):
  kind, low, high, default = NUMBERS[spec or name]
  if name not in body:
    return default
  value = body[name]
  kinds = (int,) if kind is int else (int, float)
  if type(value) not in kinds or not low <= value <= high:
    what = 'an integer' if kind is int else 'a number'
    raise Refused(
      f'{name} must be {what} from {low} to {high}, not {_short(value)}', name
    )
  return kind(value)


def _switch(body, name) -> bool:
  value = body.get(name, False)
  if not isinstance(value, bool):
    raise Refused(f'{name} must be true or false, not {_short(value)}', name)
  return value


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
    return _switch(body, 'logprobs')
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
  return _switch(options, 'include_usage')


def _most(served, body, prompts, chat) -> list[int]:
  """The most new tokens of each prompt; all must fit into the context."""
  field = 'max_completion_tokens' if chat else 'max_tokens'
  field = field if field in body else 'max_tokens'
  given = _number(body, field, 'max_tokens')
  room = [served.length - len(ids) for ids in prompts]
  most = given or (1 if chat else TEXT_TOKENS)
  if most > min(room):
    longest = served.length - min(room)
    raise Refused(
      f'the context has {served.length} tokens, but {longest} of the prompt '
      f'and {most} of the completion were asked for; shorten one of them',
      'messages' if chat else 'prompt',
      code='context_length_exceeded',
    )
  return room if chat and not given else [most] * len(prompts)


def _chat(served, body) -> list[list[int]]:
  messages = body.get('messages')
  if not isinstance(messages, list) or not messages:
    raise Refused('messages must be a list of one message or more', 'messages')
  turns = [_message(message, i) for i, message in enumerate(messages)]
  options = body.get('chat_template_kwargs', {})
  if not isinstance(options, dict) or options.keys() - {'enable_thinking'}:
    raise Refused(
      'chat_template_kwargs must be {"enable_thinking": true or false}',
      'chat_template_kwargs',
    )
  thinking = _switch(options, 'enable_thinking') if options else None
  try:
    ids = tokenizer.encode_prompt(served.tok, turns, thinking=thinking)
  except (ValueError, TypeError, jinja2.TemplateError) as error:
    raise Refused(f'chat template: {error}', 'messages') from error
  return [_tokens(served, ids, 'messages')]


def _message(message, i) -> dict:
  where = f'messages[{i}]'
  if not isinstance(message, dict) or message.keys() - {
    'role',
    'content',
    'name',
  }:
    raise Refused(f'{where} must be {{"role", "content"}}', 'messages')
  if message.get('role') not in ROLES:
    raise Refused(f'{where}.role must be one of {ROLES}', 'messages')
  content = message.get('content')
  if isinstance(content, list):
    content = ''.join(_part(part, where) for part in content)
  return {'role': message['role'], 'content': _text(content, where)}


def _part(part, where) -> str:
  text = part.get('text') if isinstance(part, dict) else None
  if text is None or part.get('type') != 'text':
    raise Refused(f'{where}.content has a part that is not text', 'messages')
  return _text(text, where)


def _prompts(served, body) -> list[list[int]]:
  """A string, strings, token ids, or lists of them."""
  prompt = body.get('prompt')
  one = isinstance(prompt, str) or (
    isinstance(prompt, list) and any(type(x) is int for x in prompt)
  )
  prompts = [prompt] if one else prompt
  if not isinstance(prompts, list) or not prompts:
    raise Refused(
      'prompt must be a string, strings, token ids or lists of them', 'prompt'
    )
  return [
    _tokens(
      served,
      served.tok(_text(x, 'prompt'), add_special_tokens=False)['input_ids']
      if isinstance(x, str)
      else x,
      'prompt',
    )
    for x in prompts
  ]


def _tokens(served, ids, param) -> list[int]:
  if not isinstance(ids, list) or not all(type(i) is int for i in ids):
    raise Refused(f'{param} must be text or token ids', param)
  if not ids:
    raise Refused(f'{param} must be one token or more', param)
  if strange := [i for i in ids if not 0 <= i < served.vocabulary]:
    raise Refused(
      f'{param}: token {strange[0]} is outside the vocabulary, '
      f'0..{served.vocabulary - 1}',
      param,
    )
  return ids


def _text(text, where) -> str:
  """Refuses what is no text, half a surrogate pair included."""
  try:
    text.encode()
  except (AttributeError, UnicodeEncodeError) as error:
    param = where.split('[')[0]
    raise Refused(f'{where} is not text: {_short(error)}', param) from error
  return text


def _short(value) -> str:
  text = repr(value)
  return text if len(text) < 80 else f'{text[:80]}...'
