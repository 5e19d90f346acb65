"""Event logs: memory."""
