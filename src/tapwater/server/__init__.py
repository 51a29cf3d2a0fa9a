"""The OpenAI-compatible HTTP server and its chat page; the only importer of the web framework."""
