"""NoGateway: a model gateway without a model, for sandboxes whose agent needs none."""

from __future__ import annotations

from pathlib import Path

from agent_runtime.needs import Egress
from agent_runtime.ports import GatewayEndpoint


class NoGateway:
    """Implements `ports.ModelGateway`: endpoints that nobody serves."""

    def __init__(self) -> None:
        self._whose: dict[str, str] = {}

    @property
    def opened(self) -> set[str]:
        """Who has one."""
        return set(self._whose.values())

    async def open(
        self,
        session_id: str,
        *,
        egress: Egress | None = None,  # noqa: ARG002 - nothing passes anyway
        lane: str | None = None,
    ) -> GatewayEndpoint:
        """An endpoint in name only; of a lane that another had, it is this session's now."""
        await self.close(session_id)
        self._whose[lane or session_id] = session_id
        return GatewayEndpoint(Path("no-gateway.sock"), "no-token")

    async def close(self, session_id: str) -> None:
        """Take the endpoint back. Idempotent."""
        self._whose = {lane: whose for lane, whose in self._whose.items() if whose != session_id}

    async def aclose(self) -> None:
        """Take all back. Idempotent."""
        self._whose.clear()
