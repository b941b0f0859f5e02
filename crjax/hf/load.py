"""Checkpoints in: each tensor by byte ranges, into the slices of the devices.

The host holds a few tensors at a time, whatever the size of the model.
"""

import concurrent.futures
import functools
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from crjax import files, model
from crjax.hf import config, tensors
from crjax.hf.table import (
  TABLE,
  flatten,
  groups,
  rows,
  sizes,
  their_names,
  their_shapes,
  unflatten,
)
from crjax.sharding import suffix, tree_shardings

BLOCK = 16 << 20  # bytes read at a time where a device needs some columns
AHEAD_BYTES = 256 << 20  # Larger tensors are not read while another waits.
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'


class Checkpoint(NamedTuple):
  """A checkpoint whose headers were read and found to fit its config."""

  cfg: model.Config
  place: files.Place
  tensors: dict[str, tensors.Tensor]  # by their names; only those we need


def inspect(name) -> Checkpoint:
  """Reads config.json and the headers of a directory, URL or hub name.

  Raises FileNotFoundError or ValueError that names the file, the tensor, what
  was found and what was expected. No weights are read yet.
  """
  place = files.locate(name)
  has = lambda file: (place.path / file).exists()
  if has('adapter_config.json') and not has('config.json'):
    raise ValueError(
      f'{name} holds adapters alone; export that run without --adapter to load '
      'them merged into their base'
    )
  cfg = read_config(place.path / 'config.json')
  found = tensors.find(place)
  expected = their_shapes(cfg)
  if missing := sorted(expected.keys() - found.keys()):
    raise ValueError(
      f'{place.weights} lacks {len(missing)} tensors that config.json asks '
      f'for: {missing[:5]}'
    )
  if cfg.tied and HEAD in found:  # Stored all the same; `load` compares them.
    expected[HEAD] = expected[EMBEDDING]
  inert = lambda name: name.endswith('rotary_emb.inv_freq')
  unknown = [n for n in sorted(found.keys() - expected) if not inert(n)]
  if unknown:
    raise ValueError(
      f'{found[unknown[0]].file} holds unexpected tensors: {unknown[:5]}'
    )
  for name, shape in expected.items():
    tensor = found[name]
    if tensor.shape != shape:
      raise ValueError(
        f'{name} in {tensor.file}: shape {tensor.shape}, but config.json asks '
        f'for {shape}'
      )
    if tensor.code not in tensors.DTYPES:
      raise ValueError(
        f'{name} in {tensor.file}: dtype {tensor.code} is not supported; have '
        f'{sorted(tensors.DTYPES)} (quantised checkpoints are not)'
      )
  return Checkpoint(cfg, place, {name: found[name] for name in expected})


def read_config(path) -> model.Config:
  """The Config of a config.json; errors name the file."""
  found = config.read_json(path)
  try:
    return config.read(found)
  except ValueError as error:
    raise ValueError(f'{path}: {error}') from error


def load(checkpoint: Checkpoint, mesh, *, dtype=jnp.float32, report=None):
  """Parameters sharded over `mesh`, layers stacked, cast to `dtype`.

  Layer by layer: the bytes that the devices need are read into buffers of
  their own, and a donated update writes them into the stack on the device. The
  host holds a few tensors at a time, whatever the size of the model.

  Args:
    checkpoint: see `inspect`.
    mesh: where the parameters go; their names say how, see sharding.py.
    dtype: of the parameters; norm scales are float32 whatever it is.
    report: called with (bytes done, bytes in all) after each tensor.

  Raises:
    ValueError: a NaN or an infinity; names the file and the tensor.
  """
  cfg = checkpoint.cfg
  shardings = flatten(tree_shardings(abstract(cfg), mesh))
  kind = lambda ours: dtype if suffix(ours) else jnp.float32
  flat = {
    ours: _zeros(shape, kind(ours), shardings[ours])
    for ours, shape in _stacks(cfg).items()
  }
  work = _in_file_order(checkpoint)
  total = sum(tensor.nbytes for _, _, tensor in work)
  done, flags = 0, []
  raws = _ahead(
    [
      (t, functools.partial(_read, t, _raw_sharding(ours, t, shardings)))
      for ours, _, t in work
    ]
  )
  for (ours, layer, tensor), raw in zip(work, raws, strict=True):
    axes, sharding = TABLE[ours][1], shardings[ours]
    how = axes, sizes(axes, cfg), sharding
    flags.append(_finite(raw))
    if layer is None:
      flat[ours] = _settle(raw, kind(ours), *how)
    else:
      flat[ours] = _place(flat[ours], raw, layer, *how)
    # The next tensor is being read meanwhile; no more than that may pile up.
    jax.block_until_ready(flat[ours])
    done += tensor.nbytes
    if report:
      report(done, total)
  _check_finite(work, flags)
  _check_head(checkpoint, flat['embed_VD'], shardings)
  return unflatten(flat)


