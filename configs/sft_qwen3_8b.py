"""SFT of Qwen3-8B, sft_7b on another model.

  python -m crjax.train --config=configs/sft_qwen3_8b.py --distributed

Hardware: 8 H200, or a v5p-16 slice; `crjax.plan` says what fits.
Hours: not measured.
"""

from configs.sft_7b import get_config as sft_7b
from configs.shapes import qwen3


def get_config():
  c = sft_7b()
  c.workdir = 'runs/sft_qwen3_8b'
  c.model = 'Qwen/Qwen3-8B'
  c.how.model = 'hf download Qwen/Qwen3-8B   (16 GB)'
  c.shape = qwen3('8B')
  c.topologies = {'h200x8': {'micro': 4, 'remat': 'dots'}, 'v5p:2x2x2': {}}
  return c
