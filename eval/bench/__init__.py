"""Benchmarks: one small file each, run by a make target of the same name."""
