"""Benchmarks: their files, prompts, scorers and statistics."""
