"""Answers of OpenAI's chat and completions API, whole or as events.

A log-prob is that of the distribution that was sampled from, one for each
token, an end token included. The token strings, joined, are the text: a token
inside a character has '' and the one that completes it has the character.
"""

import json
import secrets
import time


def head(served, ask) -> dict:
  """What all parts of one answer have in common."""
  return {
    'id': f'{"chatcmpl" if ask.chat else "cmpl"}-{secrets.token_hex(12)}',
    'object': 'chat.completion' if ask.chat else 'text_completion',
    'created': int(time.time()),
    'model': served.name,
  }


def whole(head, ask, completions) -> dict:
  """The answer to a request without `stream`."""
  choices = []
  for index, done in enumerate(completions):
    text, tokens = done.take()
    shown = {'message': {'role': 'assistant', 'content': text}}
    choice = _choice(ask, index, done, tokens)
    choices.append(choice | (shown if ask.chat else {'text': text}))
  return head | {'choices': choices, 'usage': usage(ask, completions)}


def opening(head, ask, index) -> dict:
  """The first event of a choice of a chat: who speaks."""
  delta = {'role': 'assistant', 'content': ''}
  choice = {'index': index, 'delta': delta, 'logprobs': None}
  return _event(head, ask, [choice | {'finish_reason': None}])


def event(head, ask, index, completion) -> dict | None:
  """What is new of a choice; None where nothing can be shown yet."""
  text, tokens = completion.take()
  if not text and not completion.finish and not (ask.logprobs or ask.ids):
    return None
  shown = {'delta': {'content': text}} if ask.chat else {'text': text}
  return _event(head, ask, [_choice(ask, index, completion, tokens) | shown])


def closing(head, ask, completions) -> dict:
  """The last event of a stream with `include_usage`."""
  return _event(head, ask, []) | {'usage': usage(ask, completions)}


def usage(ask, completions) -> dict:
  prompt = sum(map(len, ask.prompts))
  new = sum(len(done.ids) for done in completions)
  return {
    'prompt_tokens': prompt,
    'completion_tokens': new,
    'total_tokens': prompt + new,
  }


def error(message, kind='invalid_request_error', param=None, code=None):
  return {
    'error': {'message': message, 'type': kind, 'param': param, 'code': code}
  }


def dumps(answer) -> bytes:
  """ASCII: any string can be sent, half a surrogate pair in an error too."""
  return json.dumps(answer, separators=(',', ':')).encode()


def server_event(text: bytes) -> bytes:
  return b'data: ' + text + b'\n\n'


def _event(head, ask, choices):
  kind = 'chat.completion.chunk' if ask.chat else 'text_completion'
  usage = {'usage': None} if ask.usage else {}
  return head | {'object': kind, 'choices': choices} | usage


def _choice(ask, index, completion, tokens):
  """A choice but for its text; `tokens` are the indices to tell of."""
  logprobs = None
  if ask.logprobs:
    logprobs = (_chat_logprobs if ask.chat else _text_logprobs)(
      completion, tokens
    )
  choice = {
    'index': index,
    'logprobs': logprobs,
    'finish_reason': completion.finish,
  }
  if ask.ids:
    choice['token_ids'] = [completion.ids[i] for i in tokens]
  return choice


def _chat_logprobs(completion, tokens):
  return {
    'content': [
      {
        'token': (token := completion.token(i)),
        'logprob': completion.logps[i],
        'bytes': list(token.encode()),
        'top_logprobs': [],
      }
      for i in tokens
    ],
    'refusal': None,
  }


def _text_logprobs(completion, tokens):
  start = sum(len(piece) for piece in completion.pieces[: tokens.start])
  offsets = []
  for i in tokens:
    offsets.append(start)
    start += len(completion.pieces[i])
  return {
    'tokens': [completion.token(i) for i in tokens],
    'token_logprobs': [completion.logps[i] for i in tokens],
    'top_logprobs': None,
    'text_offset': offsets,
  }
