"""OpenAI-compatible HTTP in front of a Backend and a Catalog (docs/server.md)."""
