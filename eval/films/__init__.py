"""The demo dataset: films in our own words, and people who do not exist."""
