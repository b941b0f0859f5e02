import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import transformers

from crjax import data, hf, model, optim, sft, tokenizer
from crjax.examples import Example
from crjax.sharding import gather, make_mesh, on_host, put, tree_shardings

CFG = model.Config(V=32, L=2, D=16, F=24, N=4, K=2, H=8, tied=True)
LENGTH = 24


def found(n=16, seed=0):
  """Examples of 4 to 12 tokens."""
  rng = np.random.default_rng(seed)
  tokens = [rng.integers(0, CFG.V, rng.integers(4, 13)) for _ in range(n)]
  return [Example(x.astype(np.int32), len(x) // 2 - 1) for x in tokens]


def rows(some, *, packed=False, count=None):
  """A batch of these examples, filled up with empty rows."""
  split = data.pack(some, LENGTH) if packed else [[one] for one in some]
  split += [[]] * ((count or len(split)) - len(split))
  return data.lay_out(split, LENGTH, pad_id=0)


def build(optimizer, mesh=(1, 1, 1), *, cfg=CFG, **knobs):
  """(state, update) on the first devices of a mesh, from seed 0."""
  mesh = make_mesh(mesh, jax.devices()[: math.prod(mesh)])
  keep = {k: knobs.pop(k) for k in ('split', 'ema') if k in knobs}
  init = lambda: optim.init_state(
    optimizer, model.init(cfg, jax.random.key(0)), 0, **keep
  )
  shapes = jax.eval_shape(init)
  shardings = tree_shardings(shapes, mesh)
  if knobs.get('offload'):
    shardings |= {'opt': on_host(shapes['opt'], shardings['opt'])}
  knobs = {
    'frozen': None,
    'micro': 1,
    'dtype': jnp.float32,
    'remat': 'none',
    'ema': 0.5,
  } | knobs
  update = sft.make_update(cfg, optimizer, lambda step: 1e-2, **knobs)
  with jax.set_mesh(mesh):
    state = jax.jit(init, out_shardings=shardings)()

  def step(state, batch):
    with jax.set_mesh(mesh):
      return update(state, put(mesh, batch))

  return state, step


# Adam divides by the gradient's size, and so magnifies rounding near 0. The
# momentum of the first step is the gradient.
SGD = optax.sgd(1e-2, momentum=0.9)


def gradient(batch, *args, **knobs):
  """(gradient, metrics) of one step, on the host."""
  state, step = build(SGD, *args, **knobs)
  state, metrics = step(state, batch)
  return gather(state['opt'][0].trace), gather(metrics)


@pytest.fixture(scope='module')
def want():
  return gradient(rows(found()))


def assert_same(got, want):
  for a, b in zip(
    jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())
  for name in ('loss', 'entropy', 'grad_norm', 'completion_tokens'):
    assert got[1][name] == pytest.approx(want[1][name], rel=1e-5)


CASES = [  # mesh, packed, micro, remat, tokens of logits at a time
  ((1, 1, 1), True, 1, 'none', 2048),
  ((2, 1, 1), False, 4, 'dots', 7),
  ((8, 1, 1), True, 1, 'full', 16),
  ((1, 8, 1), False, 2, 'attention', 2048),
  ((1, 1, 2), True, 2, 'mlp', 5),
  ((2, 2, 2), True, 2, 'full', 1),
  ((1, 4, 2), False, 1, 'none', 16),
  ((1, 1, 1), True, 8, 'offload', 64),
]


@pytest.mark.parametrize(
  ('mesh', 'packed', 'micro', 'remat', 'chunk'), CASES, ids=str
)
def test_no_way_of_splitting_the_work_changes_the_gradient(
  want, mesh, packed, micro, remat, chunk
):
  batch = rows(found(), packed=packed, count=16)
  assert (batch.segment_BT.max() > 1) == packed
  got = gradient(batch, mesh, micro=micro, remat=remat, chunk=chunk)
  assert_same(got, want)


def test_a_head_of_its_own_splits_the_same_way():
  cfg = dataclasses.replace(CFG, tied=False)
  want = gradient(rows(found()), cfg=cfg)
  assert np.abs(want[0]['lm_head_VD']).max() > 0
  packed = rows(found(), packed=True, count=16)
  got = gradient(packed, (2, 2, 2), cfg=cfg, micro=2, chunk=9)
  assert_same(got, want)


def test_every_remat_policy_is_tried_above():
  assert {case[3] for case in CASES} == set(model.REMAT)


def test_only_completion_tokens_are_learnt(want):
  batch = rows(found())
  logp_BT, _ = model.score(
    CFG,
    model.init(CFG, jax.random.key(0)),
    batch.tokens_BT,
    batch.segment_BT > 0,
    dtype=jnp.float32,
  )
  mask_BT = batch.mask_BT[:, 1:]
  loss = -np.asarray(logp_BT)[mask_BT].mean()
  assert want[1]['loss'] == pytest.approx(loss, rel=1e-5)
  assert want[1]['completion_tokens'] == mask_BT.sum()


def test_a_first_token_is_never_foretold_from_another_example():
  """Even one that is marked as completion."""
  some = [one._replace(start=0) for one in found()]
  packed = rows(some, packed=True)
  assert_same(gradient(packed), gradient(rows(some)))


def test_bf16_compute_keeps_float32_state():
  state, step = build(SGD, dtype=jnp.bfloat16)
  state, metrics = step(state, rows(found()))
  kinds = {x.dtype for x in jax.tree.leaves((state['params'], state['opt']))}
  assert kinds == {np.dtype('float32')}
  exact = gradient(rows(found()))[1]['loss']
  assert metrics['loss'] == pytest.approx(exact, rel=0.05)


def test_the_state_is_updated_in_place():
  state, _ = build(optax.adam(1e-3))
  update = sft.make_update(
    CFG,
    optax.adam(1e-3),
    lambda step: 1e-3,
    frozen=None,
    micro=2,
    dtype=jnp.float32,
    remat='full',
  )
  compiled = update.func.lower(state, rows(found()), frozen=None).compile()
  size = sum(x.nbytes for x in jax.tree.leaves(state))
  assert compiled.memory_analysis().alias_size_in_bytes == size


ADAM = optax.adam(1e-2)


@pytest.fixture(scope='module')
def three_steps():
  return run(ADAM)


def run(optimizer, **knobs):
  """The state after three steps, on the host."""
  state, step = build(optimizer, micro=2, **knobs)
  for seed in range(3):
    state, _ = step(state, rows(found(seed=seed)))
  return state


def test_an_optimizer_whose_state_is_on_the_host_does_the_same(three_steps):
  state = run(ADAM, offload=True)
  kinds = {
    x.sharding.memory_kind for x in jax.tree.leaves(state['opt']) if x.ndim
  }
  assert kinds == {'pinned_host'}
  jax.tree.map(
    np.testing.assert_array_equal, gather(state), gather(three_steps)
  )


def test_a_mean_of_the_weights_follows_them():
  state, step = build(ADAM, micro=2, ema=0.5)
  start = gather(state['params'])
  state |= {'ema': state['params']}
  state = jax.tree.map(jnp.copy, state)  # Donated: no array twice.
  state, _ = step(state, rows(found()))
  mean = jax.tree.map(lambda a, b: (a + b) / 2, start, gather(state['params']))
  jax.tree.map(np.testing.assert_array_equal, gather(state['ema']), mean)


def test_split_masters_take_no_more_memory_and_learn_the_same():
  split, step = build(ADAM, split=True, dtype=jnp.bfloat16)
  whole, other = build(ADAM, dtype=jnp.bfloat16)
  size = lambda state, *names: sum(
    x.nbytes for name in names for x in jax.tree.leaves(state[name])
  )
  assert size(split, 'params', 'low') == size(whole, 'params')
  for seed in range(5):
    split, a = step(split, rows(found(seed=seed)))
    whole, b = other(whole, rows(found(seed=seed)))
    one, two = float(a['loss']), float(b['loss'])
    assert one == pytest.approx(two, rel=2e-3)  # bf16's own noise
  kinds = {x.dtype for x in jax.tree.leaves(split['low'])}
  assert kinds == {np.dtype('int16')}


def test_ten_steps_are_those_of_torch_and_transformers(smoke_data, tmp_path):
  cfg = model.Config(V=512, L=2, D=32, F=48, N=4, K=2, H=8, tied=True)
  params = gather(model.init(cfg, jax.random.key(0)))
  hf.save(tmp_path, cfg, params, source_dir=smoke_data / 'tokenizer')
  tok = tokenizer.load(smoke_data / 'tokenizer')
  batches = data.examples(
    smoke_data / 'sft_train.parquet',
    tok,
    batch=4,
    length=400,
    seed=0,
    pad_id=tok.pad_token_id,
    packed=True,
  )
  rate = optim.schedule(3e-3, name='cosine', warmup=3, steps=10)
  optimizer = optim.make(
    'adamw', rate, betas=(0.9, 0.95), weight_decay=0.1, max_norm=1.0
  )
  state, step = build(optimizer, cfg=cfg, micro=2)
  theirs = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=torch.float32
  )
  decayed = [p for p in theirs.parameters() if p.ndim > 1]
  plain = [p for p in theirs.parameters() if p.ndim == 1]
  adam = torch.optim.AdamW(
    [
      {'params': decayed, 'weight_decay': 0.1},
      {'params': plain, 'weight_decay': 0.0},
    ],
    betas=(0.9, 0.95),
  )
  for i in range(10):
    batch = next(batches)
    state, metrics = step(state, batch)
    for group in adam.param_groups:
      group['lr'] = float(rate(i))
    loss = torch_loss(theirs, batch)
    adam.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    adam.step()
    assert metrics['loss'] == pytest.approx(loss.item(), abs=1e-4)


def torch_loss(theirs, batch):
  """The mean over completion tokens, one example at a time."""
  total, count = 0.0, 0
  for tokens_T, mask_T, segment_T in zip(*batch, strict=True):
    for n in range(1, segment_T.max() + 1):
      ids = torch.tensor(tokens_T[segment_T == n][None], dtype=torch.long)
      on = torch.tensor(mask_T[segment_T == n][1:])
      logp = theirs(ids).logits[0, :-1].log_softmax(-1)
      of_targets = logp.gather(1, ids[0, 1:, None])[:, 0]
      total, count = total - of_targets[on].sum(), count + int(on.sum())
  return total / count


def test_numbers_are_written_while_the_next_step_runs():
  """And before a checkpoint, which a resumed run's log must reach up to."""
  events = []
  state, step = build(SGD)

  def update(state, batch):
    events.append('update')
    return step(state, gather(batch))

  def log(n, metrics, examples, *, tokens, slots, flops):
    events.append(n)
    assert isinstance(float(metrics['loss']), float)
    assert 0 < tokens < slots and flops > 0

  sft.run(
    state,
    iter([rows(found(seed=seed)) for seed in range(5)]),
    mesh=make_mesh((1, 1, 1), jax.devices()[:1]),
    update=update,
    count=lambda batch: sft.count(CFG, batch),
    log=log,
    save=lambda n, *_: events.append(f'save {n}'),
    due=lambda n: n in (0, 3, 5),
    steps=5,
  )
  assert events == [
    'save 0',
    *('update', 'update', 1, 'update', 2, 3, 'save 3'),
    *('update', 'update', 4, 5, 'save 5'),
  ]


def test_work_is_counted_by_what_sees_what():
  """Examples of 2 and 3 tokens in a row of 6: 3 + 6 pairs, not 15 or 21."""
  two, three = (Example(np.arange(n, dtype=np.int32), 1) for n in (2, 3))
  one = sft.count(CFG, data.lay_out([[two, three]], 6, 0))
  apart = sft.count(CFG, data.lay_out([[two], [three]], 6, 0))
  assert (one['tokens'], one['slots'], apart['slots']) == (5, 6, 12)
  assert one['flops'] == apart['flops']
  assert one['flops'] == model.train_flops(CFG, tokens=5, pairs=9, targets=3)
