"""Serves a model over HTTP as OpenAI's API does: chat and completions.

  python -m crjax.serve --model=DIR --port=8000

Prints one line of JSON when it can be asked, {"url": ..., "model": ...}, and
ends on SIGTERM when the requests that it has are answered.
"""

import json
import os
import signal
import socket
import sys
import threading

from absl import app, flags, logging
import jax
import uvicorn

from crjax import api, engine, generate, tokenizer
from crjax.sharding import make_mesh

FLAGS = flags.FLAGS
BACKLOG = 2048  # connections that may wait to be accepted


def request(tokens, question, rollout, knobs, least, most, tag):
  return engine.Request(
    tokens,
    question,
    rollout,
    engine.Knobs(*knobs),
    least=least,
    most=most,
    tag=tag,
  )


def sample(desk, made, params, on_end):
  """What the engine's thread does: the only one that computes."""
  try:
    with jax.set_mesh(made.mesh):
      pieces = engine.stream(
        made,
        params,
        desk.arriving(),
        key=jax.random.key(0),  # Seeds come with the requests.
        cancelled=desk.cancelled,
        tally=desk.tally,
      )
      for piece in pieces:
        desk.deliver(piece)
  finally:
    desk.end()
    on_end()


def load(name, mesh, dtype):
  """(Config, decode copy, tokenizer, end tokens) of what --model names."""
  with jax.set_mesh(mesh):
    cfg, path, read = generate.find(name, mesh, dtype)
    tok = tokenizer.load(path)
    tokenizer.check(tok, cfg.V, f'vocab_size of {name}')
    return cfg, read(), tok, generate.end_ids(path)


def read_key(variable: str | None) -> str | None:
  """The key that clients must send, from the environment."""
  if not variable:
    return None
  if not os.environ.get(variable):
    raise ValueError(
      f'--api_key_env={variable}: that variable of the environment is empty'
    )
  return os.environ[variable]


def bind(host: str, port: int) -> socket.socket:
  """A listening socket, so that --port=0 is known before the first request."""
  family = socket.AF_INET6 if ':' in host else socket.AF_INET
  listening = socket.socket(family)
  listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    listening.bind((host, port))
  except OSError as error:
    raise OSError(f'--host={host} --port={port}: {error}') from error
  listening.listen(BACKLOG)
  return listening


def run(f):
  """What the command does, given its parsed flags."""
  if jax.process_count() > 1:
    raise ValueError('serve runs in one process; start one on each machine')
  key, listening = read_key(f.api_key_env), bind(f.host, f.port)
  mesh = make_mesh(tuple(map(int, f.mesh)))
  cfg, params, tok, stop_ids = load(f.model, mesh, generate.DTYPES[f.dtype])
  made = engine.make(
    cfg,
    mesh,
    slots=f.slots,
    fewest=f.slots,  # One program; a row is rounded as it is in company.
    prompts=1,  # For the same two reasons.
    length=f.max_length,
    stop_ids=stop_ids,
  )
  name = f.name or f.model.rstrip('/')
  served = api.Served(name, tok, cfg.V, f.max_length, f.queue)
  desk = api.Desk(f.queue, request)
  server = uvicorn.Server(
    uvicorn.Config(
      api.make(served, desk, key),
      log_level='warning',
      lifespan='off',
      timeout_graceful_shutdown=f.drain_s + 1,
    )
  )
  thread = threading.Thread(
    target=sample,
    args=(desk, made, params, lambda: setattr(server, 'should_exit', True)),
  )
  thread.start()
  end_on_signals(server, desk, f.drain_s)
  host, port = listening.getsockname()[:2]
  host = f'[{host}]' if ':' in host else host
  url = f'http://{host}:{port}/v1'
  print(json.dumps({'url': url, 'model': name}), flush=True)
  try:
    server.run(sockets=[listening])
    failed = not thread.is_alive()
  finally:
    desk.stop()
    thread.join()
  if failed:
    raise ValueError('the engine failed; its error is above')


def end_on_signals(server, desk, drain_s: int):
  """The first one lets requests finish for `drain_s`, the second does not."""

  def leave(*_):
    server.force_exit = server.should_exit
    server.should_exit = True
    late = threading.Timer(drain_s, desk.end)
    late.daemon = True
    late.start()

  server.handle_exit = leave  # While it runs; before, what follows.
  for name in (signal.SIGTERM, signal.SIGINT):
    signal.signal(name, leave)


def define_flags():
  flags.DEFINE_string(
    'model', None, 'A run, directory, URL or hub name.', required=True
  )
  flags.DEFINE_string('name', None, 'Of the model. Default: --model.')
  flags.DEFINE_string('host', '127.0.0.1', 'Address to listen at.')
  flags.DEFINE_integer('port', 8000, '0 is any that is free.', 0, 65535)
  flags.DEFINE_integer('slots', 32, 'Completions at a time.', lower_bound=1)
  flags.DEFINE_integer('queue', 1024, 'Completions that may wait.', 1)
  flags.DEFINE_integer(
    'max_length', 4096, 'Tokens of a prompt and its completion.', 2
  )
  flags.DEFINE_integer('drain_s', 60, 'Seconds to finish on SIGTERM.', 0)
  flags.DEFINE_string(
    'api_key_env', None, 'The environment variable with the key to ask for.'
  )
  flags.DEFINE_enum(
    'dtype', 'bfloat16', sorted(generate.DTYPES), 'Compute in it.'
  )
  flags.DEFINE_list('mesh', ['-1', '1', '1'], 'data,fsdp,tensor; -1: the rest.')


def main(_):
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot at INFO.
  try:
    run(FLAGS)
  except (ValueError, OSError) as error:
    sys.exit(f'serve: {error}')


if __name__ == '__main__':
  define_flags()
  app.run(main)
