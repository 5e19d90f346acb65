"""agent-runtime: AI coding agents in isolated sandboxes, streamed as typed blocks."""
