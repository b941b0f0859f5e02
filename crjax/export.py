"""A checkpoint of a run as a Hugging Face directory, checked before it is done.

  python -m crjax.export --workdir=runs/smoke/grpo --out=runs/smoke/grpo/export
  python -m crjax.export --workdir=runs/sft_7b --out=gs://bucket/sft_7b \\
      --dtype=bfloat16

The directory is written, read back, and compared with the parameters it came
from: every tensor bit for bit, logits, a greedy continuation and the tokenizer.
A difference removes it and fails. `--out` may be an earlier export, which is
then replaced; a directory that holds anything else is left alone.

Config, generation config, tokenizer, chat template and, without `--dtype`, the
dtypes and files of the tensors are those of the checkpoint that the run started
from. Of a LoRA run the adapters are merged into the weights, or, with
`--adapter`, written alone in the format of peft.
"""

import dataclasses
import functools
import pathlib
import re

from absl import app, flags, logging
from etils import epath
import jax
import jax.numpy as jnp
import numpy as np

from crjax import (
  checkpoint,
  cluster,
  files,
  hf,
  lora,
  metrics,
  model,
  sampling,
  tokenizer,
)
from crjax.inputs import parse_flags
from crjax.sharding import gather, make_mesh, tree_shardings

CONTINUED = 16  # tokens of the greedy comparison
MERGED_GAP = 1e-3  # of the largest logit: float32 sums in another order
PROBE = [
  {'role': 'system', 'content': tokenizer.SYSTEM},
  {'role': 'user', 'content': "def f(x):\n    return x + '!'"},
]


def export(
  workdir, out, *, mesh, step=None, dtype=None, limit=None, adapter=False
) -> int:
  """Writes and verifies `out`; returns the step of its checkpoint.

  Raises ValueError with the difference if what was written does not read back
  as what was meant; an earlier export of that local name then stays as it was.
  """
  workdir = epath.Path(workdir)
  if foreign := not_exported(out):
    raise ValueError(
      f'{out} is not an export (it holds {foreign[:3]}); choose another --out'
    )
  with jax.set_mesh(mesh):
    step, cfg, params = restore(workdir, step, mesh)
    source = files.locate(workdir / 'source').path
    if adapter:
      if cfg.lora is None:
        raise ValueError(f'{workdir} has no adapters; leave --adapter out')
      check = functools.partial(compare_adapter, cfg=cfg, params=params)
      base = hf.read_json(workdir / 'config.json')['model']
      hf.save_adapter(
        out, cfg, params, base=base, source_dir=source, check=check
      )
      return step
    merged = params
    if cfg.lora:
      merged = jax.jit(functools.partial(lora.merge, lora=cfg.lora))(params)
    check = functools.partial(
      compare,
      trained_cfg=cfg,
      params=params,
      merged=merged,
      source=source,
      mesh=mesh,
    )
    report = metrics.byte_report('export') if not jax.process_index() else None
    hf.save(
      out,
      cfg.base,
      merged,
      source_dir=source,
      dtype=dtype,
      limit=limit,
      check=check,
      report=report,
    )
  return step


def restore(workdir, step, mesh):
  """(step, Config, parameters on the mesh), adapters beside their base."""
  if not (workdir / 'config.json').exists():
    raise FileNotFoundError(
      f'{workdir}/config.json does not exist: --workdir must be the directory '
      'of a run of `python -m crjax.train`'
    )
  c = hf.read_json(workdir / 'config.json')
  if 'lora' not in c:
    raise ValueError(f'{workdir}/config.json lacks the field "lora"')
  cfg = hf.read_config(files.locate(workdir / 'source').path / 'config.json')
  if not c['lora']['rank']:
    shardings = tree_shardings(hf.abstract(cfg), mesh)
    step, params = checkpoint.restore_params(workdir, step, shardings)
    return step, cfg, params
  cfg = dataclasses.replace(cfg, lora=lora.Lora(**c['lora']))
  shardings = tree_shardings(lora.split(hf.abstract(cfg))[1], mesh)
  step, adapters = checkpoint.restore_params(workdir, step, shardings)
  found = hf.inspect(c['model'])
  if found.cfg != cfg.base:
    raise ValueError(f'{c["model"]} is no longer the model of {workdir}')
  return step, cfg, lora.join(hf.load(found, mesh), adapters)


def not_exported(out) -> list[str]:
  """The names in `out`, or its own, that no export has written.

  A run directory has a config.json too: only the whole list tells them apart.
  """
  if not files.remote(out) and pathlib.Path(out).is_file():
    return [pathlib.Path(out).name]
  weights = re.compile(
    r'(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?'
  )
  written = {'config.json', 'adapter_config.json', *hf.CARRIED}
  return [
    name
    for name in files.listdir(out)
    if name not in written and not weights.fullmatch(name)
  ]


