"""The engine gives what decoding each request alone would give."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crjax import engine, model, sampling, tokenizer
from crjax.engine import Knobs, Request
from crjax.sharding import make_mesh, replicate

CFG = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)
PARAMS = jax.jit(model.init, static_argnums=0)(CFG, jax.random.key(0))
STOPS = (1, 2)
LENGTH = 40  # of a row, prompt included
KNOBS = [Knobs(), Knobs(temperature=0.0), Knobs(0.7, 0.9, 12, 0.02)]
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(3, CFG.V, n).tolist() for n in (1, 11, 2, 9, 5, 3, 7)]


def request(question, rollout):
  most = 3 + 5 * ((question + rollout) % 5)
  return Request(
    PROMPTS[question],
    question,
    rollout,
    KNOBS[rollout],
    least=question % 3,
    most=1 if question == 3 else most,
    # This one ends at once, whatever is drawn.
    stop_ids=range(3, 7) if question == 5 else (),
  )


OF_Q = ('q_DNH', 'qs_NH')  # int8, and their scale
REQUESTS = [request(q, r) for q in range(len(PROMPTS)) for r in range(3)]


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
  with jax.set_mesh(served.mesh):
    key = put_key(served.mesh, seed)
    with jax.transfer_guard('disallow'):  # Of what is not announced.
      found = engine.stream(served, params, requests, key=key, **kwargs)
      yield from found


def put_key(mesh, seed):
  data = replicate(mesh, jax.random.key_data(jax.random.key(seed)))
  return jax.jit(jax.random.wrap_key_data)(data)


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


@pytest.mark.parametrize('seed', [1, 2, 3])
def test_every_seed_draws_anew_and_alike_whatever_the_slots(seed):
  few = run(make(slots=3), seed=seed)
  many = run(make(slots=8, chunk=7, ahead=False), seed=seed)
  assert_same(few, many)
  assert any(few[name][0] != naive()[name][0] for name in few)


def test_log_probs_are_the_trainers():
  asked = [r._replace(knobs=Knobs(1.0), least=0) for r in REQUESTS]
  score = jax.jit(
    functools.partial(model.score, CFG, PARAMS, dtype=jnp.float32)
  )
  done = run(make(), asked)
  for r in asked:
    tokens, logp, _ = done[r.question, r.rollout]
    row = [*r.tokens, *tokens]
    row_BT = np.pad(row, (0, LENGTH - len(row)))[None]
    want, _ = score(row_BT, np.arange(LENGTH)[None] < len(row))
    want = want[0, len(r.tokens) - 1 : len(row) - 1]
    np.testing.assert_allclose(logp, want, atol=1e-5)


def kept(p_V, knobs):
  """Tokens left by top-k, then the nucleus of what it leaves, and min-p."""
  order = np.argsort(-p_V)[: knobs.top_k]
  mass = np.cumsum(p_V[order]) / p_V[order].sum()
  order = order[: 1 + np.searchsorted(mass, knobs.top_p)]
  return [t for t in order if p_V[t] >= knobs.min_p * p_V.max()]


def test_log_probs_under_truncation_are_the_trainers_of_what_is_left():
  knobs, cut = KNOBS[2], 0
  asked = [r._replace(knobs=knobs, least=0) for r in REQUESTS]
  logits = jax.jit(functools.partial(whole_logits, CFG, PARAMS))
  done = run(make(), asked)
  for r in asked:
    tokens, logp, _ = done[r.question, r.rollout]
    row = [*r.tokens, *tokens]
    z_TV = np.asarray(logits(np.pad(row, (0, LENGTH - len(row)))), np.float64)
    for i, (token, got) in enumerate(zip(tokens, logp, strict=True)):
      z_V = z_TV[len(r.tokens) - 1 + i] / knobs.temperature
      p_V = np.exp(z_V - z_V.max())
      left = kept(p_V / p_V.sum(), knobs)
      cut += len(left) < min(knobs.top_k, CFG.V)
      assert token in left
      np.testing.assert_allclose(
        got, np.log(p_V[token] / p_V[left].sum()), atol=1e-5
      )
  assert cut  # Not by top-k alone.


def whole_logits(cfg, params, tokens_T):
  valid_BT = np.ones((1, len(tokens_T)), bool)
  x_BTD = model.forward(
    cfg, params, tokens_T[None], valid_BT, dtype=jnp.float32
  )
  return model.logits(params, x_BTD)[0]


def test_new_values_compile_nothing():
  made = make()
  run(made)
  before = engine.compiled(made[0])
  for i, knobs in enumerate((Knobs(0.3, 0.5, 3, 0.1), Knobs(0.0), Knobs(2.0))):
    asked = [
      r._replace(knobs=knobs, most=3 + i, least=1, stop_ids=(i,))
      for r in REQUESTS[i:]
    ]
    run(made, asked, seed=i)
  assert engine.compiled(made[0]) == before


def test_a_prompt_is_computed_once_for_its_neighbours():
  tally = collections.Counter()
  done = run(make(slots=3), tally=tally)
  # One token alone is left to the first step.
  assert tally['prefilled'] == sum(len(p) for p in PROMPTS if len(p) > 1)
  assert tally['tokens'] == sum(len(tokens) for tokens, _, _ in done.values())
  assert tally['requests'] == len(REQUESTS)
  assert tally['tokens'] <= tally['slot_steps'] == 3 * tally['steps']


def test_fewer_slots_and_columns_as_rows_end():
  tally, asked = collections.Counter(), []
  for i in range(8):  # One long row, seven short ones.
    asked.append(Request(PROMPTS[3], 20, i, most=31 if i == 0 else 2))
  made = make(slots=8, chunk=3, fewest=1, window=8)
  run(made, [r._replace(least=r.most) for r in asked], tally=tally)
  # Two chunks with eight slots before the host has seen the first.
  assert tally['slot_steps'] <= 2 * 8 * 3 + 31


def test_the_longest_go_first_and_groups_stay_together():
  expected = {0: (3, 9), 1: (20, 1), 2: (5, 5)}
  asked = [
    Request([5], q, r, expected=n)
    for q, lengths in expected.items()
    for r, n in enumerate(lengths)
  ]
  order = [(r.question, r.rollout) for r in engine.longest_first(asked)]
  assert order == [(1, 0), (1, 1), (0, 1), (0, 0), (2, 0), (2, 1)]


def test_pieces_come_while_others_wait_and_name_their_request():
  asked = [Request(PROMPTS[1], 30, r, most=14, tag=object()) for r in range(5)]
  asked = [r._replace(least=14) for r in asked]
  given = []

  def source():
    for r in asked:
      given.append(r)
      yield r
      yield None  # Nothing more for now.

  tags, most_given = [], 0
  for piece in pieces(make(slots=3, chunk=7), source()):
    tags.append(piece.request.tag)
    assert len(piece.tokens) == 7
    most_given = most_given or len(given)
  assert most_given < len(asked)
  assert collections.Counter(tags) == {r.tag: 2 for r in asked}


def test_a_cancelled_request_ends_and_the_others_do_not():
  gone = set()
  asked = [Request(PROMPTS[1], 31, r, most=29, least=29) for r in range(6)]
  want, got = run(make(), asked), {}
  for request, tokens, _, finish in pieces(
    make(), asked, cancelled=lambda r: r.rollout in gone
  ):
    got.setdefault(request.rollout, []).extend(tokens)
    gone.add(1)
    if finish:
      assert finish == ('cancelled' if request.rollout == 1 else 'length')
  for r, tokens in got.items():
    whole = want[31, r][0]
    assert tokens == (whole[: len(tokens)] if r == 1 else whole)
  assert 0 < len(got[1]) < 29


def test_a_text_may_end_a_completion_on_a_token(assets):
  tok = tokenizer.load(assets / 'weights' / 'stories260k-qwen2')
  ids = tok('Once upon a time, there was a girl. She', add_special_tokens=False)
  ids = ids['input_ids']
  for strings, want in (
    (['there'], 'Once upon a time, there'),
    (['no', 'a gi'], 'Once upon a time, there was a gi'),
    (['nowhere'], None),
  ):
    ends = engine.stop_strings(tok, strings)
    n = ends(ids)
    if want is None:
      assert n is None
      continue
    assert want in tok.decode(ids[:n]) and want not in tok.decode(ids[: n - 1])


def test_what_ends_a_completion_is_cut_there():
  def third(tokens):
    return 3 if len(tokens) >= 3 else None

  asked = [
    Request(PROMPTS[1], 32, r, most=20, least=20, ends=third if r else None)
    for r in range(4)
  ]
  want = run(make(), [r._replace(ends=None) for r in asked])
  for (_, r), (tokens, logp, finish) in run(make(), asked).items():
    n, end = (3, 'stop') if r else (20, 'length')
    assert (tokens, finish) == (want[32, r][0][:n], end)
    assert len(logp) == n


def test_weights_are_not_copied():
  """Nor do they move: all that runs here is under a transfer guard."""
  big = dataclasses.replace(CFG, D=256, F=1024, H=64)  # Weights, little else.
  mesh = make_mesh((1, 1, 1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    params = jax.eval_shape(lambda: model.init(big, jax.random.key(0)))
    copy = jax.eval_shape(lambda p: model.unstack(p, jnp.float32), params)
    made = engine.make(big, mesh, slots=4, length=32, chunk=4)
    cache, rows = jax.eval_shape(made.fresh, 4, 32, jnp.dtype('float32'))
    keep_B = jax.ShapeDtypeStruct((4,), bool)
    lowered = made.advance.lower(copy, cache, rows, keep_B)
  memory = lowered.compile().memory_analysis()
  size = lambda tree: sum(x.size * 4 for x in jax.tree.leaves(tree))
  assert memory.temp_size_in_bytes < size(copy) / 10
  assert memory.alias_size_in_bytes >= size(cache)  # Donated, not doubled.


@functools.partial(jax.jit, static_argnums=0)
def all_logits(cfg, params, tokens_BT):
  x_BTD, _ = model.prefill(cfg, params, tokens_BT)
  return model.logits(params, x_BTD)


def test_int8_weights_are_half_as_large_and_nearly_as_good():
  cfg = dataclasses.replace(CFG, V=512, D=64, F=128, N=4, H=16, qk_norm=True)
  params = jax.jit(model.init, static_argnums=0)(cfg, jax.random.key(1))
  tokens_BT = RNG.integers(0, 512, (8, 24))
  size = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree['layers']))
  copies, logits = {}, {}
  for dtype in (jnp.float32, jnp.bfloat16, jnp.int8):
    copies[dtype] = jax.jit(model.unstack, static_argnums=1)(params, dtype)
    logits[dtype] = np.asarray(all_logits(cfg, copies[dtype], tokens_BT))
  assert size(copies[jnp.int8]) < 0.55 * size(copies[jnp.bfloat16])
  q, scale = (copies[jnp.int8]['layers'][0]['attn'][n] for n in OF_Q)
  w = copies[jnp.float32]['layers'][0]['attn']['q_DNH']
  assert np.abs(q * scale - w).max() <= 0.501 * np.max(scale)
  error = lambda d: np.abs(logits[d] - logits[jnp.float32]).std()
  # Rounding to 127 steps a channel: a relative error under 1 %.
  assert error(jnp.int8) < 0.03 * logits[jnp.float32].std()
  logp = lambda d: np.asarray(jax.nn.log_softmax(logits[d]))
  gap = logp(jnp.int8) - logp(jnp.float32)
  assert np.abs((np.exp(logp(jnp.float32)) * gap).sum(-1)).mean() < 1e-3


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tokens': []}, 'field "tokens" is empty'),
    ({'tokens': [32]}, r'token 32 is outside the vocabulary, 0\.\.31'),
    ({'most': 0}, 'least=0, most=0'),
    ({'least': 9, 'most': 8}, 'least=9, most=8'),
    ({'tokens': [3] * 39, 'most': 2}, 'exceed length=40'),
    ({'stop_ids': range(5)}, 'more than 4 stop_ids'),
  ],
)
def test_what_cannot_be_served_is_named(changes, message):
  with pytest.raises(ValueError, match=f'question 7: .*{message}'):
    run(make(), [Request([3], 7, most=4)._replace(**changes)])
