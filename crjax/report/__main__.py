"""Makes one HTML page about training runs, evaluations and datasets.

  python -m crjax.report runs/smoke           writes runs/smoke/report.html
  python -m crjax.report RUN_A RUN_B --out=page.html
  python -m crjax.report --live runs/grpo     serves it while a run goes on

Every metrics.jsonl, report.json and manifest.json in the directories is found.
The page needs no network, and opens in any browser of the last years.
"""

import argparse
import sys

from crjax import files
from crjax.report import build, live, rows


def main():
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('workdir', nargs='+', help='directories with runs')
  parser.add_argument('--out', help='default: report.html in the first')
  parser.add_argument(
    '--live', action='store_true', help='serve it on this machine, kept up'
  )
  parser.add_argument('--port', type=int, default=8008, help='of --live')
  parser.add_argument(
    '--completions', type=int, default=rows.MOST, help='the most to show'
  )
  args = parser.parse_args()
  try:
    if args.live:
      live.serve(args.workdir, args.port, args.completions)
      return
    text = build.page(args.workdir, most=args.completions)
  except (ValueError, OSError) as error:
    sys.exit(f'report: {error}')
  out = args.out or f'{args.workdir[0]}/report.html'
  files.write_text(out, text)
  print(f'report: {out} ({len(text) / 1e6:.1f} MB)')


if __name__ == '__main__':
  main()
