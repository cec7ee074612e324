"""Read a message of a conversation: the rules, and the language model."""
