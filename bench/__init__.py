"""Benchmarks beside FAISS: `python -m bench.search`, `python -m bench.encode`, `pytest bench`."""
