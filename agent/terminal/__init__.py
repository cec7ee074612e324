"""Use the recommender in a terminal."""
