"""Runs untrusted programs: sandboxed, limited, judged. Never imports jax.

One case: check(program, 'f(1, 2)', '3') -> Verdict(kind, detail, value, cpu_s)
Many:     check_all([Case(program, call, expected), ...], pool=pool)
By hand:  Pool(workers).run([Job(code, entry, args, trace)]) -> [Result]
What protects this machine: python -m crjax.execution probe

The policy's text is data: `literals` parses it within bounds and prints what
runs. The expected value never enters a worker; `values` turns both sides into
texts, and texts are compared. No verdict is read off an exit status, and
'infra' is no verdict on the program.
"""

from crjax.execution.labels import Step
from crjax.execution.pool import Pool
from crjax.execution.results import Job, Result
from crjax.execution.verdicts import (
  KINDS,
  Case,
  Verdict,
  check,
  check_all,
  show_progress,
)

__all__ = [
  'KINDS',
  'Case',
  'Job',
  'Pool',
  'Result',
  'Step',
  'Verdict',
  'check',
  'check_all',
  'show_progress',
]
