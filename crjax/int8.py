"""Matrices of a layer as int8, a scale an output channel: half of bf16's bytes.

Decoding reads every weight for every token, so that bytes are its time. `q_DNH`
gets a scale `qs_NH`: w is about q * scale, and the product is scaled, not the
weight. Embedding and head keep their precision.
"""

import jax.numpy as jnp

# The axes that a matrix sums over stand first in its name.
READ = {'q': 1, 'k': 1, 'v': 1, 'o': 2, 'gate': 1, 'up': 1, 'down': 1}


def quantize(layer):
  """A layer's parameters with int8 matrices and their float32 scales."""
  return {part: _quantize(weights) for part, weights in layer.items()}


def scale_name(name: str, written: str) -> str:
  return f'{name}s_{written}'


def _quantize(weights):
  out = {}
  for name, w in weights.items():
    stem, _, axes = name.rpartition('_')
    if stem not in READ or not axes.isupper():  # A bias, a norm.
      out[name] = w
      continue
    read = READ[stem]
    w = w.astype(jnp.float32)
    largest = jnp.abs(w).max(tuple(range(read)))
    scale = jnp.maximum(largest, 1e-30) / 127
    out[name] = jnp.round(w / scale).astype(jnp.int8)
    out[scale_name(stem, axes[read:])] = scale
  return out