def compare(path, dtypes, *, trained_cfg, params, merged, source, mesh) -> str:
  """What differs between a directory and what was meant; '' for nothing.

  Args:
    path: what was written.
    dtypes: {tensor: dtype it was stored in}.
    trained_cfg: Config of `params`, adapters included.
    params: the trainer's.
    merged: the same without adapters, before rounding.
    source: where the tokenizer came from.
    mesh: to load onto.
  """
  cfg = trained_cfg.base
  found = hf.inspect(path)
  if found.cfg != cfg:
    return f'config.json reads {found.cfg}, not {cfg}'
  read = hf.load(found, mesh)
  stored = jax.tree.map_with_path(
    lambda path, x: round_to(x, stored_dtypes(path, cfg, dtypes)), merged
  )
  same = jax.tree.map(same_bits, stored, read)
  for name, equal in hf.flatten(gather(same)).items():
    if not equal:
      return f'{name} reads back differently'
  tok, read_tok = tokenizer.load(source), tokenizer.load(found.place.path)
  prompt = tokenizer.encode_prompt(tok, PROBE)
  if tokenizer.encode_prompt(read_tok, PROBE) != prompt:
    return 'the tokenizer reads back differently'
  return compare_logits(trained_cfg, params, cfg, stored, read, prompt)


def compare_logits(trained_cfg, params, cfg, stored, read, prompt) -> str:
  """What differs between what was read and what was meant, as computed.

  What was stored must give the very logits and greedy tokens of what was meant.
  Beside the trainer's own parameters, in float32 and with adapters apart, only
  rounding may show, and is printed.
  """
  probe = make_probe(cfg, prompt)
  logits, tokens = gather(probe(stored))
  read_logits, read_tokens = gather(probe(read))
  if not np.array_equal(logits, read_logits):
    return f'logits differ by {np.abs(logits - read_logits).max():.2g}'
  if not np.array_equal(tokens, read_tokens):
    return f'greedy continuation {read_tokens}, not {tokens}'
  trained = gather(forward(trained_cfg, params, jnp.array([prompt]))[0])
  gap = np.abs(trained - logits).max() / np.abs(trained).max()
  print(f"export: off the trainer's largest logit by {gap:.1g} of it at most")
  exact = {x.dtype.name for x in jax.tree.leaves(stored)} == {'float32'}
  if exact and not gap <= MERGED_GAP:
    return f"the trainer's logits differ by {gap:.2g} of the largest"
  return '' if np.isfinite(gap) else 'the logits are not finite'


@functools.partial(jax.jit, static_argnums=0)
def forward(cfg, params, tokens_BT):
  """logits_BTV in float32."""
  valid_BT = jnp.ones_like(tokens_BT, bool)
  x_BTD = model.forward(cfg, params, tokens_BT, valid_BT, dtype=jnp.float32)
  return model.logits(params, x_BTD)


def make_probe(cfg, prompt):
  """Compiles params -> (logits_TV of the prompt, CONTINUED greedy tokens)."""
  tokens_BT = jnp.array([prompt], jnp.int32)

  @jax.jit
  def probe(params):
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    copy = model.unstack(params, jnp.float32)
    new_BT = sampling.greedy(cfg, copy, tokens_BT, CONTINUED)
    return forward(cfg, params, tokens_BT)[0], new_BT[0]

  return probe


def stored_dtypes(path, cfg, dtypes):
  """The dtypes that the tensors of one of our parameters were stored in."""
  ours = '/'.join(key.key for key in path)
  return tuple(dtypes[theirs] for theirs in hf.their_names(ours, cfg))


@functools.partial(jax.jit, static_argnums=1)
def round_to(x, kinds):
  """x in its stored dtype; float32 values where its layers have several."""
  if len(set(kinds)) == 1:
    return x.astype(kinds[0])
  bits = [
    jax.lax.optimization_barrier(x[i].astype(d)) for i, d in enumerate(kinds)
  ]
  return jnp.stack([layer.astype(x.dtype) for layer in bits])


@jax.jit
def same_bits(stored, read):
  """Whether they are equal to the bit: 0.0 and -0.0 differ."""
  width = {2: jnp.uint16, 4: jnp.uint32}[stored.dtype.itemsize]
  bits = lambda x: jax.lax.bitcast_convert_type(x.astype(stored.dtype), width)
  return (bits(stored) == bits(read)).all()


def compare_adapter(path, dtypes, *, cfg, params) -> str:
  """The same for adapters that were written alone, in float32."""
  read, want = hf.read_adapter(path, cfg), lora.split(params)[1]
  for name, x in hf.flatten(want).items():
    if not np.array_equal(gather(x), read[name]):
      return f'{name} reads back differently'
  return ''


def define_flags():
  flags.DEFINE_string('workdir', None, 'A run of crjax.train.', required=True)
  flags.DEFINE_string('out', None, 'The directory or URL.', required=True)
  flags.DEFINE_integer('step', None, 'Default: the newest checkpoint.')
  flags.DEFINE_enum(
    'dtype', None, sorted(hf.DTYPES), "Stored as. Default: as the source's."
  )
  flags.DEFINE_float(
    'shard_gb', None, "Of a file. Default: 5, or the source's files.", 1e-6
  )
  flags.DEFINE_bool('adapter', False, 'Write the adapters of a LoRA run alone.')
  flags.DEFINE_list('mesh', ['1', '-1', '1'], 'data,fsdp,tensor; -1: the rest.')
  flags.DEFINE_bool('distributed', False, 'Join the other processes of a pod.')


def main(_):
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot at INFO.
  f = flags.FLAGS
  cluster.begin(f.distributed)
  with cluster.inputs('export'):
    step = export(
      f.workdir,
      f.out,
      mesh=make_mesh(tuple(map(int, f.mesh))),
      step=f.step,
      dtype=f.dtype,
      limit=f.shard_gb and int(f.shard_gb * 1e9),
      adapter=f.adapter,
    )
  print(f'export: step {step} of {f.workdir} in {f.out}, verified')


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
