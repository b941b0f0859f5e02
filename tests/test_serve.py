"""A real server process and the real openai client."""

import asyncio
import concurrent.futures
import contextlib
import functools
import http.client
import json
import random
import shutil
import signal
import time
import types
import urllib.parse

import jax
import jax.numpy as jnp
import numpy as np
import openai
import pytest

from crjax import checkpoint, engine, generate, hf, model, serve, tokenizer
from crjax.api import Desk, Refused, Served, asks
from crjax.api.completion import Completion
from crjax.sharding import make_mesh
from tests import serving

PROMPT = 'def f(x):\n  return'
CHAT = [
  {'role': 'system', 'content': 'Be brief: naïve 🦊.'},
  {'role': 'user', 'content': PROMPT},
]
NEW = 24


@pytest.fixture(scope='module')
def small(tmp_path_factory):
  return serving.small_model(tmp_path_factory.mktemp('model'))


@pytest.fixture(scope='module')
def server(small):
  with serving.serve(small) as server:
    yield server


@pytest.fixture(scope='module')
def client(server):
  with openai.OpenAI(
    base_url=server.url, api_key='none', max_retries=0, timeout=120
  ) as client:
    yield client


@contextlib.contextmanager
def asked(server, method, path, body=None):
  """A response of which nothing but the head was read."""
  place = urllib.parse.urlsplit(server.url)
  connection = http.client.HTTPConnection(place.netloc, timeout=120)
  try:
    connection.request(method, path, body)
    yield connection.getresponse()
  finally:
    connection.close()


def complete(client, prompt=PROMPT, **kwargs):
  kwargs = {'model': 'small', 'temperature': 0, 'max_tokens': NEW} | kwargs
  return client.completions.create(prompt=prompt, **kwargs)


def chat(client, messages=CHAT, **kwargs):
  kwargs = {'model': 'small', 'temperature': 0, 'max_tokens': NEW} | kwargs
  return client.chat.completions.create(messages=messages, **kwargs)


def joined(events, n=1):
  """(texts, finish reasons) of the choices of a stream."""
  texts, ends = [''] * n, [None] * n
  for event in events:
    for choice in event.choices:
      new = choice.text if hasattr(choice, 'text') else choice.delta.content
      assert ends[choice.index] is None, 'nothing comes after the end'
      texts[choice.index] += new
      ends[choice.index] = choice.finish_reason
  return texts, ends


def health(server):
  with asked(server, 'GET', '/health') as response:
    return json.load(response)


def settled(server):
  """Health when no request runs or waits any more."""
  for _ in range(600):
    now = health(server)
    if not now['running'] and not now['waiting']:
      return now
    time.sleep(0.05)
  raise AssertionError(f'still at work: {now}')


def test_greedy_is_what_generate_writes(client, small, tmp_path):
  tok = tokenizer.load(small)
  lines = [
    {'prompt': PROMPT},
    {'prompt_ids': tokenizer.encode_prompt(tok, CHAT)},
  ]
  (tmp_path / 'in.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  generate.run(
    types.SimpleNamespace(
      model=str(small),
      prompts=tmp_path / 'in.jsonl',
      out=tmp_path / 'out.jsonl',
      mesh=['-1', '1', '1'],
      dtype='float32',
      max_new_tokens=NEW,
      batch=8,
      seed=0,
      temperature=0.0,
      top_p=1.0,
      top_k=0,
    )
  )
  written = (tmp_path / 'out.jsonl').read_text().splitlines()
  text, turn = (json.loads(line) for line in written)
  found = complete(client, extra_body={'return_token_ids': True})
  assert found.choices[0].text == text['text']
  assert found.choices[0].token_ids == text['ids']
  assert found.usage.completion_tokens == len(text['ids'])
  assert found.usage.prompt_tokens == len(text['prompt_ids'])
  for prompt in (text['prompt_ids'], [PROMPT], [text['prompt_ids']]):
    assert complete(client, prompt).choices[0].text == text['text']
  found = chat(client)
  assert found.choices[0].message.content == turn['text']
  assert found.choices[0].message.role == 'assistant'
  assert found.choices[0].finish_reason in ('stop', 'length')
  assert joined(complete(client, stream=True))[0] == [text['text']]
  assert joined(chat(client, stream=True))[0] == [turn['text']]


