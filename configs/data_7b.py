"""17,332 SFT and 18,796 RL cases of executed programs; no model is needed.

  python -m data_pipeline.build --config=configs/data_7b.py

Hardware: CPU cores alone. Time: 31 minutes with one worker on a busy machine of
2 cores, before chains had the parts of expressions, which need one more run of
each row. Several machines: the docstring of data_pipeline/factory.py.
Models: each of `generator`, `policy` and `teacher` is asked where it has a url,
of any server with OpenAI's chat API; README.md says how.
Optional: --config.cruxeval=cruxeval.jsonl for a table beside CRUXEval, and
--config.tokenizer=DIR for the sizes of chains in tokens.
"""

from ml_collections import ConfigDict

SERVER = {
  'url': '',  # http://HOST:PORT/v1; empty: not asked
  'model': '',
  'key': 'OPENAI_API_KEY',  # the environment variable with the key, if any
  'price_in': 0.0,  # dollars for a million tokens of prompts
  'price_out': 0.0,  # and of answers
}


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
  # Without a url the grammar writes the programs.
  c.generator = ConfigDict(
    SERVER | {'temperature': 0.8, 'top_p': 0.9, 'max_tokens': 2_048}
  )
  # Without a url difficulty is trace length x control depth (filters.easiest).
  c.policy = ConfigDict(
    SERVER | {'temperature': 1.0, 'top_p': 1.0, 'max_tokens': 4_096}
  )
  c.policy.samples = 8  # of a question
  c.policy.spare = 1.5  # Of these splits so many times more is tried.
  # Split -> least and most share of samples that may be right.
  c.policy.keep = ConfigDict({'sft_train': (0, 0.5), 'rl_train': (0.125, 0.75)})
  # Without a url chains of reasoning are told from traces.
  c.teacher = ConfigDict(
    SERVER | {'temperature': 0.6, 'top_p': 0.95, 'max_tokens': 4_096}
  )
  c.teacher.samples = 4  # of a question; the shortest right one is taken
  c.teacher.shortest = 200  # characters
  c.teacher.longest = 8_000
  c.teacher.narrate = True  # What no sample solves is told from its trace.
  c.client = ConfigDict(
    {
      'concurrency': 64,  # requests at a time
      'seconds': 600.0,  # of one attempt
      'attempts': 12,  # for one answer, then the run stops
      'hours': 72.0,  # of a run, then it stops
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
