"""AgentSession: one session in memory. It performs what `lifecycle` decides.

    send, interrupt, ...   feed inputs to `lifecycle.step`; the state moves at once
    machine, performer     the one task that carries effects out, in order; tasks of their own for a
                           sandbox on its way (`wake`) and for a runner that is attached
    recorder, turns        append, fold and save; begin and end turns

All tasks belong to one task group, in `run`. It begins by going on where an earlier process of this
runtime ended: in its sandbox, if that lives, with the turn that was under way. There are two ends.
`stop`, then `close`: the turn under way ends with a typed error, files and transcript are synced, the
sandbox is stopped. `close` with `detach`: all of it goes on without us, and the next process finds it.
A `run` that fails leaves its sandbox to whoever loads the session again, if it may `survive`, and else
ends it; in no case does anybody wait for ever. Knows no vendor, no wire and no other session.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import structlog

from agent_runtime import moves
from agent_runtime.attachment import Attachment
from agent_runtime.blocks import Content, UserMessage
from agent_runtime.conversation import Snapshot
from agent_runtime.errors import Conflict, PersistenceFault, SandboxFault
from agent_runtime.passages import Passage, Passages, Terminal
from agent_runtime.performer import Performer
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
from agent_runtime.reports import AgentTurnEnded
from agent_runtime.tasks import unhindered
from agent_runtime.turns import Turns
from agent_runtime.wake import Surroundings

_log = structlog.get_logger(__name__)

_BUSY: Final = frozenset({Phase.RUNNING, Phase.WAKING, Phase.STOPPING})
_ASLEEP: Final = frozenset({Phase.DORMANT, Phase.FAILED})
_ON_THE_WAY: Final = frozenset({Phase.WAKING, Phase.STOPPING})


_STEER_S: Final = 5.0
"""For the agent to take a message in mid-turn; it needs some milliseconds."""

WhenBusy: TypeAlias = Literal["queue", "steer", "interrupt", "reject"]
Outcome: TypeAlias = Literal["started", "queued", "steered", "interrupted"]


@dataclass(frozen=True, slots=True)
class SendReceipt:
    """What a sender gets: the turn of its message, and whether the message was known already.

    `outcome` tells what happened to a new one: its turn is on its way; it waits; the agent was handed it
    for the turn under way; that turn was asked to end and this one comes next.
    """

    turn_id: str
    duplicate: bool
    outcome: Outcome | None = None


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
        on_change: Callable[[ClientSession], None],
    ) -> None:
        self.recorder = recorder
        self._turns = turns
        self._around = around
        self._persistence = around.persistence
        self._unfinished = unfinished
        self._on_change = on_change
        self._performer = Performer(recorder, turns, around, profile=profile, on_change=on_change)
        self._holder = self._performer.holder
        self._machine = self._performer.machine
        self._over = asyncio.Event()
        self._keeps_sandbox = False
        self._survives = False
        self._taken_up = asyncio.Event()
        self.used_at = asyncio.get_running_loop().time()

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

    async def send(self, content: Content, *, message_id: str | None, when_busy: WhenBusy) -> SendReceipt:
        """Accept a message; returns when it is durable, and with `steer` when it is known what came of it.

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
        if duplicate:
            return SendReceipt(turn.turn_id, duplicate)
        return SendReceipt(turn.turn_id, duplicate, await self._enter(turn.turn_id, when_busy))

    async def _enter(self, turn_id: str, when_busy: WhenBusy) -> Outcome:
        """Give an accepted message to the lifecycle; returns what it made of it."""
        steers = when_busy == "steer" and self._around.agent.steers
        manner: moves.Manner = "steer" if steers else "interrupt" if when_busy == "interrupt" else "queue"
        before = self._machine.state
        self._machine.feed(moves.MessageAccepted(turn_id, manner))
        if before.phase is Phase.RUNNING and manner == "interrupt":
            return "interrupted"
        if before.phase is Phase.RUNNING and steers and not before.interrupting:
            return "steered" if await self._performer.steered(turn_id, _STEER_S) else "queued"
        return "started" if before.turn is None and not before.queue else "queued"

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
        at_work = turn_id is None and self._holder.at_work
        self._machine.feed(moves.InterruptWanted(turn_id))
        return self._machine.state != before or at_work

    def prewarm(self) -> None:
        """Begin to wake, if the session sleeps."""
        self._machine.feed(moves.PrewarmWanted())

    async def open_port(self, port: int, *, sandbox_id: str | None = None) -> Passage:
        """Connect to what listens inside; wakes nothing. `sandbox_id`: only if it is that one.

        Raises `Conflict` (`sandbox_not_running`), and what `Passages.port` raises.
        """
        return await self._passages(sandbox_id).port(port)

    async def open_terminal(self, rows: int, columns: int) -> Terminal:
        """Start a shell in the sandbox; wakes one, where there is none.

        Raises `SandboxFault` (`sandbox_failed`, `sandbox_timeout`), and what `Passages.terminal` raises.
        """
        try:
            async with asyncio.timeout(self._around.wake_timeout_s):
                state = await self._machine.until(lambda state: state.phase not in _ON_THE_WAY)
                if state.phase in _ASLEEP:
                    self._machine.feed(moves.PrewarmWanted())
                    await self._machine.until(lambda state: state.phase not in _ON_THE_WAY)
        except TimeoutError as error:
            raise SandboxFault("There was no sandbox in time.", code="sandbox_timeout") from error
        if self._machine.state.phase in _ASLEEP:
            raise SandboxFault("The sandbox could not be started.")
        return await self._passages(None).terminal(rows, columns)

    def sandbox_id(self) -> str:
        """The sandbox that the session has. Raises `Conflict` (`sandbox_not_running`)."""
        return self._attached().link.sandbox.ref.sandbox_id

    def _attached(self) -> Attachment:
        attached = self._holder.attached
        if attached is None or self._machine.state.phase is Phase.STOPPING:
            detail = "The session has no sandbox at present."
            raise Conflict(detail, code="sandbox_not_running", retryable=True, session_id=self.session_id)
        return attached

    def _passages(self, sandbox_id: str | None) -> Passages:
        attached = self._attached()
        if sandbox_id not in {None, attached.link.sandbox.ref.sandbox_id}:
            detail = "The session has another sandbox now."
            raise Conflict(detail, code="sandbox_not_running", session_id=self.session_id)
        return attached.passages

    async def stop(self, error: TurnError | None = None) -> None:
        """End the sandbox; returns when it is gone. The session stays.

        That may take as long as the store is away: nothing ends before what is in it is durable.
        """
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

    async def taken_up(self) -> bool:
        """Return when the session goes on where an earlier process ended; False when it has ended itself."""
        await self._taken_up.wait()
        return not self._over.is_set()

    def quiet_s(self) -> float:
        """For how long nobody used the session; 0 while it has a sandbox, or anything to do or to save."""
        if self._machine.state.phase not in _ASLEEP or self.recorder.dirty or self._turns.accepting:
            return 0.0
        return asyncio.get_running_loop().time() - max(self.used_at, self._machine.moved_at)

    def survive(self) -> None:
        """Should `run` fail, the sandbox goes on for whoever loads the session again."""
        self._survives = True

    def close(self, *, detach: bool = False) -> None:
        """End `run`. With `detach` the sandbox goes on; else it should have been stopped before."""
        self._keeps_sandbox = detach
        self._over.set()

    def _check_loaded(self) -> None:
        if self._over.is_set():
            detail = "The session is just being put away; try again."
            raise Conflict(detail, code="session_unloaded", retryable=True, session_id=self.session_id)

    def _check_store(self) -> None:
        if (fault := self.recorder.calls.fault) is not None:
            self.recorder.calls.try_again()
            detail = "The store does not answer; try again later." if fault.retryable else fault.detail
            raise PersistenceFault(detail, retryable=fault.retryable, session_id=self.session_id)

    # The tasks.

    async def run(self) -> None:
        """Live until `close`. Owns every task of the session; leaves no sandbox, unless it detaches."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._holder.spawn = self._spawn
                self._spawn("sync", self.recorder.keep_in_sync())
                waiting = await self._take_up()
                self._spawn("effects", self._machine.run(self._performer.perform))
                await self._holder.caught_up()
                await self._holder.follow_options()
                for turn_id in waiting:
                    self._machine.feed(moves.MessageAccepted(turn_id))
                self._taken_up.set()
                await self._over.wait()
                raise _Over
        except* _Over:
            _log.debug("session_closed", session_id=self.session_id)
        finally:
            failed = not self._over.is_set()
            self._over.set()
            try:
                keeps = self._keeps_sandbox or (failed and self._survives)
                await unhindered(self._holder.detach() if keeps else self._holder.let_go())
            finally:
                self._machine.end()
                self._taken_up.set()

    def _spawn(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self._tasks.create_task(work, name=f"session:{self.session_id}:{name}")

    async def _take_up(self) -> list[str]:
        """Go on where an earlier process ended; what cannot go on has failed. Returns who waits still."""
        running = [turn for turn in self._unfinished if turn.status is TurnStatus.RUNNING]
        queued = [turn for turn in self._unfinished if turn.status is TurnStatus.QUEUED]
        for turn in queued:
            self._turns.resume(turn)
        waiting = [turn.turn_id for turn in queued]
        if self.recorder.record.sandbox is None:
            await self._end_broken_off(running, _RUNTIME_LOST)
        elif (found := await self._holder.find()) is None:
            await self._end_broken_off(running, self._holder.mishap or _SANDBOX_LOST)
            await self.recorder.update_record(sandbox=None, checkpoint=None)
        else:
            under_way = running[-1] if running else None  # there is one at most
            return await self._go_on(under_way, waiting, agent=found.agent == "running")
        return waiting

    async def _go_on(self, turn: Turn | None, waiting: list[str], *, agent: bool) -> list[str]:
        """In the sandbox of the earlier process, with its turn. Returns who waits until all is heard.

        Those that wait must be known while a turn is under way: its agent may have answered them too.
        """
        if turn is None and waiting and agent:
            # It comes next, as it would have come then: its agent may have been handed it, and be done.
            first, *waiting = waiting
            await self._turns.begin(first)
            turn = self._turns.current
        elif turn is not None:
            self._turns.go_on(turn, await self._said(turn))
        if turn is None:
            self._machine.feed(moves.Attached(None, (), autonomous=False, agent=agent))
            self._holder.go_on(waiting)
            return waiting
        autonomous = turn.message_id is None
        attached = moves.Attached(turn.turn_id, tuple(waiting), autonomous=autonomous, agent=agent)
        self._machine.feed(attached)
        self._holder.go_on((turn.turn_id, *waiting))
        if not agent:
            self._spawn("agent_gone", self._lose_agent())
        return []

    async def _lose_agent(self) -> None:
        """Its end is in the journal, unless that was dealt with already."""
        await self._holder.caught_up()
        self._machine.feed(moves.SandboxLost(_AGENT_GONE))

    async def _said(self, turn: Turn) -> Content:
        """The message that a turn under way answers: that is in its block now."""
        index = await self._persistence.block_index(self.session_id, turn.turn_id)
        if index is None:
            return ""
        page = await self._persistence.load_blocks(self.session_id, limit=1, before=index + 1)
        said = [each.block.content for each in page.blocks if isinstance(each.block, UserMessage)]
        return said[0] if said else ""

    async def _end_broken_off(self, running: list[Turn], why: TurnError) -> None:
        """These turns have failed, and all that they left open is closed."""
        for turn in running:
            self._turns.current = turn
            report = AgentTurnEnded(status=TurnStatus.FAILED, error=why)
            await self._turns.end(turn.turn_id, report, everything=True, settle=_nothing)
        await self._turns.close_open(TurnStatus.FAILED, everything=True)


_RUNTIME_LOST: Final = TurnError(
    code="runtime_lost", message="The runtime ended while this turn was under way.", retryable=True
)
_SANDBOX_LOST: Final = TurnError(
    code="sandbox_lost", message="The sandbox ended while the runtime was away.", retryable=True
)
_AGENT_GONE: Final = TurnError(
    code="agent_failed", message="The agent's process ended while the runtime was away.", retryable=True
)


async def _nothing() -> dict[str, Any]:
    """There is no sandbox to settle."""
    return {}


class _Over(Exception):
    """Ends the session's task group."""
