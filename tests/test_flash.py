"""The kernels of other platforms; einsums on a CPU are the reference."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from crjax import flash, model
from crjax.attention import attend, visible
from crjax.sharding import make_mesh
from tests.conftest import ROOT

B, T, N, K, H = 2, 256, 4, 2, 32
SEGMENTS = np.zeros((B, T), np.int32)
SEGMENTS[0, :90], SEGMENTS[0, 90:201] = 1, 2
SEGMENTS[1] = 1


def inputs():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return draw(B, T, N, H), draw(B, K, T, H), draw(B, K, T, H)


def value_and_gradients(f):
  """Padding is left out: what is computed for it is never read."""
  on_BT = jnp.asarray(SEGMENTS > 0)[..., None, None]
  loss = lambda *args: (jnp.where(on_BT, f(*args), 0.0) ** 2).sum()
  y_BTNH = jnp.where(on_BT, f(*inputs()), 0.0)
  return y_BTNH, *jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*inputs())


def test_splash_is_the_reference():
  """Pallas interpreted; the heads are narrower than a lane of the TPU."""
  segment_BT = jnp.asarray(SEGMENTS)
  mask_BTS = visible(jnp.arange(T), segment_BT, segment_BT)
  want = value_and_gradients(lambda q, k, v: attend(q, k, v, mask_BTS))
  got = value_and_gradients(
    lambda q, k, v: flash.splash(q, k, v, segment_BT, interpret=True)
  )
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())


def test_a_cpu_has_no_kernel():
  cfg = model.Config(V=8, L=1, D=8, F=8, N=N, K=K, H=H)
  with jax.set_mesh(make_mesh((8, 1, 1))):
    assert flash.find(cfg, 8, T, jnp.bfloat16) is None
  assert flash.find(cfg, 8, T, jnp.bfloat16) is None


FOR_TPU = """
import json
import jax, jax.numpy as jnp
from jax.experimental import topologies
from crjax import hf, model, sft
from crjax.sharding import make_mesh, tree_shardings
import optax
devices = topologies.get_topology_desc(
  platform='tpu', topology_name='v5e:2x2'
).devices
cfg = model.Config(V=1024, L=2, D=256, F=512, N=4, K=2, H=64)
mesh = make_mesh((1, 2, 2), devices)
shapes = jax.eval_shape(lambda: model.init(cfg, jax.random.key(0)))
of = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
params = jax.tree.map(of, shapes, tree_shardings(shapes, mesh))
rows = jax.ShapeDtypeStruct((4, 1024), jnp.int32)
def loss(params, tokens, segment):
  return model.fused_loss(
    sft.nll, cfg, params, tokens, segment, segment[:, 1:] > 0,
    dtype=jnp.bfloat16, remat='full',
  )[0]
with jax.set_mesh(mesh):
  compiled = jax.jit(jax.grad(loss)).lower(params, rows, rows).compile()
text = compiled.as_text()
print(json.dumps({'kernels': text.count('tpu_custom_call')}))
"""


@pytest.mark.slow
def test_the_kernel_is_in_a_program_for_tpus():
  if not importlib.util.find_spec('libtpu'):
    pytest.skip('no libtpu here: pip install libtpu==0.0.42.* (jax 0.10.2)')
  env = os.environ | {
    'TPU_SKIP_MDS_QUERY': '1',
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
  }
  done = subprocess.run(
    [sys.executable, '-c', FOR_TPU],
    cwd=ROOT,
    env=env,
    text=True,
    capture_output=True,
  )
  assert done.returncode == 0, done.stderr
  found = json.loads(done.stdout.splitlines()[-1])
  assert found['kernels'] >= 2  # Forward, and backward in one.
