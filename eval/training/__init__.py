"""Train the language model's adapters and the retriever's encoder, and decide on validation cases whether to use them."""
