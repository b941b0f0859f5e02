"""One letter per axis, everywhere: names, einsums, parameters and shardings.

  B batch     T query tokens   S key tokens    P prompt tokens   L layers
  D width     F mlp width      V vocabulary    Q questions       R rollouts
  N query heads   K key-value heads   G = N/K   H head dim   A adapter rank

A parameter's name ends in its axes (`q_DNH`), and that suffix *is* its sharding
annotation; a name without a suffix (norm scales, step counters) is replicated.
The shape of the mesh alone chooses data, FSDP or tensor parallelism: a mesh
axis of size 1 turns its rules into no-ops.
"""

import math
import pickle

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

MESH_AXES = ('data', 'fsdp', 'tensor')
TENSOR = {'N': 'tensor', 'K': 'tensor', 'F': 'tensor', 'V': 'tensor'}
WEIGHTS = TENSOR | {'D': 'fsdp'}
ACTIVATIONS = TENSOR | {'B': ('data', 'fsdp'), 'Q': ('data', 'fsdp')}
LARGE = 1 << 20  # elements a layer; smaller parameters may stay whole
# Adafactor's means over an axis: small, and no longer of the axes they name.
REDUCED = {'v_row', 'v_col'}
DECODE_WEIGHTS = TENSOR  # Gather D once per rollout, not once per token.


