"""Side-by-side measurements behind scripts/benchmark.py: one file a question, each a function returning plain data."""
