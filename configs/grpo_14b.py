"""GRPO of the SFT model of sft_14b: grpo_7b on another model.

  python -m crjax.train --config=configs/grpo_14b.py --distributed

Hardware: 8 H200, or a v5p-16 slice; `crjax.plan` says what fits.
Hours: not measured.
"""

from configs.grpo_7b import get_config as grpo_7b
from configs.shapes import qwen2_5


def get_config(preset='crjax'):
  c = grpo_7b(preset)
  c.workdir = 'runs/grpo_14b'
  c.model = 'runs/sft_14b/export'
  c.how.model = (
    'python -m crjax.train --config=configs/sft_14b.py && '
    'python -m crjax.export --workdir=runs/sft_14b '
    '--out=runs/sft_14b/export'
  )
  c.shape = qwen2_5('14B')
  c.topologies = {
    'h200x8': {'slots': 384},
    'v5p:2x2x2': {'slots': 256, 'mesh': (1, 4, 2)},
  }
  return c
