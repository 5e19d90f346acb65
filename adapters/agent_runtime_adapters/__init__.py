"""Adapters: one file per technology behind the seams of `agent_runtime.ports`."""
