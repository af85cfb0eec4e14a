"""Side-by-side measurements behind scripts/benchmark.py: one file a question, each a function returning plain data."""

import animatediff.console  # noqa: F401  # quiets the libraries here and in every process that a part starts
