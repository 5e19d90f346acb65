"""AgentSession: one session in memory. It performs what `lifecycle` decides.

    send, interrupt, ...   feed inputs to `lifecycle.step`; the state moves at once
    machine, performer     the one task that carries effects out, in order; tasks of their own for a
                           sandbox on its way (`wake`) and for a runner that is attached
    recorder, turns        append, fold and save; begin and end turns

All tasks belong to one task group, in `run`. Closing: 1. the lifecycle is asked to stop; 2. the
turn under way ends with a typed error; 3. files and transcript are synced; 4. the sandbox is
stopped; 5. the task group is cancelled. Whatever ends `run`, no sandbox is left and nobody waits for
ever. Knows no vendor, no wire and no other session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal

import structlog

from agent_runtime import moves
from agent_runtime.blocks import Content
from agent_runtime.conversation import Snapshot
from agent_runtime.errors import Conflict, PersistenceFault
from agent_runtime.performer import Performer
from agent_runtime.ports import AgentTurnEnded
from agent_runtime.profile import AgentProfile
from agent_runtime.recorder import Recorder
from agent_runtime.records import (
    ClientSession,
    Phase,
    Turn,
    TurnError,
    TurnStatus,
    WorkspaceFile,
)
from agent_runtime.tasks import unhindered
from agent_runtime.turns import Turns
from agent_runtime.wake import Surroundings

_log = structlog.get_logger(__name__)

_BUSY: Final = frozenset({Phase.RUNNING, Phase.WAKING, Phase.STOPPING})
_WITH_AGENT: Final = frozenset({Phase.RUNNING, Phase.READY})
_ON_THE_WAY: Final = frozenset({Phase.RUNNING, Phase.READY, Phase.WAKING})


@dataclass(frozen=True, slots=True)
class SendReceipt:
    """What a sender gets: the turn of its message, and whether the message was known already."""

    turn_id: str
    duplicate: bool


class AgentSession:
    """One loaded session. Its methods may be called from any task of the loop while `run` runs.

    Args:
        profile: asked for at each wake, so that a changed profile counts from the next sandbox on.
        unfinished: turns that were queued or under way when the session was last in memory, in order.
        on_change: called when what a session list shows has changed.
    """

    def __init__(
        self,
        recorder: Recorder,
        turns: Turns,
        around: Surroundings,
        *,
        profile: Callable[[str], Awaitable[AgentProfile]],
        unfinished: tuple[Turn, ...],
        interrupt_grace_s: float,
        on_change: Callable[[ClientSession], None],
    ) -> None:
        self.recorder = recorder
        self._turns = turns
        self._persistence = around.persistence
        self._unfinished = unfinished
        self._on_change = on_change
        self._performer = Performer(
            recorder,
            turns,
            around,
            profile=profile,
            interrupt_grace_s=interrupt_grace_s,
            on_change=on_change,
        )
        self._machine = self._performer.machine
        self._over = asyncio.Event()
        self._queue_unfinished()

    # What callers may ask.

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.recorder.session_id

    def shown(self) -> ClientSession:
        """The session as clients see it now."""
        return self._performer.shown()

    def snapshot(self, block_limit: int) -> Snapshot:
        """The session as of the last event that was folded; no await, so nothing can come between."""
        blocks, has_more = self.recorder.conversation.blocks(block_limit)
        return Snapshot(
            session=self.shown(),
            position=self.recorder.position,
            blocks=blocks,
            has_more=has_more,
            subagents=self.recorder.conversation.subagents(),
            queue=self._turns.queue(self._machine.state.queue),
            files=self.files(),
        )

    async def send(
        self, content: Content, *, message_id: str | None, when_busy: Literal["queue", "reject"]
    ) -> SendReceipt:
        """Accept a message; returns when it is durable.

        Raises `Conflict` (`session_busy`) with `reject` while a turn is under way or on its way,
        `Conflict` (`session_unloaded`) when it is being put away, `RateLimited` (`queue_full`), and
        `PersistenceFault` while the store does not answer.
        """

        def admit() -> None:
            self._check_loaded()
            self._check_store()
            if when_busy == "reject" and (self._machine.state.phase in _BUSY or self._machine.state.queue):
                raise Conflict("A turn is under way.", code="session_busy", session_id=self.session_id)

        turn, duplicate = await self._turns.accept(content, message_id, admit=admit)
        if not duplicate:
            self._machine.feed(moves.MessageAccepted(turn.turn_id))
        return SendReceipt(turn.turn_id, duplicate)

    def files(self) -> tuple[WorkspaceFile, ...]:
        """The manifest as it is known now, sorted by path, without content."""
        return tuple(file for _, file in sorted(self.recorder.files.items()))

    async def file(self, path: str) -> WorkspaceFile | None:
        """One file with its content: what is known, brought to the store first; None if there is none.

        Raises `PersistenceFault`.
        """
        self._check_store()
        await self.recorder.flush()
        return await self._persistence.load_file(self.session_id, path)

    def interrupt(self, turn_id: str | None) -> bool:
        """Ask the active turn (None) or a named one to end; whether there was anything to end."""
        before = self._machine.state
        self._machine.feed(moves.InterruptWanted(turn_id))
        return self._machine.state != before

    def prewarm(self) -> None:
        """Begin to wake, if the session sleeps."""
        self._machine.feed(moves.PrewarmWanted())

    async def stop(self, error: TurnError | None = None) -> None:
        """End the sandbox; returns when it is gone. The session stays."""
        self._machine.feed(moves.StopWanted(error))
        await self._machine.idle()

    async def sync(self) -> None:
        """Make everything durable now, the workspace's present state included.

        Raises `PersistenceFault`.
        """
        self._check_store()
        await self._performer.settle()
        await self.recorder.flush()

    async def update_options(self, options: dict[str, Any]) -> None:
        """Change session options; a running agent follows.

        Raises `InvalidRequest`, `Conflict` (`options_refused`) when the running agent cannot change
        them, and `SandboxFault`.
        """
        await self._performer.update_options(options)

    async def update_record(self, **changes: Any) -> None:
        """Change name or metadata."""
        await self.recorder.update_record(**changes)
        self._on_change(self.shown())

    def close(self) -> None:
        """End `run`. The sandbox should have been stopped before."""
        self._over.set()

    def _check_loaded(self) -> None:
        if self._over.is_set():
            detail = "The session is just being put away; try again."
            raise Conflict(detail, code="session_unloaded", retryable=True, session_id=self.session_id)

    def _check_store(self) -> None:
        if self.recorder.failing:
            raise PersistenceFault("The store does not answer; try again later.")

    # The tasks.

    async def run(self) -> None:
        """Live until `close`. Owns every task of the session; leaves no sandbox, however it ends."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._performer.spawn = self._spawn
                self._spawn("sync", self.recorder.keep_in_sync())
                await self._end_broken_off()
                self._spawn("effects", self._machine.run(self._performer.perform))
                await self._over.wait()
                raise _Over
        except* _Over:
            _log.debug("session_closed", session_id=self.session_id)
        finally:
            self._over.set()
            try:
                await unhindered(self._performer.leave_nothing())
            finally:
                self._machine.end()

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=f"session:{self.session_id}:{name}")

    def _queue_unfinished(self) -> None:
        """Turns that waited when an earlier process ended go on, before any new one."""
        for turn in self._unfinished:
            if turn.status is TurnStatus.QUEUED:
                self._turns.resume(turn)
                self._machine.feed(moves.MessageAccepted(turn.turn_id))

    async def _end_broken_off(self) -> None:
        """Turns that ran when an earlier process ended have failed, and all they left open is closed."""
        for turn in self._unfinished:
            if turn.status is TurnStatus.RUNNING:
                self._turns.current = turn
                report = AgentTurnEnded(status=TurnStatus.FAILED, error=_RUNTIME_LOST)
                await self._turns.end(turn.turn_id, report, everything=True, settle=_nothing)
        await self._turns.close_open(TurnStatus.FAILED, everything=True)


_RUNTIME_LOST: Final = TurnError(
    code="runtime_lost", message="The runtime ended while this turn was under way.", retryable=True
)


async def _nothing() -> None:
    """There is no sandbox to settle."""


class _Over(Exception):
    """Ends the session's task group."""
