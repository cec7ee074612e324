"""The HTTP service: OpenAI-compatible chat, recommendations, events and the chat page. Each tenant has its own store."""
