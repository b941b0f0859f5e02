"""One table between our parameters and theirs, read in both directions."""

import math
import re

import jax

# Ours -> (theirs, 'their axes -> our axes'). `{}` is the layer.
LAYER = 'model.layers.{}.'
TABLE = {
  'embed_VD': ('model.embed_tokens.weight', 'V D -> V D'),
  'lm_head_VD': ('lm_head.weight', 'V D -> V D'),
  'final_norm/scale': ('model.norm.weight', 'D -> D'),
  'layers/pre_attn/scale': (LAYER + 'input_layernorm.weight', 'D -> D'),
  'layers/pre_mlp/scale': (
    LAYER + 'post_attention_layernorm.weight',
    'D -> D',
  ),
  'layers/attn/q_DNH': (
    LAYER + 'self_attn.q_proj.weight',
    '(N H) D -> D N H',
  ),
  'layers/attn/k_DKH': (
    LAYER + 'self_attn.k_proj.weight',
    '(K H) D -> D K H',
  ),
  'layers/attn/v_DKH': (
    LAYER + 'self_attn.v_proj.weight',
    '(K H) D -> D K H',
  ),
  'layers/attn/o_NHD': (
    LAYER + 'self_attn.o_proj.weight',
    'D (N H) -> N H D',
  ),
  'layers/attn/qb_NH': (LAYER + 'self_attn.q_proj.bias', '(N H) -> N H'),
  'layers/attn/kb_KH': (LAYER + 'self_attn.k_proj.bias', '(K H) -> K H'),
  'layers/attn/vb_KH': (LAYER + 'self_attn.v_proj.bias', '(K H) -> K H'),
  'layers/attn/q_norm/scale': (LAYER + 'self_attn.q_norm.weight', 'H -> H'),
  'layers/attn/k_norm/scale': (LAYER + 'self_attn.k_norm.weight', 'H -> H'),
  'layers/mlp/gate_DF': (LAYER + 'mlp.gate_proj.weight', 'F D -> D F'),
  'layers/mlp/up_DF': (LAYER + 'mlp.up_proj.weight', 'F D -> D F'),
  'layers/mlp/down_FD': (LAYER + 'mlp.down_proj.weight', 'D F -> F D'),
}


def rows(cfg) -> list[str]:
  """The rows of TABLE that a config has."""
  absent = [
    (cfg.tied, 'lm_head_VD'),
    (not cfg.qkv_bias, 'b_'),
    (not cfg.qk_norm, '_norm/scale'),
  ]
  has = lambda ours: (
    not any(
      off and part in ours.removeprefix('final_norm/') for off, part in absent
    )
  )
  return [ours for ours in TABLE if has(ours)]


def names(theirs: str, L: int) -> list[str]:
  return [theirs.format(i) for i in range(L)] if '{}' in theirs else [theirs]


def their_names(ours: str, cfg) -> list[str]:
  """The names of a parameter's tensors: one, or one a layer."""
  return names(TABLE[ours][0], cfg.L)


def groups(axes: str) -> list[str]:
  """The letters of each of their axes: '(N H) D -> D N H' -> ['N H', 'D']."""
  left = axes.split(' -> ')[0]
  return [group.strip('()') for group in re.findall(r'\(.*?\)|\w', left)]


def their_shape(axes: str, cfg) -> tuple[int, ...]:
  """The shape that a checkpoint stores a tensor of these axes in."""
  known = dict(sizes(axes, cfg))
  return tuple(
    math.prod(known[letter] for letter in group.split())
    for group in groups(axes)
  )


def their_shapes(cfg) -> dict[str, tuple[int, ...]]:
  """{name: shape} of every tensor of a checkpoint."""
  return {
    theirs: their_shape(TABLE[ours][1], cfg)
    for ours in rows(cfg)
    for theirs in their_names(ours, cfg)
  }


def sizes(axes: str, cfg):
  """The axis sizes that a rearrangement needs, as a hashable tuple."""
  size = lambda letter: cfg.lora.rank if letter == 'A' else getattr(cfg, letter)
  return tuple(
    (letter, size(letter)) for letter in axes.split(' -> ')[1].split()
  )


def reverse(axes: str) -> str:
  return ' -> '.join(reversed(axes.split(' -> ')))


def flatten(params) -> dict:
  leaves, _ = jax.tree.flatten_with_path(params)
  return {'/'.join(k.key for k in path): x for path, x in leaves}


def unflatten(flat) -> dict:
  tree = {}
  for path, x in flat.items():
    *parents, last = path.split('/')
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = x
  return tree
