"""A real HTTP server with OpenAI's chat API that answers from a script."""

import collections
import contextlib
import functools
import hashlib
import http.server
import json
import socket
import threading
import time

USAGE = {'prompt_tokens': 100, 'completion_tokens': 10}
HANG_SECONDS = 3.0


def body_key(body) -> str:
  """Of all that a request asks for."""
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


class Server:
  """Answers `script(body)`, a text or (text, finish), on a port of its own.

  `fault(n, key)`, asked about the n-th request from 0, names what goes wrong:
  a name of FAULTS or ''. What was asked and what was answered whole is counted
  by request.
  """

  def __init__(self, script, fault=lambda n, key: ''):
    self.script, self.fault = script, fault
    self.asked, self.answered = collections.Counter(), collections.Counter()
    self.headers, self.times, self.bodies = [], [], []
    self.busy = self.busiest = 0
    self.lock, self.http, self.port = threading.Lock(), None, 0

  @property
  def url(self):
    return f'http://127.0.0.1:{self.port}/v1'

  def start(self):
    """Listens, on the port that it had if it was stopped."""
    handler = type('Handler', (Handler,), {'server_state': self})
    self.open = set()
    self.http = Listener(('127.0.0.1', self.port), handler)
    self.port = self.http.server_address[1]
    serve = functools.partial(self.http.serve_forever, poll_interval=0.02)
    threading.Thread(target=serve, daemon=True).start()

  def stop(self):
    """Dies: does not listen, and cuts what is open."""
    self.http.shutdown()
    self.http.server_close()
    for one in list(self.open):
      with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)

  def __enter__(self):
    self.start()
    return self

  def __exit__(self, *_):
    self.stop()


class Listener(http.server.ThreadingHTTPServer):
  request_queue_size = 128  # connections that may wait to be accepted


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  server_state = None

  def setup(self):
    super().setup()
    self.server_state.open.add(self.connection)

  def log_message(self, *_):
    pass

  def do_POST(self):
    state, length = self.server_state, int(self.headers['content-length'])
    body = json.loads(self.rfile.read(length))
    key = body_key(body)
    with state.lock:
      number = state.asked.total()
      state.asked[key] += 1
      state.headers.append(dict(self.headers))
      state.times.append(time.monotonic())
      state.bodies.append(body)
      state.busy += 1
      state.busiest = max(state.busiest, state.busy)
    try:
      assert self.path == '/v1/chat/completions', self.path
      FAULTS[state.fault(number, key)](self, body)
    finally:
      with state.lock:
        state.busy -= 1

  def answer(self, body):
    text = self.server_state.script(body)
    text, finish = text if isinstance(text, tuple) else (text, 'stop')
    choice = {'message': {'role': 'assistant', 'content': text}, 'index': 0}
    choices = [choice | {'finish_reason': finish}]
    reply = {'choices': choices, 'usage': USAGE, 'model': body['model']}
    with contextlib.suppress(OSError):  # A client that was killed.
      self.send(200, json.dumps(reply))
      self.server_state.answered[body_key(body)] += 1

  def send(self, status, text, headers=(), missing=0):
    self.send_response(status)
    for name, value in headers:
      self.send_header(name, value)
    self.send_header('content-length', str(len(text.encode()) + missing))
    self.end_headers()
    self.wfile.write(text.encode())
    self.close_connection = self.close_connection or missing > 0

  def hang(self, _):
    time.sleep(HANG_SECONDS)
    self.close_connection = True

  def drop(self, _):
    self.connection.shutdown(socket.SHUT_RDWR)
    self.close_connection = True


FAULTS = {
  '': Handler.answer,
  'hang': Handler.hang,
  'drop': Handler.drop,
  'cut body': lambda h, _: h.send(200, '{"choices": [{"mes', missing=50),
  'not json': lambda h, _: h.send(200, '{"choices": [{"message": '),
  'no choices': lambda h, _: h.send(200, '{"error": "overloaded"}'),
  'status 500': lambda h, _: h.send(500, 'oops'),
  'status 503': lambda h, _: h.send(503, 'loading'),
  'status 429': lambda h, _: h.send(429, 'slow', [('Retry-After', '1')]),
  'status 401': lambda h, _: h.send(401, '{"error": "no such key"}'),
}
