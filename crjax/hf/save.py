"""Checkpoints out: one tensor at a time is gathered and written."""

import functools
import os
import pathlib
import shutil

import einops
import jax
import numpy as np

from crjax import files, tokenizer
from crjax.hf import config, tensors
from crjax.hf.table import (
  TABLE,
  flatten,
  reverse,
  rows,
  sizes,
  their_names,
  their_shape,
)
from crjax.sharding import gather, shard, wait

DTYPES = {
  'float32': tensors.DTYPES['F32'],
  'bfloat16': tensors.DTYPES['BF16'],
  'float16': tensors.DTYPES['F16'],
}
SHARD_BYTES = 5 << 30
LAYOUT = 'layout.json'  # In a run: which file held a tensor, in which dtype.
GENERATION = 'generation_config.json'
CARRIED = (GENERATION, *tokenizer.FILES)


def save(
  out,
  cfg,
  params,
  *,
  source=None,
  dtype=None,
  limit=SHARD_BYTES,
  check=None,
  report=None,
):
  """Writes a directory or bucket prefix that Transformers and vLLM load.

  A local directory appears whole or not at all, and replaces what was there. In
  a bucket, config.json comes last: without it nothing loads. Every process
  calls, the first one writes.

  Args:
    out: directory or URL.
    cfg: the Config of `params`.
    params: numpy or jax arrays, layers stacked.
    source: directory whose config, generation config, tokenizer and, where no
      `dtype` is given, layout of tensors over files are carried over. None:
      all are derived from `cfg`.
    dtype: a key of DTYPES for every tensor; None keeps the source's, float32
      where there is none.
    limit: bytes of a file, where the source's layout is not kept.
    check: (what was written, {tensor: dtype}) -> what is wrong with it, ''
      for nothing; called before it is called done.
    report: called with (bytes done, bytes in all).

  Raises:
    ValueError: `check` found something; nothing was written.
  """
  flat = flatten(params)
  if flat.keys() != set(rows(cfg)):
    raise ValueError(f'parameters {sorted(flat)} do not fit {cfg}')
  layout = read_layout(source) if dtype is None else {}
  whence = sorted(
    (i, row, theirs, ours)
    for row, ours in enumerate(rows(cfg))
    for i, theirs in enumerate(their_names(ours, cfg))
  )  # Layer by layer.
  default = DTYPES[dtype or 'float32']
  stored = {name: tensors.DTYPES[code] for name, (_, code) in layout.items()}
  plan = tensors.plan(
    [
      tensors.Planned(
        theirs, stored.get(theirs, default), their_shape(TABLE[ours][1], cfg)
      )
      for _, _, theirs, ours in whence
    ],
    limit=limit,
    layout={name: file for name, (file, _) in layout.items()},
  )
  origin = {theirs: (ours, i) for i, _, theirs, ours in whence}

  def read(tensor):
    ours, layer = origin[tensor.name]
    theirs, axes = TABLE[ours]
    layer = layer if '{}' in theirs else None
    return fetch(flat[ours], layer, axes, sizes(axes, cfg), tensor.dtype)

  described = _described(cfg, source, plan)
  write(out, plan, read, source, described, check=check, report=report)


def read_layout(source) -> dict:
  """{tensor: [file, dtype code]} of a directory that `remember` made, or {}."""
  path = pathlib.Path(source or '') / LAYOUT
  return config.read_json(path) if source and path.exists() else {}


def remember(checkpoint, path, tokenizer_dir=None):
  """Keeps in `path` what an export carries over from a checkpoint.

  `tokenizer_dir` replaces the checkpoint's own tokenizer.
  """
  path = pathlib.Path(path)
  path.mkdir(parents=True, exist_ok=True)
  for name in ('config.json', *CARRIED):
    if (file := checkpoint.place.path / name).exists():
      shutil.copy(file, path / name)
  if tokenizer_dir:
    tokenizer.copy(tokenizer_dir, path)
  stored = checkpoint.tensors.values()
  layout = {t.name: [os.path.basename(t.file), t.code] for t in stored}
  config.write_json(path / LAYOUT, layout)


def remember_new(cfg, path, tokenizer_dir):
  """The same for a model that starts from nothing."""
  tokenizer.copy(tokenizer_dir, path)
  for name, value in _new(cfg, tokenizer_dir).items():
    config.write_json(pathlib.Path(path) / name, value)


def _new(cfg, tokenizer_dir, dtype='float32') -> dict:
  """{file: JSON} that describe a model which no checkpoint describes."""
  ids, ends = token_ids(tokenizer_dir) if tokenizer_dir else ({}, {})
  return {
    'config.json': config.write(cfg) | {'dtype': dtype} | ids,
    GENERATION: ids | ends,
  }


