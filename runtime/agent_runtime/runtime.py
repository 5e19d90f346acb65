"""AgentRuntime: one runtime as a host application holds it: a manager and its transport.

`app()` gives an aiohttp application of its own; `attach` mounts the same into a host's. The parts
come in the configuration (`config`); who builds them for the command line is `cli.composition`.
"""

from __future__ import annotations

from aiohttp import web

from agent_runtime import logs
from agent_runtime.config import RuntimeConfig
from agent_runtime.manager import SessionManager
from agent_runtime.transport.app import attach, build_app


class AgentRuntime:
    """A runtime that is opened and closed with the application that it is mounted in.

    Args:
        config: see `RuntimeConfig`. One configuration makes one runtime: its parts are opened and
            closed with it.

    Its log goes through structlog, as the host has configured that; see `logs` where it has not.
    """

    def __init__(self, config: RuntimeConfig) -> None:
        logs.be_plain()
        self.config = config
        self.manager = SessionManager(config)

    def app(self) -> web.Application:
        """An aiohttp application that serves the runtime, console included."""
        return build_app(self.manager, self.config)

    def attach(self, app: web.Application, *, prefix: str = "") -> None:
        """Serve the runtime below `prefix` in a host's application, before that one starts."""
        attach(app, self.manager, self.config, prefix=prefix)
