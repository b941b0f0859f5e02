"""Low-rank adapters (Hu 2021): which leaves they are, and how they go away.

A target matrix W gets y = x W + (alpha / rank) (x a) b beside it. In a tree of
parameters the two are leaves next to W: q_DNH, q_lora_a_DA, q_lora_b_ANH. Only
they are trained: the tree is `split`, the optimizer sees one part.
"""

import dataclasses

import jax
import jax.numpy as jnp

TARGETS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')
MARK = '_lora_'


@dataclasses.dataclass(frozen=True)
class Lora:
  """Adapters of rank `rank` on the matrices named in `targets`."""

  rank: int
  alpha: float
  targets: tuple[str, ...] = TARGETS

  def __post_init__(self):
    if self.rank < 1:
      raise ValueError(f'lora.rank = {self.rank} must be 1 or more')
    object.__setattr__(self, 'targets', tuple(self.targets))  # Hashable.
    unknown = sorted(set(self.targets) - set(TARGETS))
    if unknown or not self.targets:
      raise ValueError(
        f'lora.targets = {self.targets!r}: have {TARGETS}, at least one'
      )

  @property
  def scale(self) -> float:
    return self.alpha / self.rank


def split(params):
  """(frozen, trained): the two parts of a tree; `join` puts them together."""
  return _part(params, False), _part(params, True)


def _part(node, adapters: bool):
  found = {}
  for name, x in node.items():
    if isinstance(x, dict):
      if inner := _part(x, adapters):
        found[name] = inner
    elif (MARK in name) == adapters:
      found[name] = x
  return found


def join(frozen, trained):
  """One tree with the leaves of both; None is a tree without any."""
  both = dict(frozen or {})
  for name, x in trained.items():
    inner = isinstance(x, dict) and name in both
    both[name] = join(both[name], x) if inner else x
  return both


def merge(params, lora: Lora | None):
  """The tree without adapters: W + scale a b, added in float32."""
  if lora is None:
    return params
  merged = {}
  for name, x in params.items():
    if isinstance(x, dict):
      merged[name] = merge(x, lora)
    elif MARK not in name:
      target, _, axes = name.partition('_')
      a, b = pair(params, target)
      merged[name] = x if a is None else _merged(x, axes, a, b, lora.scale)
  return merged


def pair(node, target: str):
  """The two adapters of a target beside it in a tree, or (None, None)."""
  find = lambda part: next(
    (x for k, x in node.items() if k.startswith(f'{target}{MARK}{part}_')), None
  )
  return find('a'), find('b')


def _merged(w, axes, a, b, scale):
  """W + scale a b for a matrix of these axes, layers stacked or not."""
  layers = 'L' * (w.ndim - len(axes))
  read = axes[: a.ndim - len(layers) - 1]
  update = jnp.einsum(
    f'{layers}{read}A,{layers}A{axes[len(read) :]}->{layers}{axes}',
    a.astype(jnp.float32),
    b.astype(jnp.float32),
    precision=jax.lax.Precision.HIGHEST,
  )
  return (w.astype(jnp.float32) + scale * update).astype(w.dtype)
