"""Runs small programs in other processes, with limits. Never imports jax."""

from crjax.execution.pool import Job, Pool, Result, Step

__all__ = ['Job', 'Pool', 'Result', 'Step']
