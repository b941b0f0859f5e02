"""What a run leaves to read: metrics.jsonl, TensorBoard events, samples.

Numbers of one step are one JSON object a line; a value that is not finite is
null. A resumed run cuts the file back to the step it resumes from, and tells
TensorBoard to do the same, so that every step is there once.
"""

import collections
import contextlib
import importlib.metadata
import json
import math
import platform
import resource
import shlex
import sys
import time

from etils import epath
import rich.console
import rich.progress
import rich.table
import rich.text

from crjax import files

PACKAGES = ('jax', 'flax', 'optax', 'transformers', 'datasets', 'numpy')
# Peak memory of this process: kilobytes on Linux, bytes on macOS.
UNIT = 1e-9 if sys.platform == 'darwin' else 1.024e-6
QUIET_SECONDS = 10.0  # Between progress lines where there is no terminal.
TABLE_SECONDS = 60.0  # Between sample tables; their files are all written.
ALARM_STEPS = 20  # An alarm that goes on is said again after so many.
REMEMBERED = 100  # Lines that alarms look back on.
SHOWN_SAMPLES = 3
SHOWN_CHARS = 160
# The first name that a device's kind contains: 'TPU v5' alone is a v5p.
PEAKS = (
  ('v5 lite', 197e12),
  ('v5e', 197e12),
  ('v6 lite', 918e12),
  ('v6e', 918e12),
  ('TPU v5', 459e12),
  ('TPU v4', 275e12),
  ('H200', 989e12),
  ('H100', 989e12),
  ('A100', 312e12),
)
SAMPLE_COLUMNS = (
  'question',
  'completion',
  'answer',
  'expected',
  'reward',
  'advantage',
)


class Writer:
  """The open files of a run; use as a context manager.

  Args:
    run_dir: created if need be.
    start_step: the step that the run resumes from, 0 for a fresh run.
    total_steps: where the progress ends.
    alarms: the last lines, the newest last, to {name: what is wrong and what to
      do}; see watch.py. What it finds is printed and written as `alarm/name`.
    chips: the devices that share the work.
    peak: operations a second that one of them can do; None if not known.
  """

  def __init__(
    self,
    run_dir,
    *,
    start_step: int,
    total_steps: int,
    alarms=lambda lines: {},
    chips: int = 1,
    peak: float | None = None,
  ):
    import tensorflow as tf  # Slow to import; only event files need it.

    self._dir = epath.Path(run_dir)
    with _naming(self._dir / 'command.json'):
      files.write_text(self._dir / 'command.json', json.dumps(provenance()))
    path = self._dir / 'metrics.jsonl'
    truncate(path, start_step)
    self._recent = collections.deque(read_lines(path), REMEMBERED)
    self._alarms, self._said = alarms, {}
    self._lines = files.Appended(path)
    self._tf = tf.compat.v1
    with tf.Graph().as_default():  # This writer refuses to open without one.
      self._events = self._tf.summary.FileWriter(str(self._dir))
    if start_step:  # TensorBoard then drops what a killed run wrote beyond it.
      log = self._tf.SessionLog(status=self._tf.SessionLog.START)
      self._events.add_session_log(log, start_step + 1)
    self._first, self._total = start_step, total_steps
    self._chips, self._peak = chips, peak
    self._began = self._last = self._shown = time.monotonic()
    self._tabled = -math.inf
    self._console = rich.console.Console()
    self._bar = _bar(self._console, start_step, total_steps)

  def write(
    self, step: int, scalars: dict, tokens: int, *, slots=None, flops=None
  ):
    """Records the numbers of a step that read or sampled `tokens` tokens.

    Where they are given: `slots` are the places that the tokens had, padding
    included, `flops` the operations that the step needs.
    """
    now = time.monotonic()
    seconds = now - self._last
    self._last = now
    clock = {
      'time': time.time(),
      'time/step_s': seconds,
      'perf/tokens_per_s': tokens / max(seconds, 1e-9),
      'perf/host_gb': resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT,
    }
    clock['perf/tokens_per_s_chip'] = clock['perf/tokens_per_s'] / self._chips
    if slots:
      scalars = scalars | {'useful': tokens / slots}
    if flops:
      speed = flops / max(seconds, 1e-9) / self._chips
      clock['perf/tflops_chip'] = speed / 1e12
      if self._peak:
        clock['perf/mfu'] = speed / self._peak
    line = {'step': step, 'tokens': tokens, **scalars, **clock}
    finite = {k: v if math.isfinite(v) else None for k, v in line.items()}
    self._recent.append(finite)
    wrong = self._alarms(list(self._recent))
    scalars = scalars | {f'alarm/{name}': 1.0 for name in wrong}
    finite |= {f'alarm/{name}': 1.0 for name in wrong}
    with _naming(self._lines.path):
      self._lines.write(json.dumps(finite) + '\n')
    values = [
      self._tf.Summary.Value(tag=name, simple_value=value)
      for name, value in (scalars | clock).items()
    ]
    self._events.add_summary(self._tf.Summary(value=values), step)
    self._show(step, scalars, clock['perf/tokens_per_s'])
    self._warn(step, wrong)

  def samples(self, step: int, rows: list[dict]):
    """Writes rows to samples/step_<step>.parquet and shows a few of them."""
    import datasets  # Slow to import.

    path = self._dir / 'samples' / f'step_{step:06d}.parquet'
    datasets.disable_progress_bars()
    with _naming(path), files.draft(path) as temporary:
      datasets.Dataset.from_list(rows).to_parquet(str(temporary))
    now = time.monotonic()
    if now - self._tabled > TABLE_SECONDS or step == self._total:
      self._tabled = now
      self._console.print(sample_table(step, rows))

  def close(self):
    if self._bar:
      self._bar.stop()
    self._events.close()
    self.send()

  def send(self):
    """Sends the lines that a bucket has not got yet."""
    with _naming(self._lines.path):
      self._lines.send()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()

  def _warn(self, step, wrong):
    for name, text in wrong.items():
      if step - self._said.get(name, -math.inf) >= ALARM_STEPS:
        self._said[name] = step
        self._console.print(_plain(f'step {step}: ALARM {name}: {text}'))

  def _show(self, step, scalars, speed):
    now = time.monotonic()
    pace = (now - self._began) / max(step - self._first, 1)
    left = pace * (self._total - step)
    headline = ' '.join(
      f'{name} {scalars[name]:.4g}'
      for name in ('loss', 'reward', 'format_rate', 'entropy', 'lr')
      if name in scalars
    )
    text = f'{headline}  {speed:,.0f} tokens/s  {clock_text(left)} left'
    if self._bar:
      self._bar.update(self._bar.task_ids[0], completed=step, description=text)
    elif now - self._shown > QUIET_SECONDS or step == self._total:
      self._shown = now
      print(f'step {step}/{self._total}  {text}', flush=True)