@pytest.mark.parametrize('ask', [complete, chat])
def test_choices_are_named_by_seed_and_number(client, ask):
  text = lambda c: c.text if ask is complete else c.message.content
  sampled = lambda n, seed=7, **kwargs: ask(
    client, n=n, seed=seed, temperature=1.0, **kwargs
  )
  three = [text(c) for c in sampled(3).choices]
  assert [c.index for c in sampled(3).choices] == [0, 1, 2]
  assert len(set(three)) == 3
  assert [text(c) for c in sampled(3).choices] == three
  assert text(sampled(1).choices[0]) == three[0]
  assert joined(sampled(3, stream=True), 3)[0] == three
  assert text(sampled(1, seed=8).choices[0]) != three[0]
  assert text(sampled(1, seed=-7).choices[0]) != three[0]
  unnamed = {text(sampled(1, None).choices[0]) for _ in range(3)}
  assert len(unnamed) == 3


def test_prompts_of_a_list_are_answered_each(client):
  prompts = [PROMPT, 'größer 🎉', 'assert']
  alone = [
    c.text for p in prompts for c in complete(client, p, n=2, seed=1).choices
  ]
  found = complete(client, prompts, n=2, seed=1)
  assert [c.text for c in found.choices] == alone
  assert [c.index for c in found.choices] == list(range(6))


@pytest.mark.parametrize('ask', [complete, chat])
def test_text_ends_before_a_stop_string(client, ask):
  text = lambda c: c.text if ask is complete else c.message.content
  sampled = lambda **kwargs: ask(client, temperature=1.0, seed=3, **kwargs)
  whole = text(sampled().choices[0])
  assert len(whole) > 12
  for stop in (whole[6:10], [whole[5:8], 'never there'], whole[-2:]):
    first = stop if isinstance(stop, str) else stop[0]
    done = sampled(stop=stop)
    assert text(done.choices[0]) == whole[: whole.index(first)]
    assert done.choices[0].finish_reason == 'stop'
    texts, ends = joined(sampled(stop=stop, stream=True))
    assert (texts, ends) == ([whole[: whole.index(first)]], ['stop'])
  assert sampled(stop=whole[6:10]).usage.completion_tokens < NEW
  late = {'extra_body': {'min_tokens': NEW}}
  whole = text(sampled(**late).choices[0])
  assert text(sampled(stop=whole[:2], **late).choices[0]) == whole


def test_stream_tells_usage_when_asked(client):
  whole = chat(client, n=2, seed=1)
  *events, last = chat(
    client, n=2, seed=1, stream=True, stream_options={'include_usage': True}
  )
  assert last.choices == [] and last.usage == whole.usage
  assert all(event.usage is None for event in events)
  roles = [e.choices[0].delta.role for e in events]
  assert roles[:2] == ['assistant', 'assistant'] and not any(roles[2:])
  assert len({event.id for event in [*events, last]}) == 1


@pytest.fixture(scope='module')
def score(small):
  """(prompt, new, temperature) -> log-probs as the trainer computes them."""
  found = hf.inspect(small)
  params = hf.load(found, make_mesh((1, 1, 1), jax.devices()[:1]))
  scored = jax.jit(functools.partial(model.score, found.cfg, dtype=jnp.float32))

  def score(prompt, new, temperature):
    tokens_BT = np.zeros((1, 128), np.int32)
    tokens_BT[0, : len(prompt + new)] = prompt + new
    valid_BT = jnp.ones_like(tokens_BT, bool)  # What follows is not seen.
    logp_BT, _ = scored(params, tokens_BT, valid_BT, temperature=temperature)
    return np.asarray(logp_BT)[0, len(prompt) - 1 :][: len(new)]

  return score


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('temperature', [0.7, 1.0])
def test_logprobs_are_those_of_the_trainer(
  client, small, score, temperature, stream
):
  """And the token strings, joined, are the text."""
  tok = tokenizer.load(small)
  kwargs = {'temperature': temperature, 'seed': 5, 'stream': stream}
  kwargs |= {'extra_body': {'return_token_ids': True}}
  done = complete(client, logprobs=0, **kwargs)
  parts = [part.choices[0] for part in (done if stream else [done])]
  new = [x for part in parts for x in part.token_ids]
  logps = [x for part in parts for x in part.logprobs.token_logprobs]
  prompt = tok(PROMPT)['input_ids']
  np.testing.assert_allclose(logps, score(prompt, new, temperature), atol=1e-5)
  text = ''.join(part.text for part in parts)
  tokens = [x for part in parts for x in part.logprobs.tokens]
  offsets = [x for part in parts for x in part.logprobs.text_offset]
  assert ''.join(tokens) == text
  for offset, token in zip(offsets, tokens, strict=True):
    assert text[offset:].startswith(token)

  done = chat(client, logprobs=True, **kwargs)
  parts = [part.choices[0] for part in (list(done)[1:] if stream else [done])]
  new = [x for part in parts for x in part.token_ids]
  entries = [x for part in parts for x in part.logprobs.content]
  logps = [entry.logprob for entry in entries]
  prompt = tokenizer.encode_prompt(tok, CHAT)
  np.testing.assert_allclose(logps, score(prompt, new, temperature), atol=1e-5)
  assert all(bytes(e.bytes).decode() == e.token for e in entries)


