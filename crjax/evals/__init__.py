"""Benchmarks as tasks: what they ask, in the form that rewards judge."""
