"""Prompts of requests as tokens: messages, texts, token ids."""

import jinja2

from crjax import tokenizer
from crjax.api.served import Refused, short, switch

ROLES = ('system', 'user', 'assistant')


def of_chat(served, body) -> list[list[int]]:
  """The one prompt that the model's own template makes of `messages`."""
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
  thinking = switch(options, 'enable_thinking') if options else None
  try:
    ids = tokenizer.encode_prompt(served.tok, turns, thinking=thinking)
  except (ValueError, TypeError, jinja2.TemplateError) as error:
    raise Refused(f'chat template: {error}', 'messages') from error
  return [_tokens(served, ids, 'messages')]


def _message(message, i) -> dict:
  where = f'messages[{i}]'
  if not isinstance(message, dict):
    raise Refused(f'{where} must be {{"role", "content"}}', 'messages')
  given = {name for name, value in message.items() if value is not None}
  if unknown := sorted(given - {'role', 'content', 'name'}):
    raise Refused(
      f'{where} has {short(unknown[0])}, which is not supported', 'messages'
    )
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


def of_text(served, body) -> list[list[int]]:
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
    raise Refused(f'{where} is not text: {short(error)}', param) from error
  return text
