"""LoRA adapters in the format of peft, which Transformers and vLLM load."""

import einops
import numpy as np

from crjax import tokenizer
from crjax.hf import config, source, tensors
from crjax.hf.save import DTYPES, fetch, write
from crjax.hf.table import TABLE, flatten, groups, names, sizes, their_shape
from crjax.lora import MARK

FILE = 'adapter_model.safetensors'
CONFIG = 'adapter_config.json'
PREFIX = 'base_model.model.'


def save_adapter(out, cfg, params, *, base: str, source_dir, check=None):
  """Writes adapter_config.json, adapter_model.safetensors and the tokenizer.

  Args:
    out: directory or URL; a local one appears whole or not at all.
    cfg: Config with `lora`.
    params: at least the adapters.
    base: name of the checkpoint that they were trained on.
    source_dir: directory whose tokenizer files are carried over.
    check: see `hf.save`.
  """
  flat = flatten(params)
  origin = {
    theirs: (flat[ours], layer, axes)
    for ours, pattern, axes in adapter_table(cfg)
    for layer, theirs in enumerate(names(pattern, cfg.L))
  }
  plan = {
    FILE: [
      tensors.Planned(name, DTYPES['float32'], their_shape(axes, cfg))
      for name, (_, _, axes) in origin.items()
    ]
  }

  def read(tensor):
    x, layer, axes = origin[tensor.name]
    return fetch(x, layer, axes, sizes(axes, cfg), tensor.dtype)

  beside = source.carried(source_dir, tokenizer.FILES)
  beside[CONFIG] = config.to_json(describe(cfg, base)).encode()
  write(out, plan, read, beside, check=check)


def adapter_table(cfg) -> list[tuple[str, str, str]]:
  """[(our name, their name, 'their axes -> our axes')] of a Config's adapters.

  Derived from the matrix: what it reads is the side of lora_A, what it writes
  that of lora_B.
  """
  found = []
  for ours, (theirs, axes) in TABLE.items():
    head, _, last = ours.rpartition('/')
    target, _, letters = last.partition('_')
    if target not in cfg.lora.targets or not letters:
      continue
    written, read = groups(axes)
    wrap = lambda group: f'({group})' if ' ' in group else group
    close = lambda group: group.replace(' ', '')
    name = PREFIX + theirs.removesuffix('weight')
    mark = f'{head}/{target}{MARK}'
    found += [
      (
        f'{mark}a_{close(read)}A',
        f'{name}lora_A.weight',
        f'A {wrap(read)} -> {read} A',
      ),
      (
        f'{mark}b_A{close(written)}',
        f'{name}lora_B.weight',
        f'{wrap(written)} A -> A {written}',
      ),
    ]
  return found


def read_adapter(path, cfg) -> dict:
  """{our name: numpy array} of an adapter directory, layers stacked.

  Raises ValueError naming the file and the tensor that is missing or misshapen.
  """
  found = tensors.header(f'{path}/{FILE}')
  read = {}
  for ours, pattern, axes in adapter_table(cfg):
    layers = []
    for name in names(pattern, cfg.L):
      if name not in found or found[name].shape != their_shape(axes, cfg):
        shape = found[name].shape if name in found else 'nothing'
        raise ValueError(
          f'{path}/{FILE}: {name} should be {their_shape(axes, cfg)}, found '
          f'{shape}'
        )
      x = tensors.read(found[name])
      layers.append(einops.rearrange(x, axes, **dict(sizes(axes, cfg))))
    read[ours] = np.stack(layers)
  return read


def describe(cfg, base: str) -> dict:
  """adapter_config.json."""
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': base,
    'r': cfg.lora.rank,
    'lora_alpha': cfg.lora.alpha,
    'target_modules': [f'{name}_proj' for name in cfg.lora.targets],
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
