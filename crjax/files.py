"""Where a checkpoint's files are: a directory, a bucket or the hub.

Small files (config, tokenizer, index) are read from a local directory in every
case. Weights are read by byte ranges where they are, so that a process fetches
from a bucket no more than its devices hold.
"""

import atexit
import contextlib
import fnmatch
import os
import pathlib
import re
import shutil
import tempfile
import time
from typing import NamedTuple

HUB_NAME = re.compile(r'[\w.-]+/[\w.-]+')
SMALL = ['*.json', '*.txt', '*.model', '*.jinja']
WEIGHTS = '.safetensors'
SEND_SECONDS = 30.0  # Between two copies of a growing file to a bucket.
LONGEST_READ = 16 << 20  # bytes a call; a bucket's client copies them once


class Place(NamedTuple):
  """A checkpoint's files."""

  name: str  # as the user wrote it
  path: pathlib.Path  # a local directory with every small file
  weights: str  # the directory or URL that the weights are in


def locate(name) -> Place:
  """Finds `name`: a local directory, a URL (gs://...) or a hub name.

  From the hub it is downloaded once a host: huggingface_hub caches, and locks
  each file while one process fetches it.

  Raises:
    FileNotFoundError: it is none of them; says what was tried.
  """
  name = os.fspath(name)
  if remote(name):
    return Place(name, _mirror(name), name.rstrip('/'))
  if os.path.isdir(name):
    return Place(name, pathlib.Path(name), name)
  beside = os.path.isdir(os.path.dirname(name) or '.') and '/' in name
  if beside or not HUB_NAME.fullmatch(name):
    raise FileNotFoundError(f'{name} does not exist: not a model directory')
  path = _download(name)
  return Place(name, path, str(path))


def remote(name) -> bool:
  return '://' in os.fspath(name)


def _download(name) -> pathlib.Path:
  import huggingface_hub  # Slow to import; only hub names need it.

  try:
    found = huggingface_hub.snapshot_download(
      name, allow_patterns=[*SMALL, f'*{WEIGHTS}']
    )
  except (OSError, ValueError) as error:  # Its HTTP errors are OSErrors.
    raise FileNotFoundError(
      f'{name} is neither a directory here nor to be had from the hub: {error}'
    ) from error
  return pathlib.Path(found)


def _mirror(url) -> pathlib.Path:
  """A temporary directory with the small files of a bucket's directory."""
  found = listdir(url)
  if not found:
    raise FileNotFoundError(f'{url} does not exist or is empty')
  path = pathlib.Path(tempfile.mkdtemp(prefix='crjax-'))
  atexit.register(shutil.rmtree, path, ignore_errors=True)
  for file in found:
    if any(fnmatch.fnmatch(file, pattern) for pattern in SMALL):
      (path / file).write_bytes(read_bytes(f'{url}/{file}'))
  return path


@contextlib.contextmanager
def _gfile(path):
  """tf.io.gfile, whose errors become those of local files, with the path."""
  import tensorflow as tf  # Slow to import; only remote files need it.

  try:
    yield tf.io.gfile
  except tf.errors.NotFoundError as error:
    raise FileNotFoundError(f'{path} does not exist: {error}') from error
  except tf.errors.OpError as error:
    raise OSError(f'{path}: {error}') from error


def listdir(path) -> list[str]:
  """The names in a directory, those of a missing one: none."""
  path = os.fspath(path)
  if not remote(path):
    return sorted(os.listdir(path)) if os.path.isdir(path) else []
  with _gfile(path) as gfile:
    return sorted(gfile.listdir(path)) if gfile.isdir(path) else []


def read_bytes(path) -> bytes:
  path = os.fspath(path)
  if not remote(path):
    return pathlib.Path(path).read_bytes()
  with _gfile(path) as gfile, gfile.GFile(path, 'rb') as file:
    return file.read()


@contextlib.contextmanager
def fetched(url):
  """A local copy of a bucket's file, for as long as it is needed."""
  with tempfile.TemporaryDirectory(prefix='crjax-') as folder:
    path = f'{folder}/{os.path.basename(url)}'
    copy(url, path)
    yield path


def walk(path) -> dict[str, int]:
  """{file: size} of all that is in a directory, by their paths in it."""
  path = os.fspath(path)
  if not remote(path):
    found = (p for p in pathlib.Path(path).rglob('*') if p.is_file())
    return {p.relative_to(path).as_posix(): p.stat().st_size for p in found}
  sizes = {}
  with _gfile(path) as gfile:
    for folder, _, names in gfile.walk(path):
      for name in names:
        full = f'{folder.rstrip("/")}/{name}'
        inside = full.removeprefix(path.rstrip('/') + '/')
        sizes[inside] = gfile.stat(full).length
  return sizes


