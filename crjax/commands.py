"""What a command says, instead of a traceback, where its flags are wrong."""

import sys

from absl import flags


def parse(argv):
  """absl's parser, for `app.run(main, flags_parser=parse)`.

  Ends the process with the flag, what is wrong with it and, for a mistyped
  field of the config, the nearest one.
  """
  try:
    rest = flags.FLAGS(argv)
    if 'config' in flags.FLAGS:
      # Of a file that could not be loaded, any field raises.
      getattr(flags.FLAGS.config, 'task', None)
  except AttributeError as error:  # Of ml_collections, with the nearest name.
    text = str(getattr(error.args[0], 'args', error.args)[0])
    sys.exit('config has no such field: ' + ' '.join(text.split('\n')))
  except (flags.Error, OSError) as error:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A config that raises comes with its traceback: the last line says why.
    first = lines[0].partition('Error loading')[0]
    sys.exit(f'{sys.argv[0]}: {first}' + f' {lines[-1]}' * (len(lines) > 1))
  return rest
