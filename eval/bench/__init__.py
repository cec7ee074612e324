"""Benchmarks of speed and load: one file each, run by the make target of the same name."""
