"""One page about runs that a person can mail: curves, tables, completions."""
