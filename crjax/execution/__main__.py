"""What protects this machine from the programs that crjax runs on it.

  python -m crjax.execution probe [--min-level=2]

Prints each layer with its state, or why it is missing. Exit status 1 if the
machine isolates less than asked.
"""

import argparse
import sys

from crjax.execution import isolation
from crjax.execution.pool import Pool, refusal


def main():
  parser = argparse.ArgumentParser('python -m crjax.execution')
  parser.add_argument('command', choices=['probe'])
  parser.add_argument('--min-level', type=int, default=2, choices=range(4))
  args = parser.parse_args()
  with Pool(1, min_level=0) as pool:
    report = pool.report
  if report['level'] < args.min_level:
    sys.exit(refusal(args.min_level, report))
  print(isolation.table(report))


if __name__ == '__main__':
  main()
