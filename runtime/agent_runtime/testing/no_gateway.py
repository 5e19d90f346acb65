"""NoGateway: a model gateway without a model, for sandboxes whose agent needs none."""

from __future__ import annotations

from pathlib import Path

from agent_runtime.needs import Egress
from agent_runtime.ports import GatewayEndpoint


class NoGateway:
    """Implements `ports.ModelGateway`: endpoints that nobody serves. `opened` names who has one."""

    def __init__(self) -> None:
        self.opened: set[str] = set()

    async def open(
        self,
        session_id: str,
        *,
        egress: Egress | None = None,  # noqa: ARG002 - nothing passes anyway
        lane: str | None = None,  # noqa: ARG002
    ) -> GatewayEndpoint:
        """An endpoint in name only."""
        self.opened.add(session_id)
        return GatewayEndpoint(Path("no-gateway.sock"), "no-token")

    async def close(self, session_id: str) -> None:
        """Take the endpoint back. Idempotent."""
        self.opened.discard(session_id)

    async def aclose(self) -> None:
        """Take all back. Idempotent."""
        self.opened.clear()
