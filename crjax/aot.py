"""Compiles for devices that may not be here, and reads what came out."""

import contextlib
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import re
import time
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from crjax import files, hlo, roofline
from crjax.sharding import ACTIVATIONS, WEIGHTS, fit, tree_shardings

EFFICIENCY = 0.6, 0.9  # Of a sheet's rates: usual, and the best ever seen.
# What a remembered program is of, beside itself.
COMPILERS = 'jaxlib', 'libtpu', 'jax-cuda13-plugin', 'jax-cuda13-pjrt'
FLAGS = 'XLA_FLAGS', 'LIBTPU_INIT_ARGS'
READERS = hlo.__file__, roofline.__file__


class Program(NamedTuple):
  """One compiled program; memory and bytes are those of one device."""

  name: str
  memory: dict[str, int]  # arguments, results, scratch, peak
  flops: float  # of all devices, recomputation included
  traffic: float  # bytes through memory
  largest: int  # bytes of the largest array that is made anew
  collectives: list[hlo.Collective]
  kernels: dict[str, int]
  seconds: float  # that compiling took


class TooLarge(MemoryError):
  """The compiler refused: the program does not fit the device's memory."""

  def __init__(self, name, used):
    super().__init__(f'{name} needs {used / 2**30:.1f} GiB')
    self.name, self.used = name, used


def compile(name, f, *args, donate=(), kept=None) -> Program:
  """Compiles f for the devices that the arguments' shardings name.

  `args` are arrays or `jax.ShapeDtypeStruct`s; `donate` their numbers, where f
  is not jitted already. `kept` is a directory, for one target, that remembers
  what came out of the same program and compiler. Raises TooLarge where a
  compiler says so itself.
  """
  jitted = f if hasattr(f, 'trace') else jax.jit(f, donate_argnums=donate)
  traced = jitted.trace(*args)
  lowered = traced.lower()
  if not kept:
    return _compile(name, traced, lowered)
  path = pathlib.Path(kept) / f'{_key(lowered)}.json'
  if not path.exists():
    try:
      found = _compile(name, traced, lowered)._asdict()
    except TooLarge as error:
      found = {'refused': error.used}
    files.write_text(path, json.dumps(found))
  found = json.loads(path.read_text())
  if 'refused' in found:
    raise TooLarge(name, found['refused'])
  rows = [hlo.Collective(*row) for row in found['collectives']]
  return Program(**found | {'collectives': rows})


def _key(lowered) -> str:
  """Of all that decides what is found on a target."""
  said = [lowered.as_text()]
  for package in COMPILERS:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      said.append(f'{package} {importlib.metadata.version(package)}')
  said += [os.environ.get(name, '') for name in FLAGS]
  said += [pathlib.Path(f).read_text() for f in (__file__, *READERS)]
  return hashlib.sha256('\0'.join(said).encode()).hexdigest()[:32]


def _compile(name, traced, lowered) -> Program:
  began = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    used = re.search(r'Used ([\d.]+)([KMG]) of', str(error))
    if not used:
      raise
    unit = {'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30}[used[2]]
    raise TooLarge(name, float(used[1]) * unit) from error
  seconds = time.monotonic() - began
  computations, entry = hlo.parse(compiled.as_text())
  counts, fused = hlo.times(computations, entry)
  return Program(
    name=name,
    memory=memory(compiled),
    flops=roofline.count_flops(traced.jaxpr.jaxpr),
    traffic=hlo.traffic(computations, counts, fused),
    largest=hlo.largest(computations, counts, fused),
    collectives=hlo.collectives(computations, counts),
    kernels=dict(hlo.kernels(computations)),
    seconds=seconds,
  )


def memory(compiled) -> dict[str, int]:
  """Bytes a device: what goes in, what else comes out, what is between."""
  m = compiled.memory_analysis()
  results = m.output_size_in_bytes - m.alias_size_in_bytes
  return {
    'arguments': m.argument_size_in_bytes,
    'results': results,
    'scratch': m.temp_size_in_bytes,
    'peak': m.argument_size_in_bytes + results + m.temp_size_in_bytes,
  }


def times(program: Program, chip, devices: int) -> dict[str, float]:
  """Seconds at the chip's rates: of each part, and of a whole call.

  `least` overlaps all perfectly at 90 % of the rates, `usual` overlaps nothing
  at 60 %.
  """
  wire = sum(hlo.wire(c) * c.count for c in program.collectives)
  found = {
    'compute': program.flops / devices / chip.flops,
    'memory': program.traffic / chip.bandwidth,
    'links': wire / chip.link,
  }
  usual, best = EFFICIENCY
  return found | {
    'roofline': max(found.values()),
    'least': max(found.values()) / best,
    'usual': sum(found.values()) / usual,
  }


def placed(shapes, mesh, rules=WEIGHTS, *, strict=True):
  """Shapes with the shardings that their names say."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    tree_shardings(shapes, mesh, rules, strict=strict),
  )


def laid(x, axes: str, mesh):
  """A shape split over its axes as `sharding.shard` splits an activation."""
  fitting, _ = fit(axes, x.shape, mesh.shape, ACTIVATIONS)
  sharding = NamedSharding(mesh, PartitionSpec(*fitting))
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def rows(tree, mesh):
  """Shapes split over their rows, as `sharding.put` splits a batch."""
  return jax.tree.map(
    lambda x: laid(x, 'B' + '-' * (x.ndim - 1) if x.ndim else '', mesh), tree
  )


def whole(tree, mesh):
  """Shapes that every device holds in full."""
  return jax.tree.map(lambda x: laid(x, '-' * x.ndim, mesh), tree)


def held(tree) -> int:
  """Bytes of a tree of placed shapes on one device."""
  local = lambda x: math.prod(x.sharding.shard_shape(x.shape))
  return sum(local(x) * x.dtype.itemsize for x in jax.tree.leaves(tree))
