"""What a step of GRPO looks like from the host, and when to worry.

`summarize` turns rewards and completions into numbers of one step, `describe`
adds what the sample table shows of each completion, and `alarms` reads the
numbers of the last steps. Thresholds and their sources: ALARMS.
"""

import collections
import math
import statistics

import numpy as np

from crjax.advantages import solved
from crjax.data import CANARY

ENTROPY_STEPS = 20  # An entropy that halves within so many steps is too fast.


def summarize(rewards_QR, adv_QR, rolled, rows):
  """Numbers of one batch: rewards, lengths, forms, where signal is.

  Args:
    rewards_QR: NaN where not judged.
    adv_QR: advantages.
    rolled: a `sampling.Rollout` on the host.
    rows: dicts of the completions, as `rewards.score` tells of them, with
      'row', 'kind', 'id' and 'reward'.
  """
  length_B = rolled.mask_BT.sum(1)
  judged_QR = ~np.isnan(rewards_QR)
  right_B = np.nan_to_num(rewards_QR).ravel() > 0
  probe = [row for row in rows if str(row['id']).startswith(CANARY)]
  verdicts = collections.Counter(row['verdict'] for row in rows)
  kinds = sorted({row['kind'] for row in rows})
  of_kind = lambda kind: [row['reward'] for row in rows if row['kind'] == kind]
  return {
    'reward': mean(rewards_QR[judged_QR]),
    'reward_std': float(np.std(rewards_QR[judged_QR])) if len(rows) else 0.0,
    'infra': float(1 - judged_QR.mean()),
    'format_rate': mean([row['format_ok'] for row in rows]),
    'right': mean([row['right'] for row in rows]),
    'right_typed': mean([row['typed'] for row in rows]),
    'canary_pass': mean([row['right'] for row in probe]),
    'advantage_abs': mean(np.abs(adv_QR)),
    'completion/length': float(length_B.mean()),
    'completion/length_max': int(length_B.max()),
    'completion/length_right': mean(length_B[right_B]),
    'completion/length_wrong': mean(length_B[~right_B]),
    'completion/truncated': float((~rolled.stopped_B).mean()),
    **solved(rewards_QR),
    'groups/with_signal': int((adv_QR != 0).any(1).sum()),
    **{f'verdict/{k}': n / len(rows) for k, n in sorted(verdicts.items())},
    **{f'reward/{kind}': mean(of_kind(kind)) for kind in kinds},
  }


def describe(rows, adv_QR, rolled):
  """Adds to each row its advantage, its tokens and what became of them."""
  adv_B = adv_QR.ravel()
  for row in rows:
    b = row['row']
    mask_T = rolled.mask_BT[b]
    row['advantage'] = float(adv_B[b])
    row['tokens'] = rolled.tokens_BT[b][mask_T].tolist()
    row['length'] = int(mask_T.sum())
    row['truncated'] = not rolled.stopped_B[b]
    row['logp'] = float(rolled.logp_BT[b][mask_T].sum())


def mean(values) -> float:
  """Of what is not NaN; 0 where there is nothing."""
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  return float(values.mean()) if len(values) else 0.0


# (name, what is wrong given the lines of the last steps or None, what to do).
# Lines are those of metrics.jsonl, the newest last.


def above(name, limit, steps=1):
  """Wrong where `name` was above `limit` in each of the last `steps`."""

  def wrong(lines):
    last = [_number(line, name) for line in lines[-steps:]]
    if len(last) == steps and min(last) > limit:
      return f'{name} is {last[-1]:.3g}, above {limit:g}'
    return None

  return wrong


def below(name, limit):
  """Wrong where `name` is below `limit`."""

  def wrong(lines):
    value = _number(lines[-1], name, math.inf)
    return f'{name} is {value:.3g}, below {limit:g}' if value < limit else None

  return wrong


def dead_groups(lines):
  """Hardly a group with signal: the model learns from too few questions."""
  line = lines[-1]
  none, every = (_number(line, f'groups/{k}') for k in ('none', 'all'))
  if none + every <= 0.7:
    return None
  return f'{none:.0%} of the groups are all wrong and {every:.0%} all right'


def gradient_jump(lines):
  """A gradient ten times the usual one precedes many a divergence."""
  before = [_number(line, 'grad_norm') for line in lines[-50:-1]]
  usual = statistics.median(before) if len(before) >= 10 else math.inf
  now = _number(lines[-1], 'grad_norm')
  if now <= 10 * usual or not usual:
    return None
  return f'grad_norm is {now:.3g}, its median {usual:.3g}'


def entropy_moved(lines):
  """Halved within a few steps, or twice what it began with."""
  entropy = [_number(line, 'entropy') for line in lines]
  recent, now = entropy[-ENTROPY_STEPS - 1 : -1], entropy[-1]
  if recent and now < max(recent) / 2:
    return f'entropy fell from {max(recent):.3g} to {now:.3g} nats'
  if len(entropy) > ENTROPY_STEPS and now > 2 * max(entropy[0], 0.1):
    return f'entropy rose from {entropy[0]:.3g} to {now:.3g} nats'
  return None


ALARMS = {
  # The sampler and the trainer disagree (slime's gate is 0.1; verl).
  'sampler_gap': (
    above('sampler_gap', 0.05, steps=3),
    'sampler and trainer disagree: compare their dtypes and attention, and '
    'keep a correction on',
  ),
  'sampler_kl': (
    above('sampler_kl', 1e-2, steps=3),
    'completions are too old or sampled with other numerics: lower the '
    'staleness, or use preset cispo or a narrower band',
  ),
  'ess': (
    below('sampler_ess', 0.3),
    'few tokens carry the gradient: see sampler_gap; do not trust this step',
  ),
  'dead_groups': (
    dead_groups,
    'ask other questions: pools on, harder data if all are right, more SFT or '
    'rollouts if all are wrong',
  ),
  'truncated': (
    above('completion/truncated', 0.1),
    'raise completion_length, or use preset dapo, which makes length cost',
  ),
  'infra': (
    above('infra', 0.01),
    'the sandbox fails: run `python -m crjax.execution probe`, look at '
    '`detail` in the samples, lower config.workers',
  ),
  'canary': (
    above('canary_pass', 0.0),
    'an answer to a question without one was accepted: stop, and read those '
    'completions in the samples; the reward has a hole',
  ),
  'grad_norm': (
    gradient_jump,
    'look at the samples of this step; lower lr or max_norm if it comes again',
  ),
  'entropy': (
    entropy_moved,
    'falling: raise the high clip or set entropy_target; rising: lower lr',
  ),
}


def alarms(lines) -> dict[str, str]:
  """{name: what is wrong and what to do} after the newest of `lines`."""
  found = {name: wrong(lines) for name, (wrong, _) in ALARMS.items()}
  return {
    name: f'{what}: {ALARMS[name][1]}' for name, what in found.items() if what
  }


def _number(line, name, missing=0.0) -> float:
  """A value of a line; null, which stands for not finite, is `missing`."""
  value = line.get(name)
  return missing if value is None else float(value)
