"""Compiles for devices that may not be here, and reads what came out."""

import math
import re
import time
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from crjax import hlo, roofline
from crjax.sharding import ACTIVATIONS, WEIGHTS, fit, tree_shardings

EFFICIENCY = 0.6, 0.9  # Of a sheet's rates: usual, and the best ever seen.


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


def compile(name, f, *args, donate=()) -> Program:
  """Compiles f for the devices that the arguments' shardings name.

  `args` are arrays or `jax.ShapeDtypeStruct`s; `donate` their numbers, where f
  is not jitted already. Raises TooLarge where a compiler says so itself.
  """
  jitted = f if hasattr(f, 'trace') else jax.jit(f, donate_argnums=donate)
  traced = jitted.trace(*args)
  began = time.monotonic()
  try:
    compiled = traced.lower().compile()
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
