"""Access to language models: the client, the embedded engine and its weights, adapters."""