def test_an_answer_does_not_depend_on_what_else_is_served(client):
  rng = random.Random(0)
  asked = [
    {
      'prompt': PROMPT[: rng.randrange(1, len(PROMPT))] * rng.randrange(1, 4),
      'max_tokens': rng.randrange(1, 40),
      'temperature': rng.choice([0, 0.8, 1.0]),
      'top_p': rng.choice([1.0, 0.9]),
      'seed': i,
      'extra_body': {
        'top_k': rng.choice([0, 20]),
        'min_p': rng.choice([0.0, 0.01]),
      },
    }
    for i in range(32)
  ]
  whole = lambda kwargs: complete(client, **kwargs).choices[0].text
  events = lambda kwargs: joined(complete(client, stream=True, **kwargs))[0][0]
  alone = [whole(kwargs) for kwargs in asked]
  with concurrent.futures.ThreadPoolExecutor(32) as pool:
    waiting = [
      pool.submit(events if i % 2 else whole, kwargs)
      for i, kwargs in enumerate(asked)
    ]
    assert [w.result() for w in waiting] == alone


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_leaves_frees_its_slots(server, stream):
  before, most = settled(server)['tokens'], 900
  body = {'model': 'small', 'prompt': PROMPT, 'n': 8, 'stream': stream}
  body = json.dumps(body | {'max_tokens': most, 'min_tokens': most})
  if stream:
    with asked(server, 'POST', '/v1/completions', body) as response:
      assert response.readline().startswith(b'data: {')
  else:
    place = urllib.parse.urlsplit(server.url)
    connection = http.client.HTTPConnection(place.netloc)
    connection.request('POST', '/v1/completions', body)
    while not health(server)['running']:
      time.sleep(0.01)
    connection.close()
  assert settled(server)['tokens'] - before < 8 * most


def test_a_full_queue_says_when_to_come_again(client, server):
  settled(server)
  body = {'max_tokens': 900, 'extra_body': {'min_tokens': 900}}
  with complete(client, n=64, stream=True, **body) as events:
    next(iter(events))
    assert health(server)['waiting'] >= 56
    with pytest.raises(openai.RateLimitError) as error:
      complete(client, n=9)
    assert int(error.value.response.headers['retry-after']) > 0
    assert error.value.code == 'rate_limit_exceeded'
  settled(server)
  assert complete(client, n=9).usage.completion_tokens > 9