def make_mesh(shape, devices=None) -> Mesh:
  """A mesh over MESH_AXES; at most one entry of `shape` is -1, "the rest".

  Several TPU slices are split by the data axis: between them there is only the
  data centre's network, which its one sum of gradients a step can stand.

  Raises ValueError if the shape does not use exactly the devices there are, or
  would split another axis over slices.
  """
  devices = jax.devices() if devices is None else devices
  known = math.prod(s for s in shape if s > 0)
  sizes = tuple(len(devices) // known if s == -1 else s for s in shape)
  if len(sizes) != len(MESH_AXES) or math.prod(sizes) != len(devices):
    raise ValueError(
      f'mesh {tuple(shape)} over axes {MESH_AXES} needs {math.prod(sizes)} '
      f'devices but {len(devices)} are visible; set config.mesh so that the '
      'product matches (one entry may be -1)'
    )
  # Axes are Auto: constraints guide the compiler (the default is Explicit).
  auto = (AxisType.Auto,) * len(MESH_AXES)
  slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if slices == 1 or devices[0].platform != 'tpu':
    return jax.make_mesh(sizes, MESH_AXES, axis_types=auto, devices=devices)
  data, *inner = sizes
  if data % slices:
    raise ValueError(
      f'mesh {tuple(shape)} over {slices} slices: the first entry of '
      f'config.mesh, data, must be a multiple of {slices}; it is {data}'
    )
  grid = mesh_utils.create_hybrid_device_mesh(
    (data // slices, *inner),
    (slices, 1, 1),
    devices,
    allow_split_physical_axes=True,
  )
  return Mesh(grid, MESH_AXES, axis_types=auto)


def suffix(name: str) -> str:
  """`q_DNH` -> `DNH`; '' for a name that carries no axes."""
  axes = name.rpartition('_')[2] if '_' in name else ''
  return axes if axes.isupper() else ''


def spec(axes: str, rules=ACTIVATIONS) -> P:
  return P(*(rules.get(a) for a in axes))


def shard(x, axes: str, rules=ACTIVATIONS):
  """Constrains an array to its axes: shard(h_BTF, 'BTF'); no mesh, no-op."""
  if x.ndim != len(axes):
    raise ValueError(f'array of shape {x.shape} cannot carry the axes {axes!r}')
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  sizes = [_ways(mesh.shape, rules.get(a)) for a in axes]
  fitting = [
    rules.get(a) if n % ways == 0 else None  # An odd batch stays whole.
    for a, n, ways in zip(axes, x.shape, sizes, strict=True)
  ]
  return jax.lax.with_sharding_constraint(x, P(*fitting))


def tree_shardings(tree, mesh: Mesh, rules=WEIGHTS, *, strict=True):
  """A NamedSharding per leaf, read off the leaf's name; same tree structure.

  Leading axes that the name does not mention (stacked layers) stay whole. What
  the rules cannot split evenly is split over another of its axes (`fit`); if
  `strict`, a large leaf that stays whole all the same is an error that names
  it.
  """

  def one(path, x):
    axes = suffix(str(getattr(path[-1], 'key', '')))
    stacked = x.ndim - len(axes)
    reduced = {getattr(part, 'name', '') for part in path} & REDUCED
    if reduced or stacked < 0:
      return NamedSharding(mesh, P())
    shape = x.shape[stacked:]
    fitting, homeless = fit(axes, shape, mesh.shape, rules)
    if strict and homeless and math.prod(shape) > LARGE:
      raise ValueError(
        f'{jax.tree_util.keystr(path)}: axes {axes} of sizes {shape} cannot be '
        f'split {mesh.shape[homeless[0]]} ways over {homeless[0]!r}; change '
        'config.mesh'
      )
    return NamedSharding(mesh, P(*[None] * stacked, *fitting))

  return jax.tree.map_with_path(one, tree)


def on_host(tree, shardings):
  """The shardings of a tree in the host's memory; scalars stay."""
  one = lambda x, s: s.with_memory_kind('pinned_host') if x.ndim else s
  return jax.tree.map(one, tree, shardings)


def move(tree, space):
  """Arrays that have axes, in another memory space; inside of a jit."""
  put = lambda x: jax.device_put(x, space) if x.ndim else x
  return jax.tree.map(put, tree)


def fit(axes: str, shape, mesh_shape, rules):
  """(spec, mesh axes without a place) for a parameter of these axes.

  A mesh axis that does not divide the dimension its rule names (two key-value
  heads over four devices) joins the split of another dimension that has a rule,
  so that storage stays split. The computation gathers such a weight.
  """
  spec = [_names(rules.get(a)) for a in axes]
  ways = lambda names: math.prod(mesh_shape[a] for a in names)
  moving = []
  for i, n in enumerate(shape):
    if n % ways(spec[i]):
      moving += spec[i]
      spec[i] = ()
  homeless = []
  for name in moving:
    split = [
      i
      for i, n in enumerate(shape)
      if rules.get(axes[i]) and n % ways((*spec[i], name)) == 0
    ]
    if split:
      spec[split[0]] += (name,)
    elif mesh_shape[name] > 1:
      homeless.append(name)
  return [_entry(names) for names in spec], homeless


def put(mesh: Mesh, tree):
  """The named host-to-device crossing: numpy leaves -> arrays split over B.

  Every process holds the whole host batch and contributes its own slices. The
  leading axis is the batch; a leaf that it does not divide is replicated. What
  is on the devices already stays as it is.
  """

  def one(x):
    if isinstance(x, jax.Array):
      return x
    x = np.asarray(x)
    ways = _ways(mesh.shape, ACTIVATIONS['B'])
    rows = x.ndim and x.shape[0] % ways == 0
    sharding = NamedSharding(mesh, spec('B') if rows else P())
    return jax.make_array_from_callback(x.shape, sharding, lambda i: x[i])

  with jax.transfer_guard_host_to_device('allow'):
    return jax.tree.map(one, tree)


def replicate(mesh: Mesh, x):
  """The other crossing: one host value, whole on every device."""
  whole = NamedSharding(mesh, P())
  with jax.transfer_guard_host_to_device('allow'):
    return jax.make_array_from_callback(
      np.shape(x), whole, lambda i: np.asarray(x)[i]
    )


def gather(tree):
  """The device-to-host crossing; every process receives the whole arrays.

  Arrays that are whole on every device need no other process, hence no place
  in the queue behind what the devices were asked for since.
  """
  whole = all(x.is_fully_replicated for x in jax.tree.leaves(tree))
  if whole or jax.process_count() == 1:
    return jax.device_get(tree)
  from jax.experimental import multihost_utils  # Needs a distributed runtime.

  return multihost_utils.process_allgather(tree, tiled=True)


def wait(what: str):
  """Returns when every process is here."""
  if jax.process_count() > 1:
    from jax.experimental import multihost_utils  # As above.

    multihost_utils.sync_global_devices(what)


def all_processes(items: list) -> list:
  """The items of every process, one process after the other."""
  if jax.process_count() == 1:
    return items
  from jax.experimental import multihost_utils  # Needs a distributed runtime.

  text = np.frombuffer(pickle.dumps(items), np.uint8)
  sizes = multihost_utils.process_allgather(np.array(len(text)))
  padded = np.pad(text, (0, max(sizes) - len(text)))
  rows = multihost_utils.process_allgather(padded)
  whole = []
  for row, n in zip(rows, sizes, strict=True):
    whole += pickle.loads(row[:n].tobytes())
  return whole


def _ways(mesh_shape, axis) -> int:
  return math.prod(mesh_shape[a] for a in _names(axis))


def _names(axis) -> tuple[str, ...]:
  """The mesh axes of a rule: None, a name or several."""
  if axis is None:
    return ()
  return axis if isinstance(axis, tuple) else (axis,)


def _entry(names):
  """The inverse: what a PartitionSpec holds for a dimension."""
  return names if len(names) > 1 else (names[0] if names else None)
