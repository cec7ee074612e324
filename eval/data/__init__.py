"""Read datasets and cases, split them, and guard them against leakage."""
