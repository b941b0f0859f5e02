"""GRPO of the SFT model of sft_1_5b: grpo_7b on another model.

  python -m crjax.train --config=configs/grpo_1_5b.py --distributed

Hardware: one H200, or a v6e-8 slice; `crjax.plan` says what fits.
Hours: not measured.
"""

from configs.grpo_7b import get_config as grpo_7b
from configs.shapes import qwen2_5


def get_config(preset='crjax'):
  c = grpo_7b(preset)
  c.workdir = 'runs/grpo_1_5b'
  c.model = 'runs/sft_1_5b/export'
  c.how.model = (
    'python -m crjax.train --config=configs/sft_1_5b.py && '
    'python -m crjax.export --workdir=runs/sft_1_5b '
    '--out=runs/sft_1_5b/export'
  )
  c.shape = qwen2_5('1.5B')
  c.topologies = {'h200': {'slots': 384}, 'v6e:2x4': {}}
  return c
