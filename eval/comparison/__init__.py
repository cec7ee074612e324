"""Compare arms on cases: `evoke compare`."""