BAD = [
  ({'model': 'other'}, 404, 'model'),
  ({'model': None}, 404, 'model'),
  ({'prompt': 5}, 400, 'prompt'),
  ({'prompt': ''}, 400, 'prompt'),
  ({'prompt': []}, 400, 'prompt'),
  ({'prompt': [1.5]}, 400, 'prompt'),
  ({'prompt': [True]}, 400, 'prompt'),
  ({'prompt': [[1], []]}, 400, 'prompt'),
  ({'prompt': ['a', 5]}, 400, 'prompt'),
  ({'prompt': [400]}, 400, 'prompt'),
  ({'prompt': [-1]}, 400, 'prompt'),
  ({'prompt': '\ud800'}, 400, 'prompt'),
  ({'prompt': 'a b ' * 1000}, 400, 'prompt'),
  ({'max_tokens': 1024}, 400, 'prompt'),
  ({'max_tokens': 0}, 400, 'max_tokens'),
  ({'max_tokens': '5'}, 400, 'max_tokens'),
  ({'max_tokens': 10**400}, 400, 'max_tokens'),
  ({'min_tokens': 17}, 400, 'min_tokens'),
  ({'temperature': -1}, 400, 'temperature'),
  ({'temperature': 'hot'}, 400, 'temperature'),
  ({'temperature': True}, 400, 'temperature'),
  ({'temperature': float('nan')}, 400, None),
  ({'top_p': 1.5}, 400, 'top_p'),
  ({'top_k': 1.5}, 400, 'top_k'),
  ({'n': 0}, 400, 'n'),
  ({'n': 100}, 400, 'n'),
  ({'best_of': 2}, 400, 'best_of'),
  ({'seed': 2**63}, 400, 'seed'),
  ({'stop': ''}, 400, 'stop'),
  ({'stop': ['a', None]}, 400, 'stop'),
  ({'logprobs': 1}, 400, 'logprobs'),
  ({'logprobs': True}, 400, 'logprobs'),
  ({'echo': True}, 400, 'echo'),
  ({'presence_penalty': 0.5}, 400, 'presence_penalty'),
  ({'logit_bias': {'5': 1}}, 400, 'logit_bias'),
  ({'stream': 'yes'}, 400, 'stream'),
  ({'stream_options': {'include_usage': True}}, 400, 'stream_options'),
  ({'messages': CHAT}, 400, 'messages'),
  ({'\ud800': 1}, 400, '\ud800'),
]
BAD_CHAT = [
  ({'messages': []}, 400, 'messages'),
  ({'messages': PROMPT}, 400, 'messages'),
  ({'messages': [PROMPT]}, 400, 'messages'),
  ({'messages': [{'role': 'user'}]}, 400, 'messages'),
  ({'messages': [{'role': 'tool', 'content': 'a'}]}, 400, 'messages'),
  ({'messages': [{'role': [], 'content': 'a'}]}, 400, 'messages'),
  ({'messages': [CHAT[1] | {'tool_calls': [5]}]}, 400, 'messages'),
  ({'messages': [{'role': 'user', 'content': '\udc00'}]}, 400, 'messages'),
  ({'messages': [{'role': 'user', 'content': [5]}]}, 400, 'messages'),
  ({'prompt': PROMPT}, 400, 'prompt'),
  ({'top_logprobs': 2}, 400, 'top_logprobs'),
  ({'tools': [{'type': 'function'}]}, 400, 'tools'),
  ({'response_format': {'type': 'json_object'}}, 400, 'response_format'),
  ({'chat_template_kwargs': {'a': 1}}, 400, 'chat_template_kwargs'),
]


@pytest.mark.parametrize(
  ('path', 'good', 'bad'),
  [
    *(('/completions', {'prompt': PROMPT}, bad) for bad in BAD),
    *(('/chat/completions', {'messages': CHAT}, bad) for bad in BAD_CHAT),
  ],
  ids=lambda x: ascii(x[0])[:40] if isinstance(x, tuple) else '',
)
def test_what_cannot_be_answered_is_named(server, path, good, bad):
  change, status, param = bad
  body = json.dumps({'model': 'small'} | good | change)
  check_error(server, 'POST', f'/v1{path}', body, status, param)


@pytest.mark.parametrize(
  ('body', 'status'),
  [
    (b'', 400),
    (b'{"model": "small"', 400),
    (b'[1]', 400),
    (b'"\xff"', 400),
    (b'[' * 100_000, 400),
    (b'{"n": %s}' % (b'1' * 5000), 400),
    (b' ' * (9 << 20), 413),
  ],
  ids=['empty', 'torn', 'list', 'not UTF-8', 'deep', 'huge', 'long'],
)
def test_what_is_no_request_is_refused(server, body, status):
  for path in ('/v1/completions', '/v1/chat/completions'):
    check_error(server, 'POST', path, body, status)


def test_what_is_not_there_is_named(server):
  check_error(server, 'GET', '/nothing', None, 404)
  check_error(server, 'GET', '/v1/completions', None, 405)
  check_error(server, 'GET', '/v1/models/other', None, 404, 'model')


def check_error(server, method, path, body, status, param=None):
  with asked(server, method, path, body) as response:
    text = response.read()
  assert response.status == status, text
  error = json.loads(text)['error']
  assert error['message'] and error['type'] == 'invalid_request_error'
  assert error['param'] == param


def test_models_and_health(client, server):
  (found,) = client.models.list()
  assert found.id == 'small' and found.max_model_len == 1024
  assert client.models.retrieve('small') == found
  assert settled(server)['status'] == 'ok'