def fetch(x, layer, axes, sizes, dtype):
  """One tensor in their axes and `dtype` on the host, from wherever it is."""
  if isinstance(x, np.ndarray):
    x = x if layer is None else x[layer]
    return einops.rearrange(x, reverse(axes)).astype(dtype)
  return gather(_slice(x, layer, axes, sizes, dtype))


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _slice(x, layer, axes, sizes, dtype):
  """Whole on every device, so that the first process has all of it."""
  x = x if layer is None else jax.lax.dynamic_index_in_dim(x, layer, 0, False)
  x = einops.rearrange(x, reverse(axes), **dict(sizes)).astype(dtype)
  return shard(x, '-' * x.ndim)


def _described(cfg, source, plan) -> dict:
  """{file: JSON} of the files that are not copied as they are."""
  found = {t.dtype.name for part in plan.values() for t in part}
  dtype = found.pop() if len(found) == 1 else 'float32'
  described = pathlib.Path(source or '') / 'config.json'
  if not (source and described.exists()):
    return _new(cfg, source, dtype)
  known = config.read_json(described)
  ours = config.like(known, cfg, dtype)
  return {} if ours == known else {'config.json': ours}


def write(out, plan, read, source, described, *, check=None, report=None):
  """The weights and every file beside them; see `save`.

  Args:
    plan: see tensors.plan.
    read: Planned -> its array on the host; a collective.
    source: directory whose CARRIED files are copied.
    described: {file: JSON} that is written beside them.
  """
  writes, local = jax.process_index() == 0, not files.remote(out)
  final = os.fspath(out).rstrip('/')
  draft = f'{final}.tmp' if local else final
  counted = _counted(read, plan, report if writes else None)
  try:
    if writes:
      _clear(draft)
    for file, part in plan.items():
      if writes:
        tensors.write(f'{draft}/{file}', part, counted)
      else:
        for tensor in tensors.ordered(part):
          counted(tensor)  # The other half of a collective.
    if writes:
      _write_small(draft, plan, source, described)
    wait('export')  # Every process reads what the first one wrote.
    dtypes = {t.name: t.dtype for part in plan.values() for t in part}
    if check and (difference := check(draft, dtypes)):
      if writes and not local:
        files.remove(f'{draft}/config.json')
      raise ValueError(f'{out} was not written: {difference}')
    if writes and local:
      replace(pathlib.Path(draft), pathlib.Path(final))
  finally:
    if writes and local:  # There if something failed.
      shutil.rmtree(draft, ignore_errors=True)
  wait('exported')


def _counted(read, plan, report):
  """`read` that reports the bytes it has read."""
  total = sum(t.nbytes for part in plan.values() for t in part)
  done = 0

  def counted(tensor):
    nonlocal done
    x = read(tensor)
    done += tensor.nbytes
    if report:
      report(done, total)
    return x

  return counted


def _clear(draft):
  """Makes room; a bucket's earlier model stops being one first of all."""
  if files.remote(draft):
    names = files.listdir(draft)
    for name in sorted(names, key=lambda n: n != 'config.json'):
      files.remove(f'{draft}/{name}')
    return
  shutil.rmtree(draft, ignore_errors=True)
  pathlib.Path(draft).mkdir(parents=True)


def _write_small(draft, plan, source, described):
  if len(plan) > 1:
    described = {tensors.INDEX: tensors.index(plan)} | described
  whole = {name: config.to_json(x).encode() for name, x in described.items()}
  for name in ('config.json', *CARRIED) if source else ():
    if name not in whole and (file := pathlib.Path(source) / name).exists():
      whole[name] = file.read_bytes()
  for name in sorted(whole, key=lambda name: name == 'config.json'):
    with files.writer(f'{draft}/{name}') as file:
      file.write(whole[name])


def replace(new, path):
  """Renames directory `new` to `path`; what was there goes away after it."""
  old = path.with_name(f'{path.name}.old')
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    os.replace(path, old)
  os.replace(new, path)
  shutil.rmtree(old, ignore_errors=True)


def token_ids(tokenizer_dir):
  """(bos, eos and pad ids, all end ids) as fields, from the tokenizer.

  Generation ends at the end of a turn or of the text, as training samples do.
  """
  tok = tokenizer.load(tokenizer_dir)
  ids = {
    'bos_token_id': tok.bos_token_id,
    'eos_token_id': tok.eos_token_id,
    'pad_token_id': tok.pad_token_id,
  }
  ends = list(tokenizer.stop_ids(tok))
  ids = {k: v for k, v in ids.items() if v is not None}
  return ids, {'eos_token_id': ends} if ends else {}
