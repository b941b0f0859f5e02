"""SFT of Qwen2.5-Coder-1.5B-Instruct, sft_7b on another model.

  python -m crjax.train --config=configs/sft_1_5b.py --distributed

Hardware: one H200, or a v6e-8 or v5e-16 slice; `crjax.plan` says what fits.
Hours: not measured.
"""

from configs.sft_7b import get_config as sft_7b
from configs.shapes import qwen2_5


def get_config():
  c = sft_7b()
  c.workdir = 'runs/sft_1_5b'
  c.model = 'Qwen/Qwen2.5-Coder-1.5B-Instruct'
  c.how.model = 'hf download Qwen/Qwen2.5-Coder-1.5B-Instruct   (3 GB)'
  c.shape = qwen2_5('1.5B')
  c.topologies = {
    'h200': {'remat': 'dots'},
    'v6e:2x4': {},
    'v5e:4x4': {'micro': 4},
  }
  return c
