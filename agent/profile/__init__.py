"""Turn a history into a profile: summary, interests, queries and named titles."""
