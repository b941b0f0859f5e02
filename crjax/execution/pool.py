"""Runs calls of programs in sandboxed workers; results in the order of jobs.

One worker is one process that forks a child for each frame (`worker.py`). The
expected answer is never sent there, and nothing that comes back is unpickled
or evaluated. A worker that dies is replaced, and what it held is run again.
"""

import collections
import threading
import warnings

from crjax.execution import isolation, wire
from crjax.execution.dispatch import Run
from crjax.execution.link import Link
from crjax.execution.results import Result

ALARM_SHARE, ALARM_JOBS = 0.01, 100  # of verdicts that are 'infra'


class Pool:
  """`workers` processes; use as a context manager.

  Args:
    workers: how many programs run at the same time.
    cpu_seconds: processor time of one call; five times that by the clock.
    memory_mb: what one call may allocate, in MiB.
    min_level: the isolation below which nothing is run, see
      isolation.MEANING.
    share: calls of one program that may share a process (1 for none). Only
      programs that pass `screen` do, and only plain values count from there.
    hash_seed: of str; two pools that differ in it find programs that depend
      on the order of sets.
    without: isolation.LAYERS to leave out, to see what the others hold.
    modules: what programs may import beside worker.MODULES; from where this
      process would, and before the isolation begins.

  Raises:
    RuntimeError, with the report, if the machine isolates less than asked.
  """

  def __init__(
    self,
    workers=2,
    *,
    cpu_seconds=1.0,
    memory_mb=256,
    min_level=2,
    share=wire.MOST_CALLS,
    hash_seed=0,
    without=(),
    modules=(),
  ):
    if not 1 <= share <= wire.MOST_CALLS:
      raise ValueError(f'share={share}: give 1 to {wire.MOST_CALLS}')
    self.cpu_seconds, self.memory_mb = cpu_seconds, memory_mb
    self.min_level, self.share = min_level, share
    self.hash_seed, self.without, self.modules = hash_seed, without, modules
    self.counts = collections.Counter()  # Results by verdict, so far.
    self._lock = threading.Lock()
    self._links = []
    try:
      for i in range(workers):  # All at once, then wait for each.
        self._links.append(self._start(i))
      self.report = min(map(self._ready, self._links), key=lambda r: r['level'])
    except BaseException:
      self.close()
      raise

  def _start(self, index):
    return Link(index, self.hash_seed, self.without, self.modules)

  def _ready(self, link):
    link.ready()
    if link.report['level'] < self.min_level:
      raise RuntimeError(refusal(self.min_level, link.report))
    return link.report

  def replace(self, link):
    """A new worker in the place of a dead one; OSError if none starts."""
    link.stop()
    index = self._links.index(link)
    self._links[index] = self._start(index)
    self._ready(self._links[index])
    return self._links[index]

  def run(self, jobs, progress=None) -> list[Result]:
    """One Result a job, in the order of the jobs; raises nothing for a job.

    Equal jobs run once. `progress(done, total)` is called now and then.
    """
    distinct = list(dict.fromkeys(jobs))
    with self._lock:
      found = Run(self, self._links, distinct, progress).results()
    found = dict(zip(distinct, found, strict=True))
    ordered = [found[job] for job in jobs]
    self.counts.update(result.verdict for result in ordered)
    self._alarm()
    return ordered

  def _alarm(self):
    failed, total = self.counts['infra'], self.counts.total()
    if total >= ALARM_JOBS and failed > ALARM_SHARE * total:
      warnings.warn(
        f'sandbox: {failed} of {total} runs failed through no fault of the '
        'program; is the machine short of memory or processes?',
        RuntimeWarning,
        stacklevel=3,
      )

  def close(self):
    for link in self._links:
      link.stop()

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def refusal(min_level, report) -> str:
  level = report['level']
  return (
    f'this machine isolates programs at level {level}, and level {min_level} '
    f'is asked for.\n{isolation.table(report)}\n'
    'Ways out: run on Linux, in a container whose profile allows seccomp(2) '
    '(the default one of Docker does). Or, if you trust every program that '
    f'will run, ask for less: Pool(min_level={level}), or '
    f'--config.sandbox_min_level={level} of train, evaluate and '
    f'data_pipeline.build. Then all that protects this machine is: '
    f'{isolation.MEANING[level]}.'
  )
