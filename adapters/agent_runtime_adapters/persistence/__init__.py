"""Stores for durable records: memory and SQLite."""
