"""The demo dataset: films described in our own words, and events of made-up users."""
