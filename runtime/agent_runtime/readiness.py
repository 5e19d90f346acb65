"""Readiness: whether new work can be taken, and each part's own word on it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from pydantic.alias_generators import to_camel

from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import PersistenceFault
from agent_runtime.loading import Loaded
from agent_runtime.pool import SandboxPool

_PROBE_S: Final = 2.0
"""For the store to answer when somebody asks whether we are ready."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether new work can be taken, and each part's own word on it (JSON values)."""

    ok: bool
    parts: dict[str, dict[str, object]]


class ReadinessProbe:
    """Asks the parts of a runtime."""

    def __init__(self, config: RuntimeConfig, loaded: Loaded, pool: SandboxPool) -> None:
        self._config = config
        self._loaded = loaded
        self._pool = pool

    async def ask(self) -> Readiness:
        """Whether store and sandboxes work."""
        capabilities = await self._config.sandboxes.probe()
        fault = await self._store_fault()
        parts: dict[str, dict[str, object]] = {
            "persistence": {"ok": True} if fault is None else {"ok": False, "reason": fault},
            "sandboxes": {
                "ok": capabilities.available,
                "provider": capabilities.provider,
                "isolation": capabilities.isolation,
                "enforces": [to_camel(name) for name in capabilities.enforces],
                "reasons": list(capabilities.reasons),
            },
        }
        if self._pool.size:  # an empty one makes new sessions slower, and refuses nothing
            parts["pool"] = {"ok": True, "size": self._pool.size, "waiting": self._pool.waiting}
        return Readiness(all(part["ok"] for part in parts.values()) and not self._loaded.closing, parts)

    async def _store_fault(self) -> str | None:
        """Why the store does not work; None while it does."""
        try:
            async with asyncio.timeout(_PROBE_S):
                await self._config.persistence.check()
        except TimeoutError:
            return "The store does not answer."
        except PersistenceFault as fault:
            return fault.detail
        refused = self._loaded.fault()
        self._loaded.try_again()
        return None if refused is None else refused.detail
