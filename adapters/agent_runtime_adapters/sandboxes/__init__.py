"""Sandbox providers: local (bubblewrap) and, only by name, unsafe-subprocess."""