def peak(kind: str) -> float | None:
  """Dense bfloat16 operations a second of a `device_kind`, by its vendor."""
  return next((flops for name, flops in PEAKS if name in kind), None)


def provenance() -> dict:
  """{command, versions}: what it takes to do this again."""
  versions = {name: importlib.metadata.version(name) for name in PACKAGES}
  return {
    'command': shlex.join(sys.orig_argv),
    'versions': {'python': platform.python_version(), **versions},
  }


def byte_report(what: str):
  """report(done, total) that prints progress, speed and time left, rarely."""
  began = shown = time.monotonic()

  def report(done: int, total: int):
    nonlocal shown
    now = time.monotonic()
    if now - shown < QUIET_SECONDS:
      return
    shown = now
    left = (now - began) * (total - done) / done
    print(
      f'{what}: {done / 1e9:.1f} of {total / 1e9:.1f} GB, '
      f'{done / (now - began) / 1e9:.2f} GB/s, {clock_text(left)} left',
      flush=True,
    )

  return report


def truncate(path, last_step: int):
  """Drops lines after `last_step`, and a last line that a kill tore."""
  if not files.exists(path):
    return
  kept = [
    line
    for line in files.read_bytes(path).decode().splitlines(keepends=True)
    if line.endswith('\n') and json.loads(line)['step'] <= last_step
  ]
  files.write_text(path, ''.join(kept))


def read_lines(path) -> list[dict]:
  """The lines of a metrics.jsonl; none where there is no such file."""
  if not files.exists(path):
    return []
  return [json.loads(line) for line in files.read_bytes(path).splitlines()]


def sample_table(step: int, rows) -> rich.table.Table:
  """A few completions with what they earned, right ones and wrong ones."""
  table = rich.table.Table(title=f'samples of step {step}', show_lines=True)
  for name in SAMPLE_COLUMNS:
    table.add_column(name, overflow='fold')
  # Those without a reward come last: NaN has no order of its own.
  ordered = sorted(
    rows, key=lambda row: (math.isnan(row['reward']), -row['reward'])
  )
  stride = max(len(ordered) // SHOWN_SAMPLES, 1)
  for row in ordered[::stride][:SHOWN_SAMPLES]:
    shown = '?? -> ' if row['kind'] == 'input' else f'({row["args"]}) -> '
    expected = f'{row["entry"]}({row["args"]})'
    table.add_row(
      _plain(row['code'] + '\n' + shown + _known(row)),
      _plain(row['text'][-SHOWN_CHARS:]),
      _plain(row['answer'] or '-'),
      _plain(row['output'] if row['kind'] == 'output' else expected),
      f'{row["reward"]:g}',
      f'{row["advantage"]:+.2f}',
    )
  return table


def clock_text(seconds: float) -> str:
  """'1 h 02 min', '3 min 04 s' or '5 s'."""
  seconds = round(seconds)
  if seconds >= 3600:
    return f'{seconds // 3600} h {seconds % 3600 // 60:02d} min'
  if seconds >= 60:
    return f'{seconds // 60} min {seconds % 60:02d} s'
  return f'{seconds} s'


@contextlib.contextmanager
def _naming(path):
  """Adds the file and the way out to an OSError that came without them."""
  try:
    yield
  except OSError as error:
    raise OSError(
      error.errno,
      f'{error.strerror or error}: metrics cannot be written. Make room, then '
      'run the same command again: it continues from its last checkpoint',
      str(path),
    ) from error


def _known(row):
  return row['output'] if row['kind'] == 'input' else '??'


def _plain(text):
  return rich.text.Text(text)


def _bar(console, start_step, total_steps):
  """A live progress bar on a terminal, else None."""
  if not sys.stdout.isatty():
    return None
  bar = rich.progress.Progress(
    rich.progress.MofNCompleteColumn(),
    rich.progress.BarColumn(),
    rich.progress.TextColumn('{task.description}'),
    console=console,
  )
  bar.add_task('', total=total_steps, completed=start_step)
  bar.start()
  return bar
