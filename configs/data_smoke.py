"""Short programs with chains that a tiny model can learn; no language model.

  python -m data_pipeline.build --config=configs/data_smoke.py

Hardware: 2 CPU cores. Time: under a minute. `make smoke` runs it first. The
factory is that of configs/data_7b.py, with one level of programs, few builtins,
values of a few letters or digits and the barest way to tell a run.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.seed = 0
  c.out = 'runs/smoke/data'
  c.workers = 2
  c.sandbox_min_level = 2  # See python -m crjax.execution probe.
  c.cpu_seconds = 1.0

  c.candidates = 9_000
  c.chunk = 750
  c.splits = ConfigDict({'sft_train': 8_000, 'rl_train': 1_500, 'test': 400})
  c.mix = ConfigDict(
    {
      'sft_train': {'output': 0.5, 'input': 0.5},
      # Any of many inputs is right: the easier half to learn by reward.
      'rl_train': {'output': 0.7, 'input': 0.3},
      'test': {'output': 0.5, 'input': 0.5},
    }
  )
  c.programs = ConfigDict(
    {
      'levels': ('short',),
      'arities': (1,),
      # One that is named twice is written twice as often: without constants
      # there are few different programs.
      'methods': (
        *('str.upper', 'str.lower', 'str.reverse', 'str.tail', 'str.head'),
        *3 * ('str.concat',),
        *('str.list', 'str.len'),
        *2 * ('list.append', 'list.insert'),
        *('list.reverse', 'list.pop'),
        *3 * ('list.concat',),
        *('list.slice', 'list.last'),
        *('list.reverse_slice', 'list.reverse_strs'),
        *2 * ('list.append_str', 'str.join'),
        'list.head',
        *('int.add', 'int.sub', 'int.max', 'int.min'),
      ),
      'given': ('str', 'ints'),
      'names': ('x', 'a', 'n', 's', 'v'),
      # Letters whose pairs are rare in English: a byte-level BPE keeps them
      # single.
      'small': {
        'letters': 'bdfgjkmpqvwxz',
        'largest': 9,
        'lengths': (2, 4),  # of arguments
        'constants': (1, 2),  # lengths of those in programs
      },
    }
  )
  c.filters = ConfigDict(
    {
      'hash_seeds': (0,),  # There are no sets.
      'chains': {
        'kinds': ('output', 'input'),
        'styles': ('bare',),
        'parts': False,
        'longest': 300,
      },
      'shortest': 20,
      'mutants': 2,
      'most_cases': 3,
      'most_events': 30,
      'easiest': 2,
      'longest_args': 20,
      'longest_output': 24,
      'largest_int': 99,
      'most_items': 9,
      'longest_string': 12,
      'deepest': 2,
      'floats': False,
    }
  )
  c.similar = 1.1  # Programs as short as these are all similar.
  c.same_skeleton = 100_000
  c.largest_share = 0.03
  c.largest_bool = 0.08
  c.vocab_size = 512
  c.tokenizer = ''
  c.cruxeval = ''
  return c
