"""Answers over real HTTP: what comes back, is kept, and is asked again."""

import http.server
import json
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crjax import completing, evaluate, hf, sampling, tokenizer
from crjax.evals import endpoint, prompts
from crjax.execution import Pool
from crjax.sharding import make_mesh
from tests.test_evaluate import TASKS

NEW = 24


@pytest.fixture
def answering():
  """(url, script, bodies): a server that plays a list of (status, body)."""
  script, bodies = [], []

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
      length = int(self.headers['Content-Length'])
      bodies.append((self.path, json.loads(self.rfile.read(length))))
      status, body = script.pop(0) if script else (200, said('later'))
      self.send_response(status)
      self.end_headers()
      self.wfile.write(body.encode())

    def log_message(self, *_):
      pass

  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{server.server_port}/v1', script, bodies
    server.shutdown()


def said(text, finish='stop', tokens=3):
  choice = {'message': {'content': text}, 'finish_reason': finish}
  usage = {'completion_tokens': tokens}
  return json.dumps({'choices': [choice], 'usage': usage})


def client(url, tmp_path, **kwargs):
  kwargs = {'completion_length': NEW, 'concurrency': 1} | kwargs
  return endpoint.make_complete(url, 'm', tmp_path / 'kept.jsonl', **kwargs)


CHAT = [{'role': 'user', 'content': 'q'}]


def test_what_may_pass_is_tried_again(answering, tmp_path, monkeypatch):
  monkeypatch.setattr(endpoint, 'FIRST_PAUSE', 0.01)
  url, script, bodies = answering
  script += [(503, 'busy'), (429, ''), (200, '{"choices": []}'), (200, 'oops')]
  script.append((200, said('yes', 'length', 7)))
  complete, count = client(url, tmp_path)
  texts, cut = complete([CHAT], 0.0, 1)
  assert texts == ['yes'] and cut.tolist() == [True] and len(bodies) == 5
  assert count(texts) == [7]


def test_a_refusal_ends_it_and_says_what_the_server_said(answering, tmp_path):
  url, script, bodies = answering
  script.append((400, 'no such model'))
  complete, _ = client(url, tmp_path)
  with pytest.raises(endpoint.Refused, match='status 400: no such model'):
    complete([CHAT], 0.0, 1)
  assert len(bodies) == 1


def test_a_dead_server_and_no_server_are_told(tmp_path, monkeypatch):
  monkeypatch.setattr(endpoint, 'FIRST_PAUSE', 0.001)
  with http.server.HTTPServer(('127.0.0.1', 0), None) as server:
    port = server.server_port  # Nobody listens there any more.
  complete, _ = client(f'http://127.0.0.1:{port}/v1', tmp_path)
  with pytest.raises(endpoint.Refused, match=r'6 attempts .* refused'):
    complete([CHAT], 0.0, 1)
  with pytest.raises(endpoint.Refused, match='is no URL'):
    client('localhost:8000', tmp_path)
  (tmp_path / 'kept.jsonl').write_text('{}\n')
  with pytest.raises(ValueError, match=r'kept.jsonl, line 1: no answer'):
    client('http://x', tmp_path)


def test_a_prompt_that_does_not_fit_is_told(answering, tmp_path):
  url, script, _ = answering
  script.append((400, 'the context has 8 tokens, but 9 of the prompt'))
  complete, count = client(url, tmp_path)
  texts, _ = complete([CHAT, CHAT], 0.0, 1)
  assert texts == [None, None] and count(['']) == [0]


def test_nothing_is_asked_twice(answering, tmp_path):
  url, _, bodies = answering
  complete, _ = client(url, tmp_path)
  first = complete([CHAT], 1.0, 3)
  assert len(bodies) == 3
  assert len({body['seed'] for _, body in bodies}) == 3
  with (tmp_path / 'kept.jsonl').open('a') as file:
    file.write('{"key": "torn')  # By a kill.
  complete, _ = client(url, tmp_path)
  again = complete([CHAT, 'text'], 1.0, 3)
  assert again[0][:3] == first[0] and len(bodies) == 6
  complete, _ = client(url, tmp_path, completion_length=9)
  complete([CHAT], 1.0, 3)  # Another question: its answers may be shorter.
  assert len(bodies) == 9


def test_a_text_is_continued_and_a_conversation_answered(answering, tmp_path):
  url, script, bodies = answering
  text = json.dumps({'choices': [{'text': 'x', 'finish_reason': 'stop'}]})
  script += [(200, text), (200, said('y'))]
  complete, _ = client(url, tmp_path)
  assert complete(['prompt', CHAT], 0.0, 1)[0] == ['x', 'y']
  (path, body), (other, asked) = bodies
  assert path == '/v1/completions' and body['stop'] == [prompts.STOP]
  assert other == '/v1/chat/completions' and asked['messages'] == CHAT
  assert 'seed' not in body  # Greedy.


def test_a_served_model_gives_what_it_gives_in_this_process(tmp_path):
  serving = pytest.importorskip('tests.serving', reason='no crjax.serve yet')
  path = serving.small_model(tmp_path)
  found, mesh = hf.inspect(path), make_mesh((1, 1, 1), jax.devices()[:1])
  tok = tokenizer.load(path)
  dtype = jnp.float32
  params = sampling.make_decode_copy(found.cfg, mesh, dtype)(
    hf.load(found, mesh, dtype=dtype)
  )
  here = completing.make_complete(
    found.cfg,
    params,
    tok,
    mesh,
    batch=8,
    prompt_length=512,
    completion_length=NEW,
    seed=0,
    thinking=None,
  )
  tasks = TASKS[:6]
  with serving.serve(path) as server, jax.set_mesh(mesh), Pool(1) as pool:
    there, count = endpoint.make_complete(
      server.url, server.name, tmp_path / 'kept.jsonl', completion_length=NEW
    )
    ours, theirs = (
      evaluate.run(tasks, complete, [pool], samples=1, count=count)
      for complete, count in ((here, None), (there, count))
    )
  greedy = lambda rows: [r for r in rows if r['mode'] == 'greedy']
  for a, b in zip(greedy(ours), greedy(theirs), strict=True):
    assert a['text'] == b['text'] and a['truncated'] == b['truncated']
    assert a['verdict'] == b['verdict']
    assert 0 < b['tokens'] <= NEW
  assert len({row['text'] for row in greedy(ours)}) > 1
  assert np.mean([row['text'] != '' for row in greedy(ours)]) == 1
