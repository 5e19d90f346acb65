"""Changes: who watches the list of an owner's sessions, and what they are told; and who views a session.

The manager tells; the transport watches. A watcher that fails harms nobody else: least of all the
session that changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import structlog

from agent_runtime.records import ClientSession

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SessionChange:
    """A change of what a session list shows; `session` is None when it was deleted."""

    kind: Literal["created", "changed", "deleted"]
    session_id: str
    session: ClientSession | None


class Changes:
    """Watchers by owner."""

    def __init__(self) -> None:
        self._watchers: dict[object, tuple[str, Callable[[SessionChange], None]]] = {}

    def watch(self, owner: str, on_change: Callable[[SessionChange], None]) -> Callable[[], None]:
        """Be called at each change of the owner's sessions; returns how to end that."""
        key = object()
        self._watchers[key] = (owner, on_change)

        def cancel() -> None:
            self._watchers.pop(key, None)

        return cancel

    def tell(self, owner: str, change: SessionChange) -> None:
        """Call who watches this owner."""
        for watched, on_change in list(self._watchers.values()):
            if watched == owner:
                try:
                    on_change(change)
                except Exception:
                    _log.exception("watcher_failed", session_id=change.session_id)


class Viewers:
    """How many follow each session's log."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()

    @contextmanager
    def viewing(self, session_id: str) -> Iterator[None]:
        """Count one more while the block runs."""
        self._count[session_id] += 1
        try:
            yield
        finally:
            self._count[session_id] -= 1
            if not self._count[session_id]:
                del self._count[session_id]

    def any(self, session_id: str) -> bool:
        """Whether anybody follows this session."""
        return session_id in self._count
