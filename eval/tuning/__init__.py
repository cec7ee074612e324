"""Choose settings on validation cases: `evoke tune`."""
