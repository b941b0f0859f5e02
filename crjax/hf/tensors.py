"""safetensors files by byte ranges: what is where, and streams of tensors out.

The format is 8 bytes of length, a JSON header and the data
(github.com/huggingface/safetensors). The library reads and writes whole files
from memory; a model larger than the host's memory needs neither.
"""

import json
import math
import struct
from typing import NamedTuple

import ml_dtypes
import numpy as np

from crjax import files

DTYPES = {
  'F32': np.dtype(np.float32),
  'BF16': np.dtype(ml_dtypes.bfloat16),
  'F16': np.dtype(np.float16),
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
CHUNK = 16 << 20  # bytes
LONGEST_HEADER = 100 << 20  # bytes, the format's own limit
INDEX = 'model.safetensors.index.json'
SINGLE = 'model.safetensors'


class Tensor(NamedTuple):
  """Where a tensor is stored."""

  name: str
  file: str  # path or URL
  code: str  # a key of DTYPES, or what else the file says
  shape: tuple[int, ...]
  start: int  # its first byte in the file

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * DTYPES[self.code].itemsize


def find(place: files.Place) -> dict[str, Tensor]:
  """Every tensor of a checkpoint, by name; headers are read, no data.

  Raises:
    FileNotFoundError: no weights, or a file of the index is missing.
    ValueError: a damaged file; names it and, where it can, the tensor.
  """
  index = place.path / INDEX
  if not index.exists():
    return header(f'{place.weights}/{SINGLE}', place.name)
  where = _weight_map(index)
  stored = {
    file: header(f'{place.weights}/{file}', place.name)
    for file in sorted(set(where.values()))
  }
  for name, file in where.items():
    if name not in stored[file]:
      raise ValueError(
        f'{place.weights}/{file} lacks {name}, which {INDEX} says it holds'
      )
  found = {}
  for file, tensors in stored.items():
    for name, tensor in tensors.items():
      if where.get(name) != file:
        raise ValueError(
          f'{place.weights}/{file} holds {name}, which {INDEX} '
          + (f'says {where[name]} holds' if name in where else 'does not list')
        )
      found[name] = tensor
  return found


def _weight_map(index) -> dict:
  try:
    where = json.loads(index.read_text('utf-8')).get('weight_map')
  except (ValueError, AttributeError) as error:
    raise ValueError(f'{index} is damaged: {error}') from error
  if not isinstance(where, dict) or not where:
    raise ValueError(f'{index} lacks the field "weight_map"')
  return where


def header(path, checkpoint='') -> dict[str, Tensor]:
  """The tensors of one file; sizes are checked against the file's own."""
  try:
    with files.Ranges(path) as file:
      raw, size = _header_bytes(file), file.size
  except FileNotFoundError as error:
    raise FileNotFoundError(
      f'{path} does not exist; the checkpoint {checkpoint} is incomplete: '
      'download or copy it again'
    ) from error
  except OSError as error:
    raise ValueError(f'{path} is damaged: {error}; get it again') from error
  try:
    found = json.loads(raw)
    found.pop('__metadata__', None)
    tensors = [_tensor(path, name, x, len(raw)) for name, x in found.items()]
  except (ValueError, TypeError, KeyError, AttributeError) as error:
    raise ValueError(
      f'{path} is damaged: its header is not that of a safetensors file '
      f'({type(error).__name__}: {error}); get it again'
    ) from error
  _check_sizes(path, tensors, start=8 + len(raw), size=size)
  return {tensor.name: tensor for tensor, _ in tensors}


def _check_sizes(path, tensors, start, size):
  """Each tensor has the bytes it needs, and they follow each other."""
  for tensor, end in sorted(tensors, key=lambda item: item[0].start):
    known = tensor.code in DTYPES
    if tensor.start != start:
      raise ValueError(
        f'{path} is damaged: {tensor.name} starts at byte {tensor.start}, the '
        f'one before it ends at {start}; get it again'
      )
    start = end
    if known and end - tensor.start != tensor.nbytes:
      raise ValueError(
        f'{path} is damaged: {tensor.name} has {end - tensor.start} bytes, '
        f'{tensor.code} {list(tensor.shape)} needs {tensor.nbytes}; get it '
        'again'
      )
    if end > size:
      raise ValueError(
        f'{path} is damaged: it has {size} bytes and {tensor.name} ends at '
        f'{end}, so it is truncated; get it again'
      )


def read(tensor: Tensor):
  """One whole tensor as a numpy array."""
  x = np.empty(tensor.shape, DTYPES[tensor.code])
  with files.Ranges(tensor.file) as file:
    file.read_into(x.reshape(-1).view(np.uint8), tensor.start)
  return x


def _header_bytes(file) -> bytes:
  length = bytearray(8)
  file.read_into(length, 0)
  (n,) = struct.unpack('<Q', length)
  if n > min(LONGEST_HEADER, file.size):
    raise OSError(f'a header of {n} bytes in a file of {file.size}')
  raw = bytearray(n)
  file.read_into(raw, 8)
  return bytes(raw)


def _tensor(path, name, entry, header_size):
  """(Tensor, the byte after it) of a header's entry."""
  start, end = (8 + header_size + x for x in entry['data_offsets'])
  shape = tuple(int(n) for n in entry['shape'])
  return Tensor(name, str(path), str(entry['dtype']), shape, start), end


class Planned(NamedTuple):
  """A tensor that will be written."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize


def plan(tensors, *, limit: int, layout=None) -> dict[str, list[Planned]]:
  """{file name: its tensors}: the source's layout, else files up to `limit`.

  Args:
    tensors: list of Planned, in their order.
    limit: bytes of tensors in a file; a larger tensor gets one of its own.
    layout: {tensor: file} to keep, where it names exactly these tensors.
  """
  if layout and layout.keys() == {t.name for t in tensors}:
    named = {file: [] for file in sorted(set(layout.values()))}
    for tensor in tensors:
      named[layout[tensor.name]].append(tensor)
    return named
  parts, size = [[]], 0
  for tensor in tensors:
    if parts[-1] and size + tensor.nbytes > limit:
      parts.append([])
      size = 0
    parts[-1].append(tensor)
    size += tensor.nbytes
  if len(parts) == 1:
    return {SINGLE: parts[0]}
  return {
    f'model-{i:05d}-of-{len(parts):05d}{files.WEIGHTS}': part
    for i, part in enumerate(parts, start=1)
  }


def index(plan) -> dict:
  """The index of a plan with several files."""
  total = sum(t.nbytes for part in plan.values() for t in part)
  where = {t.name: file for file, part in plan.items() for t in part}
  return {
    'metadata': {'total_size': total},
    'weight_map': dict(sorted(where.items())),
  }


def ordered(tensors):
  """The order of the library: wide dtypes first, then by name."""
  width = lambda t: -t.dtype.itemsize
  return sorted(tensors, key=lambda t: (width(t), CODES[t.dtype], t.name))


def write(path, tensors, read):
  """Writes one file, a tensor at a time.

  Header and order are those of the safetensors library, so that a file which
  was read and written unchanged has the same bytes.

  Args:
    path: file or URL.
    tensors: list of Planned.
    read: Planned -> the array, of its dtype and shape.
  """
  entries, start = {'__metadata__': {'format': 'pt'}}, 0
  for t in ordered(tensors):
    offsets = [start, start + t.nbytes]
    entries[t.name] = {
      'dtype': CODES[t.dtype],
      'shape': list(t.shape),
      'data_offsets': offsets,
    }
    start = offsets[1]
  raw = json.dumps(entries, separators=(',', ':'), ensure_ascii=False).encode()
  raw += b' ' * (-len(raw) % 8)  # The data starts aligned.
  with files.writer(path) as file:
    file.write(struct.pack('<Q', len(raw)) + raw)
    for t in ordered(tensors):
      x = np.ascontiguousarray(read(t))
      if x.shape != t.shape or x.dtype != t.dtype:
        raise ValueError(f'{t.name} is {x.dtype} {x.shape}, planned as {t}')
      data = x.reshape(-1).view(np.uint8).data
      for i in range(0, len(data), CHUNK):  # A bucket's file takes bytes only.
        file.write(bytes(data[i : i + CHUNK]))