def test_it_drains_on_sigterm_and_keeps_its_key(small):
  env = {'KEY_OF_TEST': 'sesame'}
  with serving.serve(small, '--api_key_env=KEY_OF_TEST', env=env) as server:
    connect = lambda key: openai.OpenAI(
      base_url=server.url, api_key=key, max_retries=0, timeout=120
    )
    for ask in (complete, chat, lambda client: client.models.list()):
      with pytest.raises(openai.AuthenticationError):
        ask(connect('other'))
    client, most = connect('sesame'), 200
    body = {'max_tokens': most, 'extra_body': {'min_tokens': most}}
    events = complete(client, stream=True, logprobs=0, **body)
    parts = [next(events)]
    server.process.send_signal(signal.SIGTERM)
    parts += list(events)
    tokens = [x for part in parts for x in part.choices[0].logprobs.tokens]
    assert len(tokens) == most
    assert parts[-1].choices[0].finish_reason == 'length'
    assert server.process.wait(30) == 0, server.log.read_text()
    assert server.log.read_text() == ''
    with pytest.raises(openai.APIConnectionError):
      complete(connect('sesame'))


def test_whoever_waits_is_told_that_the_engine_failed():
  """No weights: the engine's thread fails at the first request."""

  async def ask():
    cfg, mesh = serving.CFG, make_mesh((1, 1, 1), jax.devices()[:1])
    made = engine.make(cfg, mesh, slots=1, length=8)
    desk, ended = Desk(4, serve.request), asyncio.Event()
    served = Served('small', None, cfg.V, 8, 4)
    body = json.dumps({'model': 'small', 'prompt': [1], 'max_tokens': 2})
    work = desk.submit(asks.read(served, body.encode(), False))
    run = asyncio.to_thread(serve.sample, desk, made, {}, ended.set)
    with pytest.raises((KeyError, TypeError)):
      await run
    with pytest.raises(Refused, match='has ended'):
      await desk.piece(work)
    with pytest.raises(Refused, match='has ended'):
      desk.submit(asks.read(served, body.encode(), False))
    assert ended.is_set() and desk.counts()['status'] == 'ended'

  asyncio.run(ask())


@pytest.mark.parametrize(
  'path', ['weights/stories260k-qwen2', 'tokenizers/Qwen2.5-Instruct']
)
def test_text_is_certain_when_it_is_shown(assets, path):
  """Any tokens, in pieces of any size: what decoding them at once gives."""
  tok, rng = tokenizer.load(assets / path), random.Random(0)
  names = {i: t for t, i in tok.get_vocab().items()}
  parts = [i for i, t in names.items() if len(t) <= 2 or t.startswith('<0x')]
  real = tok('héllo 日本語 🎉🎉 def f(x):\n', add_special_tokens=False)
  draws = [lambda: rng.choice(parts), lambda: rng.choice(real['input_ids'])]
  draws.append(lambda: rng.choice(list(names)))
  for _ in range(500):
    ids = [rng.choice(draws)() for _ in range(rng.randrange(1, 30))]
    text, start, done = '', 0, Completion(tok)
    while start < len(ids):
      new = ids[start : start + rng.randrange(1, 6)]
      start += len(new)
      end = 'length' if start == len(ids) else None
      done.add(new, [0.0] * len(new), end)
      text += done.take()[0]
      assert not text.endswith('\ufffd') or end
    assert text == tok.decode(ids, skip_special_tokens=True)


def test_a_missing_key_or_tokenizer_is_named(small, tmp_path, monkeypatch):
  monkeypatch.delenv('KEY_OF_TEST', raising=False)
  with pytest.raises(ValueError, match='--api_key_env=KEY_OF_TEST'):
    serve.read_key('KEY_OF_TEST')
  for name in ('config.json', 'model.safetensors'):
    shutil.copy(small / name, tmp_path)
  with pytest.raises(FileNotFoundError, match='holds no tokenizer'):
    serve.load(tmp_path, make_mesh((1, 1, 1), jax.devices()[:1]), jnp.float32)


def test_a_run_is_served_as_its_export_would_be(small, tmp_path):
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  with contextlib.closing(checkpoint.open_manager(tmp_path, keep=1)) as manager:
    params = hf.load(hf.inspect(small), mesh)
    checkpoint.save(manager, 3, {'params': params}, {})
  checkpoint.write_json(tmp_path / 'config.json', {'lora': {'rank': 0}})
  hf.remember_new(serving.CFG, tmp_path / 'source', small)
  cfg, params, tok, ends = serve.load(tmp_path, mesh, jnp.float32)
  exported = serve.load(small, mesh, jnp.float32)
  assert (cfg, ends) == (exported[0], exported[3]) and len(ends) == 2
  assert tok.get_vocab() == exported[2].get_vocab()
  jax.tree.map(np.testing.assert_array_equal, params, exported[1])
