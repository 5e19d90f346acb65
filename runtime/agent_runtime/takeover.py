"""Takeover: what an earlier process of this runtime left is taken up; no sandbox stays that nobody knows.

A sandbox is known by the record of its session, from the moment when its agent waits; by its session in
memory a little earlier; or because it waits in the pool. At a start the sessions with something
unfinished are loaded, which goes on in their sandboxes (`session`), and other sandboxes with this
runtime's label are ended. Later on the provider's own list is looked at again and again: what nobody
has is ended, but for what is so young that it may be on its way. Who wants nothing to go on ends them
all.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client import Counter

from agent_runtime.clock import now
from agent_runtime.config import RuntimeConfig
from agent_runtime.errors import PersistenceFault, RuntimeFault
from agent_runtime.loading import Loaded
from agent_runtime.pool import SandboxPool
from agent_runtime.records import SandboxRef, SessionRecord
from agent_runtime.wake import end_sandbox

_log = structlog.get_logger(__name__)

_ASK_AGAIN_S: Final = 0.5
_TAKEN_UP_S: Final = 15.0
"""For all that was left to be taken up, when somebody wants it stopped; a session needs some seconds."""
_LIST_S: Final = 30.0
"""For a provider to say what there is."""
_SPARED_S: Final = 30.0
"""Beyond the time for a wake: until then a sandbox may be on its way to its record."""

_ENDED: Final = Counter(
    "agent_runtime_sandboxes_reaped",
    "Sandboxes that nobody had: ended, or failed where one did not end and is tried again.",
    ["outcome"],
)


class Takeover:
    """The sandboxes of one runtime, seen from outside of the sessions."""

    def __init__(self, config: RuntimeConfig, loaded: Loaded, pool: SandboxPool) -> None:
        self._config = config
        self._loaded = loaded
        self._pool = pool
        self._began = now()
        self._known = asyncio.Event()
        self._loads: dict[asyncio.Task[None], str | None] = {}
        self._left: set[str | None] = set()

    async def begin(self) -> None:
        """Look what is there, before there is anything new; the rest happens in the background.

        A provider that cannot say it now is asked again: nothing of what is older than us is ours.
        """
        self._began = now()
        living = await self._living()
        self._left = {ref.sandbox_id for ref in living}
        self._loaded.spawn(self._run(living))

    async def done(self) -> None:
        """Return when all that was left is taken up, or it takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_TAKEN_UP_S):
                await self._known.wait()
                if self._loads:
                    await asyncio.wait(self._loads)
        self._left -= {sandbox_id for load, sandbox_id in self._loads.items() if load.done()}

    async def end_all(self) -> None:
        """End every sandbox that is left, but for those whose content could not be saved in time."""
        left = [ref for ref in await self._living() if ref.sandbox_id not in self._left]
        await self._end(tuple(ref for ref in left if not self._loaded.holds(ref.sandbox_id)))

    async def _run(self, living: tuple[SandboxRef, ...]) -> None:
        unfinished = await self._unfinished()
        for record in unfinished:
            load = self._loaded.spawn(self._loaded.load_again(record.session_id))
            self._loads[load] = record.sandbox.sandbox_id if record.sandbox is not None else None
        self._left = set(self._loads.values())
        self._known.set()
        await self._end_unknown(living, unfinished)
        while True:
            await asyncio.sleep(self._config.reap_interval_s)
            try:
                await self._reap()
            except Exception:  # what a provider does wrong once must not end this for ever
                _log.exception("reaper_failed")

    async def _reap(self) -> None:
        """First what there is, then what is known: whatever came between is known, and spared."""
        young = now() - timedelta(seconds=self._config.wake_timeout_s + _SPARED_S)
        living = await self._living()
        old = tuple(ref for ref in living if ref.started_at < max(young, self._began))
        if old:
            await self._end_unknown(old, await self._unfinished())

    async def _living(self) -> tuple[SandboxRef, ...]:
        """All sandboxes with our label; none where the provider does not say."""
        try:
            async with asyncio.timeout(_LIST_S):
                return await self._config.sandboxes.list(self._config.runtime_id)
        except (RuntimeFault, TimeoutError) as fault:
            code = fault.code if isinstance(fault, RuntimeFault) else "sandbox_timeout"
            _log.warning("sandboxes_not_known", code=code)
            return ()

    async def _end_unknown(self, refs: tuple[SandboxRef, ...], records: tuple[SessionRecord, ...]) -> None:
        known = {record.sandbox.sandbox_id for record in records if record.sandbox is not None}
        unknown = tuple(ref for ref in refs if ref.sandbox_id not in known and not self._has(ref.sandbox_id))
        for ref in unknown:
            _log.warning("unknown_sandbox_ended", sandbox_id=ref.sandbox_id)
        await self._end(unknown)

    def _has(self, sandbox_id: str) -> bool:
        return self._loaded.holds(sandbox_id) or self._pool.holds(sandbox_id)

    async def _end(self, refs: tuple[SandboxRef, ...]) -> None:
        """All at once: one that hangs must not spare the others."""
        ends = (end_sandbox(self._config.sandboxes, ref) for ref in refs)
        for gone in await asyncio.gather(*ends, return_exceptions=True):
            _ENDED.labels("ended" if gone is True else "failed").inc()
            if isinstance(gone, Exception):
                _log.error("sandbox_not_ended", error=repr(gone)[:200])

    async def _unfinished(self) -> tuple[SessionRecord, ...]:
        """Ask until the store answers: it may be a moment later than we are."""
        while True:
            try:
                return await self._config.persistence.unfinished_sessions()
            except PersistenceFault as fault:
                _log.warning("unfinished_sessions_not_known", code=fault.code, reason=fault.detail)
            await asyncio.sleep(_ASK_AGAIN_S)
