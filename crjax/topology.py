"""Devices that this machine does not have, good for compiling and no more.

A compiler needs no device: XLA's own, as libtpu and the CUDA plugin carry them,
compile on any machine for the topology that they are told, and report the
memory, the kernels and the collectives that the real run would have. Names:

  v5e:4x4  v5p:2x2x1  v6e:2x4   a TPU slice, chips along each axis of its torus
  h200  h200x8                  one or several NVIDIA H200 of one machine
  cpu  cpu8                     simulated devices of this machine
"""

import importlib.metadata
import importlib.util
import math
import os
import re
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

GB = 1 << 30


class Chip(NamedTuple):
  """What one device can do at most, by its vendor's sheet."""

  flops: float  # a second, dense bfloat16
  bandwidth: float  # bytes a second of its memory
  memory: float  # bytes that a program may use
  link: float  # bytes a second to its neighbours, one ring, one way


# cloud.google.com/tpu/docs: what XLA leaves of 16, 95 and 32 GB, and 4 links of
# 45, 6 of 90 and 4 of 90 GB/s. nvidia.com: 141 GB, of which JAX takes 95 %,
# NVLink 4. A CPU has no sheet: `measure` asks it.
CHIPS = {
  'v5e': Chip(197e12, 819e9, 15.75 * GB, 90e9),
  'v5p': Chip(459e12, 2765e9, 95.7 * GB, 180e9),
  'v6e': Chip(918e12, 1640e9, 31.25 * GB, 180e9),
  'h200': Chip(989e12, 4800e9, 133 * GB, 450e9),
}
TPU_PLATFORM = {
  'TPU_SKIP_MDS_QUERY': '1',  # No metadata server to ask.
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-16',
}
H200 = """
gpu_device_info {
  name: "NVIDIA H200" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024 threads_per_warp: 32
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560
  clock_rate_ghz: 1.98 device_memory_size: 149000000000
  device_address_bits: 64 pcie_bandwidth: 64000000000
  driver_version: "13.0.0" runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0" dnn_version: "9.12.0"
}
platform_name: "CUDA" device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 12 patch: 0 }
runtime_version { major: 13 minor: 0 patch: 0 }
"""
HOPPER, CUDNN = (9, 0), 91200  # As above.


class Topology(NamedTuple):
  name: str
  chip: Chip
  devices: list


class MissingCompiler(ImportError):
  """The package that compiles for a target is not importable."""


def parse(name: str):
  """`v5e:4x4` -> ('v5e', (4, 4)); `h200x8` -> ('h200', (8,)).

  Raises ValueError that lists what there is.
  """
  tpu = re.fullmatch(r'(v5e|v5p|v6e):(\d+(?:x\d+){1,2})', name)
  other = re.fullmatch(r'(h200)(?:x(\d+))?|(cpu)(\d+)?', name)
  if tpu:
    return tpu[1], tuple(map(int, tpu[2].split('x')))
  if other:
    return other[1] or other[3], (int(other[2] or other[4] or 1),)
  raise ValueError(
    f'topology {name!r} is not known; have v5e:4x4, v5p:2x2x1, v6e:2x4 (any '
    'slice of these kinds), h200, h200x8, cpu, cpu8'
  )


def prepare(name: str):
  """Before JAX starts: no device but the CPU is wanted, and how many."""
  kind, shape = parse(name)
  jax.config.update('jax_platforms', 'cpu')
  counted = 'host_platform_device_count' in os.environ.get('XLA_FLAGS', '')
  if kind == 'cpu' and not counted:
    jax.config.update('jax_num_cpu_devices', shape[0])


def open(name: str) -> Topology:
  """The devices of a topology, which only a compiler can use.

  Raises ValueError for a name that is not known, MissingCompiler (an
  ImportError) with the command that installs what compiles for it.
  """
  kind, shape = parse(name)
  if kind == 'cpu':
    return _cpu(name, shape[0])
  chip = CHIPS[kind]
  if kind == 'h200':
    return Topology(name, chip, _cuda(shape[0]))
  return Topology(name, chip, _tpu(name, shape))


def _cpu(name, n):
  devices = jax.devices('cpu')
  if len(devices) < n:
    raise ValueError(
      f'{name}: JAX started with {len(devices)} CPU devices; set '
      f'XLA_FLAGS=--xla_force_host_platform_device_count={n}'
    )
  return Topology(name, measure(n), devices[:n])


def measure(n: int = 1, size: int = 1 << 26) -> Chip:
  """The sheet of one of `n` simulated devices: a share of what this machine
  does in float32, reading `size` numbers and multiplying matrices."""
  one = jax.devices('cpu')[0]
  with jax.default_device(one):
    x_S, w_SS = jnp.ones(size, jnp.float32), jnp.ones((1024, 1024))
    read = 4 * size / _seconds(jnp.sum, x_S)
    flops = 2 * 1024**3 / _seconds(jnp.matmul, w_SS, w_SS)
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return Chip(flops / n, read / n, total / n, read / n)


def _seconds(f, *args, tries=5):
  f = jax.jit(f)
  jax.block_until_ready(f(*args))
  best = math.inf
  for _ in range(tries):
    began = time.perf_counter()
    jax.block_until_ready(f(*args))
    best = min(best, time.perf_counter() - began)
  return best


def _tpu(name, shape):
  _need('libtpu', _required('libtpu'))
  from jax.experimental import topologies  # Slow, and of no use to most.

  for key, value in TPU_PLATFORM.items():
    os.environ.setdefault(key, value)
  chips = math.prod(shape)
  bounds = {}
  if chips == 1:
    bounds = {'chips_per_host_bounds': (1, 1, 1)}
  elif len(shape) == 2 and chips > 8:
    bounds = {'chips_per_host_bounds': (2, 2, 1)}
  found = topologies.get_topology_desc(
    platform='tpu', topology_name=name, **bounds
  )
  return list(found.devices)


def _cuda(n):
  version = jax.__version__
  _need(
    'jax_cuda13_plugin',
    f'jax-cuda13-plugin=={version} jax-cuda13-pjrt=={version}',
  )
  from jax.experimental import topologies  # As above.

  _answer_for_cudnn()
  found = topologies.get_topology_desc(
    platform='cuda',
    topology_name='NVIDIA H200',
    topology=f'1x1x{n}',
    target_config=H200,
  )
  return list(found.devices)


def _answer_for_cudnn():
  """Tracing cuDNN's attention asks the GPU of this machine what it can do;
  where there is none, the target above answers."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn

  if jax.default_backend() == 'gpu':
    return
  parts = lambda version: tuple(map(int, version.split('.')))
  cudnn.check_cudnn_version = lambda: CUDNN
  cudnn.check_compute_capability = lambda least: parts(least) <= HOPPER
  cudnn.is_cuda_compute_capability_equal = lambda this: parts(this) == HOPPER


def _need(module, packages):
  if importlib.util.find_spec(module) is None:
    raise MissingCompiler(
      f'compiling for this target needs {module}: pip install --no-deps '
      f"--target aot '{packages}', then set PYTHONPATH=aot (its own directory: "
      'JAX would look for devices if it found the package everywhere)'
    )


def _required(package):
  """The requirement that JAX itself states, `libtpu==0.0.42.*`."""
  stated = importlib.metadata.requires('jax') or []
  found = [r.split(';')[0].strip() for r in stated if r.startswith(package)]
  return found[0] if found else package
