"""Benchmarks to evaluate on (`build.py`), training samples (`index_dataset.py`), and the built-in `shapes` world."""
