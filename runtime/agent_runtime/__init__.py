"""agent-runtime: AI coding agents in isolated sandboxes, streamed as typed blocks.

These names are the public surface; everything else may move.
"""

from agent_runtime.blocks import Block
from agent_runtime.config import RuntimeConfig
from agent_runtime.creation import NewSession
from agent_runtime.errors import RuntimeFault
from agent_runtime.events import Event, Position
from agent_runtime.gateway.broker import Gateway
from agent_runtime.manager import SessionManager
from agent_runtime.ports import (
    Agent,
    Authenticator,
    Credentials,
    EventLog,
    PersistenceAdapter,
    Principal,
    SandboxProvider,
)
from agent_runtime.profile import AgentProfile
from agent_runtime.runtime import AgentRuntime

__all__ = [
    "Agent",
    "AgentProfile",
    "AgentRuntime",
    "Authenticator",
    "Block",
    "Credentials",
    "Event",
    "EventLog",
    "Gateway",
    "NewSession",
    "PersistenceAdapter",
    "Position",
    "Principal",
    "RuntimeConfig",
    "RuntimeFault",
    "SandboxProvider",
    "SessionManager",
]