def _check_finite(work, flags):
  for (_, _, tensor), finite in zip(work, jax.device_get(flags), strict=True):
    if not finite:
      raise ValueError(
        f'{tensor.name} in {tensor.file} holds a NaN or an infinity: the '
        'checkpoint is damaged or its training diverged'
      )


def _check_head(checkpoint, embed_VD, shardings):
  """A tied model may store its head, but only the embedding once more."""
  head = checkpoint.tensors.get(HEAD)
  if head is None or not checkpoint.cfg.tied:
    return
  raw = _read(head, _raw_sharding('embed_VD', head, shardings))
  same = jax.jit(lambda a, b: (a.astype(b.dtype) == b).all())(raw, embed_VD)
  if not jax.device_get(same):
    raise ValueError(
      f'{HEAD} in {head.file} differs from {EMBEDDING}, but config.json says '
      'tie_word_embeddings = true; Transformers would use the stored head: set '
      'it to false to do the same'
    )


def abstract(cfg: model.Config):
  """Shapes of the float32 parameters."""
  return jax.eval_shape(functools.partial(model.init, cfg), jax.random.key(0))


def _in_file_order(checkpoint):
  """[(our name, layer or None, Tensor)], so that reads go forward."""
  work = [
    (ours, i if '{}' in TABLE[ours][0] else None, checkpoint.tensors[name])
    for ours in rows(checkpoint.cfg)
    for i, name in enumerate(their_names(ours, checkpoint.cfg))
  ]
  return sorted(work, key=lambda item: (item[2].file, item[2].start))


def _stacks(cfg):
  """{our name: shape} of the parameters that have a layer axis."""
  flat = flatten(abstract(cfg))
  return {k: x.shape for k, x in flat.items() if '{}' in TABLE[k][0]}


def _ahead(work):
  """Reads each (Tensor, read) of `work`, in a thread one ahead of its user.

  Not past a large tensor: two of them would be in memory at once.
  """
  small = lambda i: work[i][0].nbytes <= AHEAD_BYTES
  with concurrent.futures.ThreadPoolExecutor(1) as thread:
    coming = thread.submit(work[0][1])
    for i in range(1, len(work) + 1):
      item, coming = coming.result(), None
      if i < len(work) and small(i) and small(i - 1):
        coming = thread.submit(work[i][1])
      yield item
      del item
      if i < len(work) and coming is None:
        coming = thread.submit(work[i][1])


def _raw_sharding(ours, tensor, shardings):
  """How a tensor is split, in their axes, while it is read.

  In one process as it will be, so that nothing moves afterwards. Several
  processes each read a part of the rows, once in all; the devices exchange
  them (on a pod every host would otherwise read nearly the whole file).
  """
  sharding = shardings[ours]
  mesh, rows = sharding.mesh, tensor.shape[0]
  if jax.process_count() > 1:
    every = tuple(a for a in mesh.axis_names if mesh.shape[a] > 1)
    while every and rows % np.prod([mesh.shape[a] for a in every]):
      every = every[:-1]
    return NamedSharding(mesh, P(every or None))
  axes = TABLE[ours][1]
  letters = axes.split(' -> ')[1].split()
  # From the end: a stack has a layer axis more than the tensor.
  spec = dict(zip(letters[::-1], sharding.spec[::-1], strict=False))
  outer = [group.split()[0] for group in groups(axes)]
  return NamedSharding(mesh, P(*(spec[letter] for letter in outer)))


