"""A real `python -m crjax.serve` for the tests of all that talks to one.

with serving.serve(serving.small_model(tmp_path)) as server:
  client = openai.OpenAI(base_url=server.url, api_key='none')
  client.chat.completions.create(model=server.name, messages=[...])
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax

from crjax import hf, model, tokenizer
from tests.conftest import ROOT

TEXTS = [
  'def f(x):\n  return x + 1\nassert f(2) == 3',
  'naïve café, größer, 日本語, 🎉 and 🦊',
]
CFG = model.Config(V=400, L=2, D=32, F=48, N=4, K=2, H=8, tied=False)


class Server(NamedTuple):
  url: str  # ends in /v1
  name: str  # of the model
  process: subprocess.Popen
  log: pathlib.Path  # what it says on stderr


def small_model(path, seed: int = 0) -> pathlib.Path:
  """A Hugging Face directory under `path`: random weights, a byte-level BPE
  with a chat template, and two end tokens."""
  tok = path / 'tokenizer'
  tokenizer.train(TEXTS, tok, vocab_size=300)
  hf.remember_new(CFG, path / 'source', tok)
  params = jax.device_get(model.init(CFG, jax.random.key(seed)))
  hf.save(path / 'hf', CFG, params, source_dir=path / 'source')
  return path / 'hf'


@contextlib.contextmanager
def serve(model, *flags, env=None):
  """Starts one at a free port; it is ended when the block is left."""
  with tempfile.TemporaryDirectory() as folder:
    log = pathlib.Path(folder) / 'stderr'
    with log.open('w') as stderr:
      process = subprocess.Popen(
        [
          sys.executable,
          '-m',
          'crjax.serve',
          f'--model={model}',
          '--port=0',
          '--name=small',
          '--dtype=float32',
          '--slots=4',
          '--queue=64',
          '--max_length=1024',
          *flags,
        ],
        cwd=ROOT,
        env=os.environ | {'XLA_FLAGS': ''} | (env or {}),  # One device.
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
      )
    try:
      line = process.stdout.readline()
      if not line:
        raise RuntimeError(f'serve did not start: {log.read_text()}')
      yield Server(*map(json.loads(line).get, ('url', 'model')), process, log)
    finally:
      process.terminate()
      process.wait(60)
      process.stdout.close()
