"""Runs the batch at which a run has diverged once more, and looks for the row.

  python -m crjax.replay runs/sft_7b
  python -m crjax.replay runs/sft_7b --step=1200

The state is that of the newest checkpoint, which is from before the step. If
the batch is finite with it, the state went wrong in between; else every row is
tried by itself, and those that are not finite are shown. On the devices that
the run had; no state is written.
"""

from absl import app, flags, logging
import jax
from ml_collections import ConfigDict
import numpy as np

from crjax import branches, checkpoint, cluster, data, divergence, hf, train
from crjax.inputs import first_params, load_frozen, open_inputs, parse_flags
from crjax.sharding import gather, make_mesh, put

FORMS = {'sft': data.Examples, 'grpo': branches.Batch}
PRESENT = {'sft': 'segment_BT', 'grpo': 'group_BT'}  # 0 where padding is.
SHOWN_CHARS = 300


def run(workdir, step=None) -> list[int]:
  """Prints what the batch of `step` does; the rows that are at fault.

  Raises FileNotFoundError if the run kept no such batch, or no checkpoint.
  """
  c = ConfigDict(hf.read_json(f'{workdir}/config.json'))
  step, why, batch = divergence.kept(workdir, step, FORMS[c.task])
  tok, cfg, load = open_inputs(c)
  mesh = make_mesh(c.mesh)
  with jax.set_mesh(mesh):
    measure = make_measure(c, cfg, load, mesh)
    print(f'replay: step {step} had {why}')
    whole = measure(batch)
    print('\n'.join(f'  {k} {v:.6g}' for k, v in whole.items()))
    if is_finite(whole):
      print(
        'replay: the batch is finite by the state of that checkpoint: the steps'
        ' in between have spoilt the state. Lower config.lr or config.max_norm'
      )
      return []
    size = len(batch.tokens_BT)
    # A batch of one row, many times, is finite if and only if that row is.
    alone = lambda i: jax.tree.map(lambda x: np.repeat(x[[i]], size, 0), batch)
    bad = [i for i in range(size) if not is_finite(measure(alone(i)))]
  for i in bad:
    tokens_T = batch.tokens_BT[i][getattr(batch, PRESENT[c.task])[i] > 0]
    text = tok.decode(tokens_T.tolist())[:SHOWN_CHARS]
    print(f'replay: row {i} is not finite by itself: {text!r}')
  print(f'replay: {len(bad)} of {size} rows are at fault')
  return bad


def make_measure(c, cfg, load, mesh):
  """batch -> the metrics of an update from the newest checkpoint, as floats."""
  grpo = c.task == 'grpo'
  # Of SFT only the learning rate depends on the number, and is not used.
  updates = c.steps * c.minibatches if grpo else 1
  optimizer, rate = train.make_optimizer(c, updates=updates)
  scalars = train.state_scalars(c) if grpo else ()
  _, abstract = train.abstract_state(c, cfg, optimizer, mesh, scalars)
  with checkpoint.open_manager(c.workdir, keep=None) as manager:
    found = checkpoint.restore(manager, abstract)
  if found is None:
    raise FileNotFoundError(f'{c.workdir} has no checkpoint to start from')
  state, _ = found
  print(f'replay: from the checkpoint of step {int(gather(state["step"]))}')
  frozen = load_frozen(c, cfg, load, mesh)
  kept = first_params(c, cfg, load, mesh) if grpo and c.kl_coef else None

  @jax.jit
  def metrics(state, frozen, reference, batch):
    if not grpo:
      update = train.sft_update(c, cfg, optimizer, rate, frozen=frozen)
    else:
      score = train.policy_score(c, cfg)
      update = train.make_policy_update(
        c, mesh, score, optimizer, rate, frozen, reference
      )
    found = update(state, batch)[1]
    found.pop('lr')
    return found

  return lambda batch: gather(metrics(state, frozen, kept, put(mesh, batch)))


def is_finite(metrics) -> bool:
  return all(np.isfinite(metrics[name]) for name in divergence.FIRST)


def define_flags():
  flags.DEFINE_integer('step', None, 'Default: the last one that was kept.')
  flags.DEFINE_bool('distributed', False, 'Join the other processes of a pod.')


def main(argv):
  logging.set_verbosity(logging.WARNING)  # Orbax tells a lot at INFO.
  if len(argv) != 2:
    cluster.refuse('replay: give one run directory')
  cluster.begin(flags.FLAGS.distributed)
  with cluster.inputs('replay'):
    run(argv[1], flags.FLAGS.step)


if __name__ == '__main__':
  define_flags()
  app.run(main, flags_parser=parse_flags)
