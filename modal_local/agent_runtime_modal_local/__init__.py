"""A local Modal: a server on loopback that the unmodified Modal SDK talks to, with real isolated sandboxes.

It knows Modal's protocol and nothing of agent-runtime; tests, the demo and anybody's own scripts use it
in place of an account.
"""

from agent_runtime_modal_local.faults import Do, Fault
from agent_runtime_modal_local.handle import LocalModal, LocalModalError

__all__ = ["Do", "Fault", "LocalModal", "LocalModalError"]
