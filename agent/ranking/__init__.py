"""Order candidates: fusion, learned fusion, diversity, feedback, reranking by a language model."""
