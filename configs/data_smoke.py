"""Small generated programs with chains from their traces; no language model.

  python -m data_pipeline.build --config=configs/data_smoke.py

Hardware: 2 CPU cores. Time: under a minute. `make smoke` runs it first.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.seed = 0
  c.out = 'runs/smoke/data'
  c.workers = 2
  c.sandbox_min_level = 2  # See python -m crjax.execution probe.
  c.cpu_seconds = 1.0

  # Each program is asked about twice: for its output and for its input.
  c.programs = ConfigDict({'sft_train': 6000, 'rl_train': 1500, 'heldout': 200})
  c.rl_input_share = 0.43  # of the programs of rl_train
  c.level = ConfigDict(
    {
      'types': {'str': 1, 'list': 1},
      'statements': {'1': 1, '2': 4},
      'hardest': 1,
      'branch': 0.03,
      'loop': 0.03,
      'letters': 13,
      'largest_int': 9,
      'lengths': (2, 4),
    }
  )
  c.longest_value = 18  # characters
  c.most_steps = 9
  c.largest_share = 0.03  # of one answer among all
  c.vocab_size = 512
  return c
