"""What is served, and how a request is refused."""

from typing import NamedTuple


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


def check_model(served, name):
  if name != served.name:
    raise Refused(
      f'model must be {served.name!r}, the one that is served here',
      'model',
      status=404,
      code='model_not_found',
    )


def switch(body, name) -> bool:
  value = body.get(name, False)
  if not isinstance(value, bool):
    raise Refused(f'{name} must be true or false, not {short(value)}', name)
  return value


def short(value) -> str:
  text = repr(value)
  return text if len(text) < 80 else f'{text[:80]}...'
