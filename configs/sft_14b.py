"""SFT of Qwen2.5-Coder-14B-Instruct, sft_7b on another model.

  python -m crjax.train --config=configs/sft_14b.py --distributed

Hardware: 8 H200, or a v5p-16 slice; `crjax.plan` says what fits.
Hours: not measured.
"""

from configs.sft_7b import get_config as sft_7b
from configs.shapes import qwen2_5


def get_config():
  c = sft_7b()
  c.workdir = 'runs/sft_14b'
  c.model = 'Qwen/Qwen2.5-Coder-14B-Instruct'
  c.how.model = 'hf download Qwen/Qwen2.5-Coder-14B-Instruct   (30 GB)'
  c.shape = qwen2_5('14B')
  c.topologies = {'h200x8': {'remat': 'dots'}, 'v5p:2x2x2': {}}
  return c
