"""Parse a message of a conversation: by rules, and by the language model."""
