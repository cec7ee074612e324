"""Talk to language models: one client, the embedded engine, adapters."""
