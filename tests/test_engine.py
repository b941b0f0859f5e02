"""The engine gives what decoding each request alone would give."""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crjax import engine, model, sampling
from crjax.engine import Knobs, Request
from crjax.sharding import make_mesh, replicate

CFG = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)
PARAMS = jax.jit(model.init, static_argnums=0)(CFG, jax.random.key(0))
STOPS = (1, 2)
LENGTH = 40  # of a row, prompt included
KNOBS = [Knobs(), Knobs(temperature=0.0), Knobs(0.7, 0.9, 12, 0.02)]
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, CFG.V, n).tolist() for n in (1, 11, 2, 9, 5, 3, 7)]
REQUESTS = [
  Request(
    prompt,
    question,
    rollout,
    KNOBS[rollout],
    least=question % 3,
    most=1 if rollout == question == 2 else 3 + 5 * ((question + rollout) % 5),
    # The last question ends at once, whatever is drawn.
    stop_ids=range(3, 7) if question == 5 else (),
  )
  for question, prompt in enumerate(PROMPTS)
  for rollout in range(3)
]


@functools.cache
def make(shape=(1, 1, 1), **sizes):
  """(Engine, decode copy) on a mesh of that shape."""
  mesh = make_mesh(shape, jax.devices()[: np.prod(shape)])
  with jax.set_mesh(mesh):
    params = sampling.make_decode_copy(CFG, mesh, jnp.float32)(PARAMS)
    defaults = {'slots': 3, 'chunk': 7, 'window': 48, 'prompts': 4}
    sizes = defaults | {'length': LENGTH, 'stop_ids': STOPS} | sizes
    sizes.setdefault('fewest', sizes['slots'])
    return engine.make(CFG, mesh, **sizes), params


def pieces(made, requests, seed=0, **kwargs):
  served, params = made
  key = jax.random.key_data(jax.random.key(seed))
  with jax.set_mesh(served.mesh):
    key = jax.jit(jax.random.wrap_key_data)(replicate(served.mesh, key))
    yield from engine.stream(served, params, requests, key=key, **kwargs)


def run(made, requests=REQUESTS, seed=0, **kwargs):
  """{(question, rollout): (tokens, log-probs, finish)}."""
  done = {}
  for request, tokens, logp, finish in pieces(made, requests, seed, **kwargs):
    name = request.question, request.rollout
    before, logps, ended = done.get(name, ([], [], None))
    assert ended is None
    done[name] = before + tokens, logps + logp, finish
  return done


@functools.cache
def last_logits():
  def last(tokens_T, n):
    valid_BT = (jnp.arange(len(tokens_T)) < n)[None]
    x_BTD = model.forward(
      CFG, PARAMS, tokens_T[None], valid_BT, dtype=jnp.float32
    )
    return model.logits(PARAMS, x_BTD)[0, n - 1]

  return jax.jit(last)


draw = jax.jit(sampling.draw)


def alone(request, seed=0):
  """(tokens, log-probs, finish): the whole row anew for every token."""
  row, tokens, logps = list(request.tokens), [], []
  stops = {*STOPS, *request.stop_ids}
  key = jax.random.key(seed)
  for name in (request.question, request.rollout):
    key = jax.random.fold_in(key, name)
  for i in range(request.most):
    full = np.pad(row, (0, LENGTH - len(row)))
    z_V = np.array(last_logits()(full, len(row)))
    if i < request.least:
      z_V[list(stops)] = -np.inf
    key_B = jax.random.fold_in(key, i)[None]
    token_B, logp_B = draw(z_V[None], key_B, *request.knobs)
    row.append(int(token_B[0]))
    tokens.append(row[-1])
    logps.append(float(logp_B[0]))
    if row[-1] in stops:
      return tokens, logps, 'stop'
  return tokens, logps, 'length'


@functools.cache
def naive(seed=0):
  return {(r.question, r.rollout): alone(r, seed) for r in REQUESTS}


def assert_same(got, want):
  assert got.keys() == want.keys()
  for name, (tokens, logp, finish) in want.items():
    assert got[name][0] == tokens, name
    assert got[name][2] == finish
    np.testing.assert_allclose(got[name][1], logp, atol=1e-5)


@pytest.mark.parametrize(
  'sizes',
  [
    {'slots': 1, 'chunk': 7},
    {'slots': 3, 'chunk': 1},
    {'slots': 3, 'chunk': 64, 'window': 104},
    {'slots': 8, 'chunk': 7, 'ahead': False},
    {'slots': 8, 'chunk': 3, 'fewest': 1, 'window': 8},  # fits all the time
    {'slots': 4, 'shape': (2, 1, 1)},
    {'slots': 8, 'shape': (2, 2, 2)},
    {'slots': 3, 'shape': (1, 1, 8)},
  ],
  ids=str,
)
def test_it_is_decoding_one_by_one(sizes):
  want = naive()
  assert {finish for _, _, finish in want.values()} == {'stop', 'length'}
  assert min(len(tokens) for tokens, _, _ in want.values()) == 1
  assert_same(run(make(**sizes)), want)
