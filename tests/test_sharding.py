import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from crjax import sharding


def test_a_name_carries_its_axes():
  assert sharding.suffix('q_DNH') == 'DNH'
  assert sharding.suffix('scale') == ''
  assert sharding.suffix('lm_head') == ''


def test_specs_come_from_names_and_stacked_axes_stay_whole():
  mesh = sharding.make_mesh((2, 2, 2))
  tree = {
    'embed_VD': np.zeros((8, 4)),
    'layers': {'q_DNH': np.zeros((3, 4, 2, 8)), 'scale': np.zeros((3, 4))},
  }
  got = jax.tree.map(lambda s: s.spec, sharding.tree_shardings(tree, mesh))
  assert got['embed_VD'] == P('tensor', 'fsdp')
  assert got['layers']['q_DNH'] == P(None, 'fsdp', 'tensor', None)
  assert got['layers']['scale'] == P(None, None)


def test_decode_weights_are_whole_over_fsdp():
  mesh = sharding.make_mesh((1, 4, 2))
  got = sharding.tree_shardings(
    {'q_DNH': np.zeros((4, 2, 8))}, mesh, sharding.DECODE_WEIGHTS
  )
  assert got['q_DNH'].spec == P(None, 'tensor', None)


def test_a_mesh_axis_that_does_not_divide_splits_another_dimension():
  specs = lambda tree, mesh, *rules: jax.tree.map(
    lambda s: s.spec,
    sharding.tree_shardings(tree, sharding.make_mesh(mesh), *rules),
  )
  layers = {'k_DKH': np.zeros((3, 16, 2, 8)), 'kb_KH': np.zeros((3, 2, 8))}
  got = specs(layers, (1, 2, 4))
  assert got['k_DKH'] == P(None, ('fsdp', 'tensor'), None, None)
  assert got['kb_KH'] == P(None, None, None)
  assert specs({'embed_VD': np.zeros((7, 6))}, (1, 4, 2))['embed_VD'] == P(
    None, 'tensor'
  )
  # Decoding reads a weight at every token: it is whole rather than gathered.
  got = specs(layers, (1, 2, 4), sharding.DECODE_WEIGHTS)
  assert got['k_DKH'] == P(None, None, None, None)


def test_a_large_parameter_that_cannot_be_split_is_named():
  tree = {'up_DF': jax.ShapeDtypeStruct((1025, 1025), np.float32)}
  with pytest.raises(ValueError, match=r"up_DF.*\(1025, 1025\).*8 .*'tensor'"):
    sharding.tree_shardings(tree, sharding.make_mesh((1, 1, 8)))


@pytest.mark.parametrize('shape', [(3, 1, 1), (2, 2), (-1, 3, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused(shape):
  with pytest.raises(ValueError, match=r'config\.mesh'):
    sharding.make_mesh(shape)


class Chip:
  """What JAX says of a TPU core in one of several slices."""

  platform, device_kind, core_on_chip = 'tpu', 'TPU of a test', 0

  def __init__(self, n):
    self.id, self.slice_index = n, n // 4
    self.process_index = n // 4
    self.coords = (n % 2, n // 2 % 2, 0)


@pytest.mark.parametrize('shape', [(2, -1, 1), (4, 2, 1), (2, 1, 4)])
def test_slices_are_data_parallel(shape):
  # JAX lists devices by process, which need not be slice by slice.
  chips = [Chip(n) for n in (3, 4, 0, 5, 1, 6, 2, 7)]
  mesh = sharding.make_mesh(shape, chips)
  rows = mesh.devices.reshape(2, -1)
  assert [{chip.slice_index for chip in row} for row in rows] == [{0}, {1}]
  assert {chip.id for chip in mesh.devices.flat} == set(range(8))
  assert mesh.axis_names == sharding.MESH_AXES


def test_what_would_cross_slices_is_refused():
  with pytest.raises(
    ValueError, match=r'2 slices.*config\.mesh, data.*it is 1'
  ):
    sharding.make_mesh((1, -1, 1), [Chip(n) for n in range(8)])


def test_put_and_gather_are_inverse_and_split_rows():
  mesh = sharding.make_mesh((4, 2, 1))
  tree = (np.arange(48).reshape(16, 3), np.arange(3), np.float32(2))
  there = sharding.put(mesh, tree)
  assert there[0].sharding.spec == P(('data', 'fsdp'))
  assert there[0].addressable_shards[0].data.shape == (2, 3)
  assert there[1].sharding.spec == P()  # 3 rows do not split 8 ways.
  jax.tree.map(np.testing.assert_array_equal, sharding.gather(there), tree)


def test_shard_without_a_mesh_is_the_identity_and_checks_the_rank():
  x_BT = np.zeros((2, 3))
  assert sharding.shard(x_BT, 'BT') is x_BT
  with pytest.raises(ValueError, match='BTD'):
    sharding.shard(x_BT, 'BTD')
