"""watch: tells one connection which of its owner's sessions were made, changed or deleted.

Changes of one session within a tenth of a second become one. It knows nothing of how they are
delivered, and keeps no sessions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from agent_runtime.changes import SessionChange
from agent_runtime.transport import wire

COALESCE_S: Final = 0.1


class Watch:
    """Collects changes until they are told. `run` goes on until it is cancelled."""

    def __init__(self, tell: Callable[[str, bytes], None]) -> None:
        self._tell = tell
        self._pending: dict[str, SessionChange] = {}
        self._news = asyncio.Event()

    def note(self, change: SessionChange) -> None:
        """Something happened to a session; the newest counts, but a new session stays new."""
        earlier = self._pending.pop(change.session_id, None)
        if earlier is not None and earlier.kind == "created" and change.kind == "changed":
            change = SessionChange(kind="created", session_id=change.session_id, session=change.session)
        self._pending[change.session_id] = change
        self._news.set()

    async def run(self) -> None:
        """Tell what was noted, a moment after it happened."""
        while True:
            await self._news.wait()
            await asyncio.sleep(COALESCE_S)
            self._news.clear()
            pending, self._pending = self._pending, {}
            for change in pending.values():
                self._tell(wire.SESSION_EVENT[change.kind], wire.dump(_shown(change)))


def _shown(change: SessionChange) -> dict[str, Any]:
    shown: dict[str, Any] = {"sessionId": change.session_id}
    if change.session is not None:
        shown["session"] = change.session.to_json()
    return shown
