"""Agent kinds, one folder each."""