def _read(tensor, sharding):
  """A tensor as stored, on the devices of this process that need it."""
  where = sharding.addressable_devices_indices_map(tensor.shape)
  wanted = {_bounds(index, tensor.shape): None for index in where.values()}
  for bounds in wanted:
    shape = [stop - start for start, stop in bounds]
    wanted[bounds] = _aligned(shape, tensors.DTYPES[tensor.code])
  try:
    with files.Ranges(tensor.file) as file:
      _fill(file, tensor, wanted)
  except OSError as error:
    raise OSError(f'{tensor.name} cannot be read: {error}') from error
  arrays = [
    jax.device_put(wanted[_bounds(index, tensor.shape)], device)
    for device, index in where.items()
  ]
  return jax.make_array_from_single_device_arrays(
    tensor.shape, sharding, arrays
  )


def _fill(file, tensor, wanted):
  """Reads the rows that any buffer of `wanted` needs, each once."""
  dtype, row = tensors.DTYPES[tensor.code], tensor.nbytes // tensor.shape[0]
  whole = all(b[1:] == tuple((0, n) for n in tensor.shape[1:]) for b in wanted)
  if whole:
    for bounds, buffer in wanted.items():
      file.read_into(buffer.view(np.uint8), tensor.start + bounds[0][0] * row)
    return
  first = min(b[0][0] for b in wanted)
  last = max(b[0][1] for b in wanted)
  step = max(BLOCK // row, 1)
  block = np.empty((step, *tensor.shape[1:]), dtype)
  for start in range(first, last, step):
    part = block[: min(step, last - start)]
    file.read_into(part.view(np.uint8), tensor.start + start * row)
    for ((top, bottom), *columns), buffer in wanted.items():
      low, high = max(top, start), min(bottom, start + len(part))
      if low < high:
        cut = tuple(slice(*c) for c in columns)
        rest = part[(slice(low - start, high - start), *cut)]
        buffer[low - top : high - top] = rest


def _bounds(index, shape):
  """Slices as ((start, stop), ...), which can be a key."""
  return tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))


def _aligned(shape, dtype):
  """An uninitialised array that a CPU device takes over without a copy."""
  n = int(np.prod(shape)) * dtype.itemsize
  memory = np.empty(n + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + n].view(dtype).reshape(shape)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape, dtype, sharding):
  return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), sharding)


@jax.jit
def _finite(x):
  return jnp.isfinite(x).all()


@functools.partial(jax.jit, static_argnums=(3, 4, 5), donate_argnums=0)
def _place(stack, raw, layer, axes, sizes, sharding):
  """The stack with one layer written, in our axes and its own dtype."""
  x = einops.rearrange(raw, axes, **dict(sizes)).astype(stack.dtype)
  stack = jax.lax.dynamic_update_index_in_dim(stack, x, layer, 0)
  return jax.lax.with_sharding_constraint(stack, sharding)


def _settle(raw, dtype, axes, sizes, sharding):
  """A tensor without a layer axis; as it was read where that will do."""
  left, right = axes.split(' -> ')
  same = left == right and raw.dtype == dtype
  if same and raw.sharding.is_equivalent_to(sharding, raw.ndim):
    return raw
  return _rearranged(raw, dtype, axes, sizes, sharding)


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _rearranged(raw, dtype, axes, sizes, sharding):
  x = einops.rearrange(raw, axes, **dict(sizes)).astype(dtype)
  return jax.lax.with_sharding_constraint(x, sharding)
