"""What an answer is worth. Model text is parsed, never executed; no jax."""

from crjax.rewards.answers import Answer, extract, line_spans
from crjax.rewards.judge import literal
from crjax.rewards.scoring import score

__all__ = ['Answer', 'extract', 'line_spans', 'literal', 'score']
