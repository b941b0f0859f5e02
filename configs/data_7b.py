"""17,332 SFT and 18,796 RL cases of grammar programs; no language model.

  python -m data_pipeline.build --config=configs/data_7b.py

Hardware: CPU cores alone. Time: 31 minutes with one worker on a busy machine of
2 cores, before chains had the parts of expressions, which need one more run of
each row. Several machines: the docstring of data_pipeline/factory.py.
Optional: --config.cruxeval=cruxeval.jsonl for a table beside CRUXEval, and
--config.tokenizer=DIR for the sizes of chains in tokens.
"""

from ml_collections import ConfigDict


def get_config():
  c = ConfigDict()
  c.seed = 0
  c.out = 'runs/data_7b'
  c.workers = 2
  c.sandbox_min_level = 2  # See python -m crjax.execution probe.
  c.cpu_seconds = 1.0

  c.candidates = 24_000  # Programs tried; an error says if more are needed.
  c.chunk = 100  # of them to a part
  c.splits = ConfigDict(
    {'sft_train': 17_332, 'rl_train': 18_796, 'dev': 1_000, 'test': 1_000}
  )
  steps = {'coverage': 0.06, 'path': 0.06, 'state': 0.06}
  c.mix = ConfigDict(
    {
      'sft_train': {'output': 0.40, 'input': 0.27, 'mixed': 0.15} | steps,
      'rl_train': {'output': 0.30, 'input': 0.27, 'mixed': 0.25} | steps,
      'dev': {'output': 0.40, 'input': 0.27, 'mixed': 0.15} | steps,
      'test': {'output': 0.40, 'input': 0.27, 'mixed': 0.15} | steps,
    }
  )
  c.programs = ConfigDict(
    {
      'levels': (
        *('nested', 'builtins', 'depth1', 'depth2', 'depth3'),
        *('helper', 'class'),
      ),
      'arities': (1, 2, 3),
      'methods': (),  # of data_pipeline/inventory.py; empty: all
      'given': (),  # types of what they are about; empty: all
      'names': (),  # of the variables of level 'short'
      'small': {},  # bounds of small values; empty: values of all sizes
    }
  )
  c.filters = ConfigDict(
    {
      'hash_seeds': (0, 1, 12345),  # of str; set order differs between them
      'chains': {
        'kinds': ('output', 'input', 'mixed', 'coverage', 'path', 'state'),
        'styles': ('lines', 'brackets', 'arrows', 'after'),
        'parts': True,  # whether the parts of expressions are told
        'longest': 4_000,  # characters, up to 3,300 tokens
      },
      'shortest': 40,  # characters of a program
      'mutants': 5,  # inputs beside a program's own
      'most_cases': 4,  # of a program
      'most_events': 600,  # of a trace
      'easiest': 3,  # executed lines x (1 + control depth)
      'longest_args': 200,
      'longest_output': 150,
      'largest_int': 10**12,
      'most_items': 25,
      'longest_string': 100,
      'deepest': 3,
      'floats': False,
    }
  )
  c.similar = 0.8  # Jaccard similarity of near duplicates
  c.same_skeleton = 8  # programs
  c.largest_share = 0.005  # of one output among all rows
  c.largest_bool = 0.08  # of True and False together
  c.vocab_size = 0  # of a tokenizer of its own; 0: none
  c.tokenizer = ''  # Empty: sizes in characters.
  c.cruxeval = ''  # Empty: no comparison.
  return c
