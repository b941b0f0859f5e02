"""Estimators of GRPO by name, for any configs/grpo_*.py.

  python -m crjax.train --config=configs/grpo_7b.py:dapo

A preset sets how rewards become a gradient, nothing of the model, the data, the
learning rate or the hardware. Where it names a peer it is what that peer does
by default; sources stand beside.
"""

PRESETS = {
  # The recipe that the evidence supports; questions without signal are
  # replaced by others.
  'crjax': {
    'advantage': 'lite-ppo',
    'advantage_eps': 1e-4,
    'overlong': 0.0,  # The last share of the length limit that costs reward.
    'mask_truncated': False,
    'aggregation': 'token-mean',
    'objective': 'clip',
    'clip': (0.2, 0.28),
    'bypass': False,  # True: ratios are to the sampler, not the step's start.
    'correction': 'icepop',
    'band': (0.5, 5.0),
    'kl': 'k3',
    'kl_coef': 0.0,
    'kl_in': 'loss',  # Or 'reward'.
    # What a right line about a step adds to its tokens in answers to 'mixed'
    # questions; 0.3 in StepCodeReasoner. See advantages.intra.
    'step_coef': 0.0,
    'entropy_target': 0.0,  # Nats a token to be kept up by a bonus; 0: none.
    'minibatches': 1,
    'dynamic': True,  # False: only so many questions as are trained on.
  },
}


def preset(**changes):
  """The default with `changes`, none of them a new name."""
  default = PRESETS['crjax']
  if unknown := set(changes) - set(default) - {'rollouts'}:
    raise ValueError(f'presets have no {sorted(unknown)}')
  return default | changes


# What peers share: the advantages of the paper, ratios clipped at 0.2.
GRPO = {'advantage': 'grpo', 'clip': (0.2, 0.2), 'dynamic': False}
PLAIN = GRPO | {'correction': 'none'}

PRESETS |= {
  # arXiv 2507.17548 gives no hyper-parameters; this is the common reading.
  'codereasoner': preset(**PLAIN, rollouts=8),
  # ExecVerify, train/verl/examples/grpo_trainer/stage_one_rl.sh on verl.
  'execverify': preset(
    **PLAIN,
    advantage_eps=1e-6,
    objective='dual-clip',
    minibatches=2,
    rollouts=8,
  ),
  # verl 0.10: ppo_trainer.yaml, actor.yaml with adv_estimator=grpo.
  'verl': preset(
    **PLAIN, advantage_eps=1e-6, objective='dual-clip', minibatches=4
  ),
  # TRL: grpo_config.py, loss_type 'dapo'.
  'trl': preset(**GRPO, correction='sequence-mask', band=(0.0, 3.0)),
  # arXiv 2503.14476; the buffer is 4,096 of 20,480 tokens there.
  'dapo': preset(advantage='grpo', correction='none', overlong=0.2),
  # arXiv 2503.20783.
  'dr-grpo': preset(
    **PLAIN | {'advantage': 'dr-grpo'}, aggregation='length-normalised'
  ),
  # arXiv 2402.14740: one update, at which the clipped ratio is REINFORCE. With
  # a kl_coef (0.05 in TRL) the KL is part of the reward.
  'rloo': preset(**PLAIN | {'advantage': 'rloo'}, kl='k1', kl_in='reward'),
  # arXiv 2507.18071, bounds of verl's examples/gspo_trainer.
  'gspo': preset(
    **PLAIN | {'clip': (3e-4, 4e-4)},
    objective='gspo',
    aggregation='sequence-mean',
    minibatches=4,
  ),
  # ScaleRL, arXiv 2510.13786: ratios to the sampler, bounded by 5 above only.
  'cispo': preset(
    objective='cispo',
    clip=(1.0, 4.0),
    bypass=True,
    correction='none',
    aggregation='prompt-mean',
  ),
}


def choose(c, name: str):
  """The config `c` with the estimator `name`."""
  if name not in PRESETS:
    raise ValueError(f'preset {name!r} is not one of {sorted(PRESETS)}')
  c.update(PRESETS[name])
  if not c.dynamic:
    c.questions = c.groups
  return c
