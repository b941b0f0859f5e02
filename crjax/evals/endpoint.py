"""Completions from any server that speaks OpenAI's API: vLLM, SGLang, ours.

An answer is known by the content of its question, and the journal keeps what
was answered: a run that was cut off, or that asks more, asks only for the rest.
"""

import concurrent.futures
import http.client
import json
import os
import re
import threading
import time
import urllib.error
import urllib.request

import numpy as np

from crjax.evals.journal import digest, keep, load
from crjax.evals.prompts import STOP

KEY = 'OPENAI_API_KEY'  # the environment variable; unset for none
AGAIN = {408, 409, 425, 429}  # and all from 500
ATTEMPTS, FIRST_PAUSE, LONGEST_PAUSE = 6, 0.5, 30.0
# What servers say of a prompt that does not fit.
TOO_LONG = re.compile('context.?(length|window|has)|maximum.{0,20}length', re.I)
SHOWN = 300  # characters of what a server says


class Refused(Exception):
  """The server will not answer; the message says why."""


def make_complete(
  url: str,
  model: str,
  journal,
  *,
  completion_length: int,
  concurrency: int = 16,
  seconds: float = 600.0,
  seed: int = 0,
):
  """(complete, count) for `evaluate.run`, from a server.

  Args:
    url: where `/chat/completions` is, such as http://localhost:8000/v1.
    model: its name on the server.
    journal: path of the JSONL file that keeps answers; created if need be.
    completion_length: tokens an answer may have.
    concurrency: questions that are out at a time.
    seconds: that one answer may take.
    seed: sent with each sample, a different one for each.

  A conversation goes to /chat/completions, a text to /completions with the
  few-shot prompts' stop. A prompt that does not fit gives None. Raises Refused.
  """
  if not url.startswith(('http://', 'https://')):
    raise Refused(f'{url!r} is no URL such as http://localhost:8000/v1')
  url, known, lock = url.rstrip('/'), load(journal), threading.Lock()

  def one(prompt, temperature, sample):
    body = request(model, prompt, completion_length, temperature, seed + sample)
    key = digest([url, body])
    with lock:
      if key in known:
        return known[key]
    path = 'completions' if isinstance(prompt, str) else 'chat/completions'
    answer = {'key': key, **ask(f'{url}/{path}', body, seconds)}
    with lock:
      known[key] = answer
      keep(journal, answer)
    return answer

  def complete(prompts, temperature, rollouts):
    asked = [(p, temperature, n) for p in prompts for n in range(rollouts)]
    with concurrent.futures.ThreadPoolExecutor(concurrency) as pool:
      futures = [pool.submit(one, *args) for args in asked]
      try:
        answers = [future.result() for future in futures]
      except BaseException:
        for future in futures:  # What is under way is kept, nothing is added.
          future.cancel()
        raise
    texts = [answer['text'] for answer in answers]
    cut = np.array([answer['finish'] == 'length' for answer in answers], bool)
    return texts, cut

  def count(texts):
    tokens = {answer['text']: answer['tokens'] for answer in known.values()}
    return [tokens.get(text, 0) for text in texts]  # None of what did not fit.

  return complete, count


def request(model, prompt, length, temperature, seed) -> dict:
  """The body of a request; its content is the answer's key."""
  body = {'model': model, 'max_tokens': length, 'temperature': temperature}
  if temperature:
    body |= {'top_p': 1.0, 'seed': seed}
  if isinstance(prompt, str):
    return body | {'prompt': prompt, 'stop': [STOP]}
  return body | {'messages': prompt}


def ask(url: str, body: dict, seconds: float) -> dict:
  """{text, finish, tokens} of one question; tries again what may pass."""
  data, why = json.dumps(body).encode(), ''
  for attempt in range(ATTEMPTS):
    if attempt:
      time.sleep(min(FIRST_PAUSE * 2 ** (attempt - 1), LONGEST_PAUSE))
    try:
      with urllib.request.urlopen(_post(url, data), timeout=seconds) as reply:
        return read(json.load(reply))
    except urllib.error.HTTPError as error:
      said = error.read().decode('utf-8', 'replace')[:SHOWN]
      why = f'status {error.code}: {said}'
      if error.code == 400 and TOO_LONG.search(said):
        return {'text': None, 'finish': 'too_long', 'tokens': 0}
      if error.code not in AGAIN and error.code < 500:
        raise Refused(f'{url}: {why}') from error
    except (OSError, http.client.HTTPException) as error:
      why = f'{type(error).__name__}: {error}'
    except (ValueError, LookupError, TypeError) as error:
      why = f'not an answer: {error}'
  raise Refused(f'{url}: {ATTEMPTS} attempts came to nothing, the last: {why}')


def read(reply: dict) -> dict:
  """Of a body of either kind; raises what a wrong one leads to."""
  choice = reply['choices'][0]
  text = choice['message']['content'] if 'message' in choice else choice['text']
  if not isinstance(text, str | None):
    raise TypeError('the content is no text')
  usage = reply.get('usage') or {}
  tokens = int(usage.get('completion_tokens') or 0)
  return {
    'text': text or '',
    'finish': str(choice['finish_reason']),
    'tokens': tokens,
  }


def _post(url, data):
  token = os.environ.get(KEY)
  headers = {'Content-Type': 'application/json'}
  if token:
    headers['Authorization'] = f'Bearer {token}'
  return urllib.request.Request(url, data, headers)
