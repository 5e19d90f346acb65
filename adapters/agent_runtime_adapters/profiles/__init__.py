"""Where agent profiles come from: files."""
