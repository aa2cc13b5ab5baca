"""Benchmarks: pytest-benchmark for functions, side_by_side for whole servers."""
