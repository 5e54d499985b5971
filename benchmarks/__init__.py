"""Benchmarks: the plain 77-token way beside ours, in one process, on the same weights."""
