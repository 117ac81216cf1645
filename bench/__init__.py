"""Benchmarks beside FAISS: python -m bench.search, bench.encode, bench.accuracy, and pytest bench."""
