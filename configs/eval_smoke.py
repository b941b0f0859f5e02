"""Evaluation of smoke models: the held-out split, greedy and sampled.

  python -m crjax.evaluate --config=configs/eval_smoke.py --model=DIR --out=DIR

Hardware: 2 CPU cores. Time: under a minute. `--data=` takes another split or a
file in CRUXEval's format.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.seed = 0
  c.data = 'runs/smoke/data/test.parquet'
  c.thinking = False  # Qwen3: as it was trained.
  c.samples = 4  # a question
  c.temperature = 1.0
  c.batch = 128  # completions at a time
  c.prompt_length = 1024
  c.completion_length = 128
  c.workers = 2
  c.sandbox_min_level = 2  # See python -m crjax.execution probe.
  c.mesh = (-1, 1, 1)  # data, fsdp, tensor
  c.dtype = 'float32'
  return c
