"""Measuring: demo data, benchmarks; the comparison of arms is to come."""
