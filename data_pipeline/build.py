"""Builds the datasets of a config: programs, executions, questions, chains.

  python -m data_pipeline.build --config=configs/data_7b.py

The directory appears whole or not at all; the same config gives the same bytes.
What happens is in `factory`; configs/data_7b.py names what can be chosen.
"""

from absl import app, flags
from ml_collections import config_flags

from data_pipeline import factory


def define_flags():
  config_flags.DEFINE_config_file('config', None, 'What to build.')
  flags.DEFINE_enum('stage', 'all', factory.STAGES, 'Where jobs share a build.')
  flags.DEFINE_string('shard', '0/1', 'i/n: the parts i, i + n, ... of a stage')
  flags.mark_flag_as_required('config')


def main(_):
  stage = flags.FLAGS.stage
  shard = factory.shard_of(flags.FLAGS.shard, stage)
  factory.build(flags.FLAGS.config, stage, shard)


if __name__ == '__main__':
  define_flags()
  app.run(main)
