"""The society as a server: an OpenAI-compatible API, a page and a terminal chat, over one engine for all clients."""
