"""GRPO of the SFT model of sft_qwen3_8b: grpo_7b on another model.

  python -m crjax.train --config=configs/grpo_qwen3_8b.py --distributed

Hardware: 8 H200, or a v5p-16 slice; `crjax.plan` says what fits.
Hours: not measured.
"""

from configs.grpo_7b import get_config as grpo_7b
from configs.shapes import qwen3


def get_config(preset='crjax'):
  c = grpo_7b(preset)
  c.workdir = 'runs/grpo_qwen3_8b'
  c.model = 'runs/sft_qwen3_8b/export'
  c.how.model = (
    'python -m crjax.train --config=configs/sft_qwen3_8b.py && '
    'python -m crjax.export --workdir=runs/sft_qwen3_8b '
    '--out=runs/sft_qwen3_8b/export'
  )
  c.shape = qwen3('8B')
  c.topologies = {'h200x8': {}, 'v5p:2x2x2': {'slots': 384}}
  return c
