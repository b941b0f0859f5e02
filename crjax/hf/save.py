"""Checkpoints out: one tensor at a time is gathered and written."""

import functools
import os
import pathlib
import shutil

import einops
import jax
import numpy as np

from crjax import files
from crjax.hf import config, source, tensors
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


def save(
  out,
  cfg,
  params,
  *,
  source_dir=None,
  dtype=None,
  limit=None,
  check=None,
  report=None,
):
  """Writes a directory or bucket prefix that Transformers and vLLM load.

  Every process calls, the first one writes; see `write` for what a failure
  leaves.

  Args:
    out: directory or URL.
    cfg: the Config of `params`.
    params: numpy or jax arrays, layers stacked.
    source_dir: directory whose config, generation config and tokenizer are
      carried over; None derives all from `cfg`.
    dtype: a key of DTYPES for every tensor; None keeps the dtypes that
      `source.remember` noted in `source_dir`, else it is float32.
    limit: bytes of a file; None is SHARD_BYTES, or, where no dtype is given
      either, the files that were noted.
    check: (what was written, {tensor: dtype}) -> what is wrong with it, ''
      for nothing; called before it is called done.
    report: called with (bytes done, bytes in all).

  Raises:
    ValueError: parameters that do not fit, or `check` found something.
  """
  flat = flatten(params)
  if flat.keys() != set(rows(cfg)):
    raise ValueError(f'parameters {sorted(flat)} do not fit {cfg}')
  noted = source.read_layout(source_dir).get('tensors', {})
  plan = make_plan(cfg, noted, dtype, limit)
  origin = {
    theirs: (ours, layer if '{}' in TABLE[ours][0] else None)
    for ours in rows(cfg)
    for layer, theirs in enumerate(their_names(ours, cfg))
  }

  def read(tensor):
    ours, layer = origin[tensor.name]
    axes = TABLE[ours][1]
    return fetch(flat[ours], layer, axes, sizes(axes, cfg), tensor.dtype)

  beside = describe(cfg, source_dir, plan, keep=bool(noted) and dtype is None)
  write(out, plan, read, beside, check=check, report=report)


def make_plan(cfg, noted, dtype, limit):
  """Files and dtypes of the tensors of `cfg`; see `save` and tensors.plan."""
  kept = {
    name: tensors.DTYPES[code]
    for name, (_, code) in noted.items()
    if dtype is None
  }
  default = DTYPES[dtype or 'float32']
  whence = sorted(
    (layer, row, theirs, ours)
    for row, ours in enumerate(rows(cfg))
    for layer, theirs in enumerate(their_names(ours, cfg))
  )  # Layer by layer.
  planned = [
    tensors.Planned(
      theirs, kept.get(theirs, default), their_shape(TABLE[ours][1], cfg)
    )
    for _, _, theirs, ours in whence
  ]
  keep = dtype is None and limit is None
  layout = {name: file for name, (file, _) in noted.items() if keep}
  return tensors.plan(planned, limit=limit or SHARD_BYTES, layout=layout)


def describe(cfg, source_dir, plan, *, keep: bool) -> dict[str, bytes]:
  """{file: bytes} of all that stands beside the weights, config.json last.

  `keep` leaves a carried-over config as it is; else it names the new dtype.
  """
  found = {t.dtype.name for part in plan.values() for t in part}
  dtype = found.pop() if len(found) == 1 else 'float32'
  beside = {}
  if plan.keys() != {tensors.SINGLE}:
    beside[tensors.INDEX] = config.to_json(tensors.index(plan)).encode()
  if source_dir:
    beside |= source.carried(source_dir, source.CARRIED)
  known = pathlib.Path(source_dir or '') / source.CONFIG
  if not (source_dir and known.exists()):
    ours = source.new(cfg, source_dir, dtype)
    as_bytes = {k: config.to_json(x).encode() for k, x in ours.items()}
    last = as_bytes.pop(source.CONFIG)
    return beside | as_bytes | {source.CONFIG: last}
  before = config.read_json(known)
  now = config.like(before, cfg, None if keep else dtype)
  same = now == before
  last = known.read_bytes() if same else config.to_json(now).encode()
  return beside | {source.CONFIG: last}


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


def write(out, plan, read, beside, *, check=None, report=None):
  """The weights and every file beside them.

  A local directory is written under a hidden name beside `out` and renamed when
  it was found right; until then, and if anything fails, what was there stays.
  (Between the two renames of `replace` a kill leaves it under its own hidden
  name.) A bucket has no renames: there the last file of `beside` comes last, it
  goes first when a model is replaced, and it goes again if anything fails, so
  that what is left does not load.

  Args:
    out: directory or URL.
    plan: see tensors.plan.
    read: Planned -> its array on the host; a collective.
    beside: {file: bytes}; the last one is what makes a directory a model.
    check: see `save`.
    report: see `save`.
  """
  writes, local = jax.process_index() == 0, not files.remote(out)
  final = os.fspath(out).rstrip('/')
  draft = str(hidden(final, 'draft')) if local else final
  counted = _counted(read, plan, report if writes else None)
  try:
    if writes:
      _clear(draft, list(beside)[-1])
    for file, part in plan.items():
      if writes:
        tensors.write(f'{draft}/{file}', part, counted)
      else:
        for tensor in tensors.ordered(part):
          counted(tensor)  # The other half of a collective.
    if writes:
      for name, data in beside.items():
        with files.writer(f'{draft}/{name}') as file:
          file.write(data)
    wait('written')  # Every process reads what the first one wrote.
    dtypes = {t.name: t.dtype for part in plan.values() for t in part}
    if check and (difference := check(draft, dtypes)):
      raise ValueError(f'{out} was not written: {difference}')
    if writes and local:
      replace(pathlib.Path(draft), pathlib.Path(final))
  except BaseException:
    if writes and local:
      shutil.rmtree(draft, ignore_errors=True)
    elif writes:
      files.remove(f'{draft}/{list(beside)[-1]}')
    raise
  wait('done')


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


def _clear(draft, last):
  """Makes room; a bucket's earlier model stops being one first of all."""
  if files.remote(draft):
    names = files.listdir(draft)
    for name in sorted(names, key=lambda n: n not in (last, source.CONFIG)):
      files.remove(f'{draft}/{name}')
    return
  shutil.rmtree(draft, ignore_errors=True)
  pathlib.Path(draft).mkdir(parents=True)


def hidden(path, what) -> pathlib.Path:
  """A name of our own beside a directory: .NAME.crjax-draft."""
  path = pathlib.Path(path)
  return path.with_name(f'.{path.name}.crjax-{what}')


def replace(new, path):
  """Renames directory `new` to `path`; what was there goes away after it."""
  old = hidden(path, 'old')
  shutil.rmtree(old, ignore_errors=True)
  if path.exists():
    os.replace(path, old)
  os.replace(new, path)
  shutil.rmtree(old, ignore_errors=True)
