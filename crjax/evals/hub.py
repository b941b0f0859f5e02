"""Benchmarks by name: a dataset of the hub, or a directory that is one."""

import atexit
import pathlib
import shutil
import tempfile

SPLIT = 'test'  # the only one that CRUXEval and execution-v2 have


def local(name: str) -> str:
  """The path of a file with the rows of `name`; a file is its own.

  Raises FileNotFoundError for what is neither a file nor a dataset.
  """
  if pathlib.Path(name).is_file():
    return name
  import datasets  # Slow to import.

  datasets.disable_progress_bars()
  try:
    rows = datasets.load_dataset(name, split=SPLIT)
  except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
    raise FileNotFoundError(
      f'{name} is no file, and no dataset with a split {SPLIT!r}: {error}'
    ) from error
  folder = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  path = folder / 'rows.jsonl'
  rows.to_json(str(path), date_format='iso')
  return str(path)
