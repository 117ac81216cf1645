"""Benchmarks beside FAISS: python -m bench.search, bench.encode, and pytest bench."""
