"""A checkpoint of a run as a Hugging Face directory, checked before it is done.

  python -m crjax.export --workdir=runs/smoke/grpo --out=runs/smoke/grpo/export

The directory is written, read back, and compared with the parameters it came
from: weights, logits, a greedy continuation and the tokenizer. A difference
removes it and fails. `--out` may be an earlier export, which is then replaced;
a directory that holds anything else is left alone.
"""

import pathlib
import re
import shutil
import sys

from absl import app, flags
import jax
import jax.numpy as jnp
import numpy as np

from crjax import checkpoint, hf, model, sampling, tokenizer

CONTINUED = 16  # tokens of the greedy comparison
PROBE = [
  {'role': 'system', 'content': tokenizer.SYSTEM},
  {'role': 'user', 'content': "def f(x):\n    return x + '!'"},
]


def export(workdir, out, *, step=None, dtype='float32') -> int:
  """Writes and verifies `out`; returns the step of its checkpoint.

  Raises ValueError with the difference if what was written does not read back
  as what was meant; `out` is then gone, and an earlier export of that name
  stays as it was.
  """
  workdir, out = pathlib.Path(workdir), pathlib.Path(out)
  if foreign := not_exported(out):
    raise ValueError(
      f'{out} is not an export (it holds {foreign[:3]}); choose another --out'
    )
  step, params = checkpoint.restore_params(workdir, step)
  described = hf.read_json(workdir / 'config.json')
  if 'model' not in described:
    raise ValueError(f'{workdir}/config.json lacks the field "model"')
  cfg = hf.config_from_hf(described['model'])
  stored = jax.tree.map(
    lambda x: x.astype(hf.DTYPES[dtype]).astype(np.float32), params
  )
  draft = out.with_name(f'{out.name}.draft')
  source = workdir / 'tokenizer'
  try:
    hf.save(draft, cfg, params, tokenizer_dir=source, dtype=dtype)
    if difference := compare(draft, cfg, stored, source):
      raise ValueError(f'{out} was not written: {difference}')
    hf.replace(draft, out)
  finally:
    shutil.rmtree(draft, ignore_errors=True)  # There if something failed.
  return step


def not_exported(out) -> list[str]:
  """The names in `out`, or its own, that no export has written.

  A run directory has a config.json too: only the whole list tells them apart.
  """
  if not out.exists():
    return []
  if not out.is_dir():
    return [out.name]
  known = re.compile(r'model(-\d+-of-\d+)?\.safetensors(\.index\.json)?')
  written = {'config.json', 'generation_config.json', *tokenizer.FILES}
  ours = lambda p: (
    p.is_file() and (p.name in written or known.fullmatch(p.name))
  )
  return sorted(p.name for p in out.iterdir() if not ours(p))


def compare(path, cfg, params, tokenizer_dir) -> str:
  """What differs between a directory and these parameters; '' for nothing."""
  read_cfg, read = hf.load(path)
  if read_cfg != cfg:
    return f'config.json reads {read_cfg}, not {cfg}'
  flat, read_flat = hf.flatten(params), hf.flatten(read)
  for name, x in flat.items():
    if not np.array_equal(x, read_flat[name]):
      return f'{name} reads back differently'
  tok, read_tok = tokenizer.load(tokenizer_dir), tokenizer.load(path)
  prompt = tokenizer.encode_prompt(tok, PROBE)
  if tokenizer.encode_prompt(read_tok, PROBE) != prompt:
    return 'the tokenizer reads back differently'
  probe = make_probe(cfg, prompt)
  logits, tokens = jax.device_get(probe(params))
  read_logits, read_tokens = jax.device_get(probe(read))
  if not np.array_equal(logits, read_logits):
    return f'logits differ by {np.abs(logits - read_logits).max():.2g}'
  if not np.array_equal(tokens, read_tokens):
    return f'greedy continuation {read_tokens}, not {tokens}'
  return ''


def make_probe(cfg, prompt):
  """Compiles params -> (logits_TV of the prompt, CONTINUED greedy tokens)."""
  tokens_BT = jnp.array([prompt], jnp.int32)
  valid_BT = jnp.ones_like(tokens_BT, bool)

  @jax.jit
  def probe(params):
    x_BTD = model.forward(cfg, params, tokens_BT, valid_BT, dtype=jnp.float32)
    rolled = sampling.sample(
      cfg,
      model.unstack(params, jnp.float32),
      tokens_BT,
      valid_BT,
      jnp.zeros(1, jnp.int32),
      jax.random.key(0),
      0.0,
      rollouts=1,
      steps=CONTINUED,
      stop_ids=(),
      pad_id=0,
    )
    return model.logits(params, x_BTD)[0], rolled.tokens_BT[0]

  return probe


def define_flags():
  flags.DEFINE_string('workdir', None, 'A run of crjax.train.', required=True)
  flags.DEFINE_string('out', None, 'The directory to write.', required=True)
  flags.DEFINE_integer('step', None, 'Default: the newest checkpoint.')
  flags.DEFINE_enum('dtype', 'float32', sorted(hf.DTYPES), 'Stored as.')


def main(_):
  f = flags.FLAGS
  try:
    step = export(f.workdir, f.out, step=f.step, dtype=f.dtype)
  except (ValueError, OSError) as error:
    sys.exit(f'export: {error}')
  print(f'export: step {step} of {f.workdir} in {f.out}, verified')


if __name__ == '__main__':
  define_flags()
  app.run(main)