def exists(path) -> bool:
  """Whether there is a file or a directory of that name."""
  path = os.fspath(path)
  if not remote(path):
    return os.path.exists(path)
  with _gfile(path) as gfile:
    return gfile.exists(path)


def copy(path, to):
  """Copies a file; it appears whole or not at all."""
  path, to = os.fspath(path), os.fspath(to)
  if remote(path) or remote(to):
    if not remote(to):
      os.makedirs(os.path.dirname(to), exist_ok=True)
    draft = to if remote(to) else f'{to}.part'
    with _gfile(path) as gfile:
      gfile.copy(path, draft, overwrite=True)
  else:
    os.makedirs(os.path.dirname(to), exist_ok=True)
    draft = f'{to}.part'
    shutil.copyfile(path, draft)
  if draft != to:
    os.replace(draft, to)


def move(path, to):
  """Moves a directory to a name that is not taken: `to`, else `to`.2 and on."""
  from etils import epath  # Slow to import.

  path, to = epath.Path(path), epath.Path(to)
  to.parent.mkdir(parents=True, exist_ok=True)
  name, number = to.name, 1
  while to.exists():
    number += 1
    to = to.with_name(f'{name}.{number}')
  path.rename(to)


def write_text(path, text: str):
  """Writes a file atomically, and the directories above it."""
  if remote(path):
    with writer(path) as file:  # An object appears whole or not at all.
      file.write(text.encode())
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'{path.name}.tmp')
  temporary.write_text(text, 'utf-8')
  temporary.replace(path)


def remove(path):
  """Removes a file if it is there."""
  path = os.fspath(path)
  if not remote(path):
    pathlib.Path(path).unlink(missing_ok=True)
    return
  with _gfile(path) as gfile:
    if gfile.exists(path):
      gfile.remove(path)


@contextlib.contextmanager
def writer(path):
  """A file opened for writing; a remote object appears when it is closed."""
  path = os.fspath(path)
  if not remote(path):
    with open(path, 'wb') as file:
      yield file
    return
  with _gfile(path) as gfile, gfile.GFile(path, 'wb') as file:
    yield file


@contextlib.contextmanager
def draft(path):
  """Yields a local name to write to; then the file is at `path`, whole."""
  if not remote(path):
    temporary = pathlib.Path(path).with_suffix('.tmp')
    temporary.parent.mkdir(parents=True, exist_ok=True)
    yield temporary
    os.replace(temporary, path)
    return
  with tempfile.TemporaryDirectory() as folder:
    temporary = pathlib.Path(folder) / 'draft'
    yield temporary
    copy(temporary, path)


@contextlib.contextmanager
def local(path):
  """Yields `path`, or, of a bucket, a copy that is then sent there."""
  if not remote(path):
    yield pathlib.Path(path)
    return
  with tempfile.TemporaryDirectory() as folder:
    for name in walk(path):
      copy(f'{path}/{name}', f'{folder}/{name}')
    yield pathlib.Path(folder)
    for name in walk(folder):
      copy(f'{folder}/{name}', f'{path}/{name}')


class Appended:
  """A text file that grows. Objects do not: a bucket gets it anew, at times."""

  def __init__(self, path):
    self.path, self._sent = os.fspath(path), time.monotonic()
    self._parts, self._new = [], False
    if remote(path) and exists(path):
      self._parts = [read_bytes(path).decode()]

  def write(self, text: str):
    if not remote(self.path):
      with open(self.path, 'a', encoding='utf-8') as file:
        file.write(text)
      return
    self._parts.append(text)
    self._new = True
    if time.monotonic() - self._sent > SEND_SECONDS:
      self.send()

  def send(self):
    if self._new:
      write_text(self.path, ''.join(self._parts))
      self._new, self._sent = False, time.monotonic()


class Ranges:
  """A file read by byte ranges; use as a context manager."""

  def __init__(self, path):
    self.path = os.fspath(path)
    if remote(self.path):
      with _gfile(self.path) as gfile:
        self.size = gfile.stat(self.path).length
        self._file = gfile.GFile(self.path, 'rb')
    else:
      self._file = os.open(self.path, os.O_RDONLY)
      self.size = os.fstat(self._file).st_size

  def read_into(self, view, start: int):
    """Fills a writable buffer from `start` on; OSError names the file."""
    view = memoryview(view).cast('B')
    while len(view):
      done = self._some(view[:LONGEST_READ], start)
      if not done:
        raise OSError(f'{self.path} ends at byte {start}: it is truncated')
      view, start = view[done:], start + done

  def _some(self, view, start) -> int:
    if not remote(self.path):
      try:
        return os.preadv(self._file, [view], start)
      except OSError as error:
        raise OSError(error.errno, error.strerror, self.path) from error
    with _gfile(self.path):
      self._file.seek(start)
      data = self._file.read(len(view))
    view[: len(data)] = data
    return len(data)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if remote(self.path):
      self._file.close()
    else:
      os.close(self._file)
