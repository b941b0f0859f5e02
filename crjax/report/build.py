"""The page: one file with its style, script and data, and no network."""

import json
import pathlib
import sys
import time

from crjax.report import gather, rows

HERE = pathlib.Path(__file__).parent


def page(roots, *, live: str = '', most: int = rows.MOST) -> str:
  """HTML about all runs in `roots`.

  Args:
    roots: directories, see `gather.find`.
    live: the version of a page that looks for a newer one; '' for a file.
    most: completions on it; those of the newest steps are kept.

  What is damaged is told on the page and on stderr.
  """
  found = gather.find(roots)
  index = gather.read(found)
  named = gather.names([path for some in found for path in some])
  some, left, notes = rows.read(rows.sources(found, named), most)
  notes = list(dict.fromkeys(index['notes'] + notes))
  for note in notes:
    print(f'report: {note}', file=sys.stderr)
  traced = rows.traces(some)
  columns, chunks = rows.pack(some, traced)
  index |= {
    'completions': columns,
    'left_out': left,
    'notes': notes,
    'traced': len(traced),
    'made': time.strftime('%Y-%m-%d %H:%M'),
    'live': live,
  }
  return fill(index, chunks)


def fill(index: dict, chunks: list[str]) -> str:
  """The template with its parts; data comes last, so that it paints first."""
  text = (HERE / 'page.html').read_text('utf-8')
  parts = {
    '/*STYLE*/': (HERE / 'page.css').read_text('utf-8'),
    '/*SCRIPT*/': ''.join(
      (HERE / name).read_text('utf-8')
      for name in ('curves.js', 'tables.js', 'browser.js', 'main.js')
    ),
    '<!--INDEX-->': block('index', 'application/json', safe(index)),
    '<!--CHUNKS-->': ''.join(
      block(f'chunk-{i}', 'text/plain', chunk) for i, chunk in enumerate(chunks)
    ),
  }
  for mark, part in parts.items():
    before, _, after = text.partition(mark)
    text = before + part + after
  return text


def safe(value) -> str:
  """JSON that cannot end the element that it is in; NaN is null."""
  text = json.dumps(finite(value), ensure_ascii=True)
  return text.replace('<', '\\u003c')


def finite(value):
  if isinstance(value, dict):
    return {str(k): finite(v) for k, v in value.items()}
  if isinstance(value, list | tuple):
    return [finite(x) for x in value]
  if isinstance(value, float) and (
    value != value or abs(value) == float('inf')
  ):
    return None
  return value


def block(name, kind, text) -> str:
  return f'<script type="{kind}" id="{name}">{text}</script>\n'
