"""Fit signals and learned fusion on events before the cut."""
