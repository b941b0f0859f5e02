"""What the files of a checkpoint should be, and whether they still are.

`checksums.json` in a checkpoint gives the size of each file and, where it is in
a directory, its SHA-256. It is written behind the run's back once all is there;
a process killed before that leaves a checkpoint without it, which is still
read. In a bucket sizes have to do: reading all back would cost as much as
writing it, and the bucket compares a CRC of its own with every object.
"""

import concurrent.futures
import errno
import hashlib
import json
import time

from etils import epath
import orbax.checkpoint as ocp
import tensorstore

from crjax import files

NAME = 'checksums.json'
SHOWN = 3  # wrong files or arrays, where there is room for a line
READERS = 4  # files at a time; hashing leaves Python's lock alone


def seal(path):
  """Writes the manifest of a whole checkpoint; of one that is gone, none."""
  try:
    sizes = files.walk(path)
    sizes.pop(NAME, None)
    hashes = _hashes(path, sizes)
  except FileNotFoundError:
    if epath.Path(path).exists():
      raise
    return
  listed = {k: {'size': size} | hashes.get(k, {}) for k, size in sizes.items()}
  text = json.dumps({'time': time.time(), 'files': listed}, indent=1)
  files.write_text(epath.Path(path) / NAME, text + '\n')


def read(path) -> dict | None:
  """The manifest of a checkpoint, None if it has none that can be read."""
  try:
    found = json.loads(files.read_bytes(epath.Path(path) / NAME))
    return {'time': found['time'], 'files': dict(found['files'])}
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return None


def damage(path, *, hashes=True, share=(0, 1), but=()) -> list[str]:
  """What is not as the manifest says, a line a file; [] without a manifest.

  Args:
    path: the checkpoint.
    hashes: whether to read the files, too; otherwise their sizes must do.
    share: (i, n) reads each nth file from the ith on, so that n processes read
      all of them.
    but: files that need not be there.
  """
  listed = (read(path) or {'files': {}})['files']
  listed = {k: v for k, v in listed.items() if k not in but}
  found = files.walk(path) if listed else {}
  wrong = {}
  for name, entry in listed.items():
    if name not in found:
      wrong[name] = 'is missing'
    elif found[name] != entry['size']:
      wrong[name] = f'has {found[name]:,} bytes instead of {entry["size"]:,}'
  if hashes:
    whole = [k for k, v in listed.items() if 'sha256' in v and k not in wrong]
    mine = sorted(whole)[share[0] :: share[1]]
    for name, entry in _hashes(path, mine).items():
      if entry.get('sha256') != listed[name]['sha256']:
        wrong[name] = entry.get('error', 'has another SHA-256 than when saved')
  return [f'{name} {text}' for name, text in sorted(wrong.items())]


def hashed(path) -> bool:
  """Whether `damage` sees every changed byte of this checkpoint."""
  listed = (read(path) or {'files': {}})['files'].values()
  every = bool(listed) and all('sha256' in entry for entry in listed)
  return every and not files.remote(path)


def unreadable(path) -> list[str]:
  """Reads all of a checkpoint, an array at a time; what failed, and how."""
  item, wrong = epath.Path(path) / 'state', []
  try:
    ocp.JsonCheckpointHandler().restore(epath.Path(path) / 'data')
  except (ValueError, OSError) as error:
    wrong.append(f'the position of the data: {_first_line(error)}')
  # As Orbax writes it, but one by one: it would open all of them at once.
  base = f'{item}/' if files.remote(item) else f'file://{item.absolute()}/'
  store = {'driver': 'ocdbt', 'base': base}
  try:
    keys = tensorstore.KvStore.open(store).result().list().result()
  except (ValueError, OSError) as error:
    return [*wrong, f'state cannot be read: {_first_line(error)}']
  for name in sorted({key.decode().rsplit('/', 1)[0] for key in keys}):
    spec = {'driver': 'auto', 'kvstore': store | {'path': f'{name}/'}}
    try:
      tensorstore.open(spec).result().read().result()
    except (ValueError, OSError) as error:
      wrong.append(f'{name} cannot be read: {_first_line(error)}')
  return wrong if keys else [*wrong, 'state holds no arrays']


def told(lines) -> str:
  """The first of the lines of `damage` or `unreadable`, as one."""
  rest = f' and {len(lines) - SHOWN} more' if len(lines) > SHOWN else ''
  return '; '.join(lines[:SHOWN]) + rest


def _hashes(path, names) -> dict:
  """{file: {'sha256'}} of local files; {'error'} where the disk fails."""
  if files.remote(path):
    return {}

  def one(name):
    try:
      with open(epath.Path(path) / name, 'rb') as file:
        return {'sha256': hashlib.file_digest(file, 'sha256').hexdigest()}
    except OSError as error:
      if error.errno != errno.EIO:
        raise
      return {'error': f'cannot be read: {error.strerror}'}

  with concurrent.futures.ThreadPoolExecutor(READERS) as pool:
    return dict(zip(names, pool.map(one, names), strict=True))


def _first_line(error) -> str:
  return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
