"""Training on a store's own data: the language model that writes queries and ranks, and the retriever."""
