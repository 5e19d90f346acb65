"""AgentSession: one session in memory. It performs what `lifecycle` decides.

    send, interrupt, ...   feed inputs to `lifecycle.step`; the state moves at once
    _perform_effects       the one task that carries effects out, in order
    _wake                  a task of its own while a sandbox is on its way (`wake`)
    _listen                a task of its own while a runner is attached (`runner_feed`)
    recorder, turns        append, fold and save; begin and end turns

All tasks belong to one task group, in `run`. Closing: 1. the lifecycle is asked to stop; 2. the
turn under way ends with a typed error; 3. files and transcript are synced; 4. the sandbox is
stopped; 5. the task group is cancelled. Knows no vendor, no wire and no other session.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import structlog

from agent_runtime import lifecycle
from agent_runtime.blocks import Content
from agent_runtime.conversation import Snapshot
from agent_runtime.errors import Conflict, PersistenceFault, RuntimeFault, SandboxFault
from agent_runtime.events import OptionsChanged, QueueChanged, SessionStatus, WorkspaceRestored
from agent_runtime.lifecycle import Effect, Input, State
from agent_runtime.ports import AgentIdentity, AgentTurnBegan, AgentTurnEnded
from agent_runtime.profile import AgentProfile
from agent_runtime.recorder import Recorder
from agent_runtime.records import (
    ClientSession,
    Phase,
    RuntimeStatus,
    SandboxStatus,
    Turn,
    TurnError,
    TurnStatus,
    WorkspaceFile,
)
from agent_runtime.runner_feed import AgentGone, Heard, RunnerFeed
from agent_runtime.runner_link import RunnerLink
from agent_runtime.turns import Turns
from agent_runtime.wake import Surroundings, wake

_log = structlog.get_logger(__name__)

_SYNC_TIMEOUT_S: Final = 60.0
"""A full look at a large workspace; beyond it a turn ends with what is known."""
_GOODBYE_TIMEOUT_S: Final = 5.0
"""For the agent's polite end before its sandbox is stopped; it needs 30 ms."""
_BUSY: Final = frozenset({Phase.RUNNING, Phase.WAKING, Phase.STOPPING})


@dataclass(frozen=True, slots=True)
class SendReceipt:
    """What a sender gets: the turn of its message, and whether the message was known already."""

    turn_id: str
    duplicate: bool


class AgentSession:
    """One loaded session. Its methods may be called from any task of the loop while `run` runs.

    Args:
        profile: asked for at each wake, so that a changed profile counts from the next sandbox on.
        unfinished: turns that were queued when the session was last in memory, in order.
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
        self._around = around
        self._profile = profile
        self._unfinished = unfinished
        self._interrupt_grace_s = interrupt_grace_s
        self._on_change = on_change
        self._state = State()
        self._status_message: str | None = None
        self._effects: deque[Effect] = deque()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._over = asyncio.Event()
        self._link: RunnerLink | None = None
        self._waking: asyncio.Task[None] | None = None

    # What callers may ask.

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self.recorder.session_id

    def shown(self) -> ClientSession:
        """The session as clients see it now."""
        return ClientSession.of(self.recorder.record, self._runtime())

    def snapshot(self, block_limit: int) -> Snapshot:
        """The session as of the last event that was folded; no await, so nothing can come between."""
        blocks, has_more = self.recorder.conversation.blocks(block_limit)
        return Snapshot(
            session=self.shown(),
            position=self.recorder.position,
            blocks=blocks,
            has_more=has_more,
            subagents=self.recorder.conversation.subagents(),
            queue=self._turns.queue(self._state.queue),
            files=self.files(),
        )

    async def send(
        self, content: Content, *, message_id: str | None, when_busy: Literal["queue", "reject"]
    ) -> SendReceipt:
        """Accept a message; returns when it is durable.

        Raises `Conflict` (`session_busy`) with `reject` while a turn is under way or on its way,
        and `PersistenceFault` while the store does not answer.
        """

        def admit() -> None:
            if self.recorder.failing:
                raise PersistenceFault("The store does not answer; try again later.")
            if when_busy == "reject" and (self._state.phase in _BUSY or self._state.queue):
                raise Conflict("A turn is under way.", code="session_busy", session_id=self.session_id)

        turn, duplicate = await self._turns.accept(content, message_id, admit=admit)
        if not duplicate:
            self._feed(lifecycle.MessageAccepted(turn.turn_id))
        return SendReceipt(turn.turn_id, duplicate)

    def files(self) -> tuple[WorkspaceFile, ...]:
        """The manifest as it is known now, sorted by path, without content."""
        return tuple(file for _, file in sorted(self.recorder.files.items()))

    async def file(self, path: str) -> WorkspaceFile | None:
        """One file with its content: what is known, brought to the store first; None if there is none."""
        await self.recorder.flush()
        return await self._around.persistence.load_file(self.session_id, path)

    def interrupt(self, turn_id: str | None) -> bool:
        """Ask the active turn (None) or a named one to end; whether there was anything to end."""
        before = self._state
        self._feed(lifecycle.InterruptWanted(turn_id))
        return self._state != before

    def prewarm(self) -> None:
        """Begin to wake, if the session sleeps."""
        self._feed(lifecycle.PrewarmWanted())

    async def stop(self, error: TurnError | None = None) -> None:
        """End the sandbox; returns when it is gone. The session stays."""
        self._feed(lifecycle.StopWanted(error))
        await self._idle.wait()

    async def sync(self) -> None:
        """Make everything durable now, the workspace's present state included."""
        await self._settle()
        await self.recorder.flush()

    async def update_options(self, options: dict[str, Any]) -> None:
        """Change session options; a running agent follows. Raises `InvalidRequest`, `SandboxFault`."""
        merged = self._around.agent.check_options({**self.recorder.record.session_options, **options})
        if self._link is not None:
            await self._link.command("options", options=merged)
        await self.recorder.update_record(session_options=merged)
        await self.recorder.publish([OptionsChanged(session_options=merged)])
        self._on_change(self.shown())

    async def update_record(self, **changes: Any) -> None:
        """Change name or metadata."""
        await self.recorder.update_record(**changes)
        self._on_change(self.shown())

    def close(self) -> None:
        """End `run`. The sandbox must have been stopped before."""
        self._over.set()

    # The tasks.

    async def run(self) -> None:
        """Live until `close`. Owns every task of the session."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                name = f"session:{self.session_id}"
                self._tasks.create_task(self._perform_effects(), name=f"{name}:effects")
                self._tasks.create_task(self.recorder.keep_in_sync(), name=f"{name}:sync")
                await self._take_up_unfinished()
                await self._over.wait()
                raise _Over
        except* _Over:
            _log.debug("session_closed", session_id=self.session_id)

    async def _take_up_unfinished(self) -> None:
        """Turns that an earlier process left: what ran has failed, what waited goes on."""
        for turn in self._unfinished:
            if turn.status is TurnStatus.RUNNING:
                self._turns.current = turn
                report = AgentTurnEnded(status=TurnStatus.FAILED, error=_RUNTIME_LOST)
                await self._turns.end(turn.turn_id, report, everything=True, settle=_nothing)
            else:
                self._turns.resume(turn)
                self._feed(lifecycle.MessageAccepted(turn.turn_id))

    def _feed(self, given: Input) -> None:
        """Move the state; what follows from it is performed in order by the effects task."""
        self._state, effects = lifecycle.step(self._state, given)
        lifecycle.check(self._state)
        if effects:
            self._effects.extend(effects)
            self._idle.clear()
            self._wanted.set()

    async def _perform_effects(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._effects:
                await self._perform(self._effects.popleft())
            self._idle.set()

    async def _perform(self, effect: Effect) -> None:
        match effect:
            case lifecycle.Wake():
                name = f"session:{self.session_id}:wake"
                self._waking = self._tasks.create_task(self._wake(effect.attempt), name=name)
            case lifecycle.CancelWake():
                await self._cancel_wake()
            case lifecycle.BeginTurn():
                await self._turns.begin(effect.turn_id)
            case lifecycle.Deliver():
                await self._deliver(effect.turn_id)
            case lifecycle.Interrupt():
                name = f"session:{self.session_id}:interrupt"
                self._tasks.create_task(self._interrupt(effect.turn_id), name=name)
            case lifecycle.EndTurn():
                await self._end_turn(effect)
            case lifecycle.StopSandbox():
                await self._stop_sandbox()
            case lifecycle.AnnounceQueue():
                queue = self._turns.queue(self._state.queue)
                await self.recorder.publish([QueueChanged(queue=queue)])
            case lifecycle.AnnounceStatus():
                await self._announce(None)

    async def _announce(self, message: str | None) -> None:
        self._status_message = message
        await self.recorder.publish([SessionStatus(runtime=self._runtime())])
        self._on_change(self.shown())

    async def _wake(self, attempt: int) -> None:
        try:
            async with asyncio.timeout(self._around.wake_timeout_s):
                profile = await self._profile(self.recorder.record.agent_profile_reference)
                link, restored = await wake(
                    self.recorder, profile, self._around, say=self._announce, read=self._listen_to
                )
        except RuntimeFault as fault:
            self._wake_failed(attempt, fault)
        except TimeoutError:
            detail = f"There was no sandbox with a ready agent within {self._around.wake_timeout_s:g} s."
            self._wake_failed(attempt, SandboxFault(detail, code="sandbox_timeout"))
        else:
            await self._woken(attempt, link, restored)

    async def _woken(self, attempt: int, link: RunnerLink, restored: int) -> None:
        before = self.recorder.record.last_sandbox_id
        ref = link.sandbox.ref
        restarts = self.recorder.record.restart_count + (before is not None)
        await self.recorder.update_record(sandbox=ref, last_sandbox_id=ref.sandbox_id, restart_count=restarts)
        if before is not None:
            await self.recorder.publish([WorkspaceRestored(from_sandbox_id=before, restored_files=restored)])
        self._feed(lifecycle.Woken(attempt))

    def _wake_failed(self, attempt: int, fault: RuntimeFault) -> None:
        _log.warning("wake_failed", session_id=self.session_id, code=fault.code, detail=fault.detail)
        self._link = None
        self._feed(lifecycle.WakeFailed(attempt, _turn_error(fault)))

    async def _cancel_wake(self) -> None:
        if self._waking is not None and not self._waking.done():
            self._waking.cancel()
            await asyncio.wait([self._waking])
        if self._link is not None:  # it was just done
            await self._stop_sandbox()

    def _listen_to(self, link: RunnerLink) -> None:
        self._link = link
        self._feeding = RunnerFeed(
            link,
            self._around.agent.translator(),
            self.recorder,
            turn_id=self._turn_id,
            report=partial(self._heard, link),
        )
        name = f"session:{self.session_id}:listen"
        self._tasks.create_task(self._listen(link, self._feeding), name=name)

    async def _listen(self, link: RunnerLink, feed: RunnerFeed) -> None:
        try:
            await feed.run()
        except SandboxFault as fault:
            if link is self._link:  # else we left it ourselves
                self._feed(lifecycle.SandboxLost(_turn_error(fault)))

    def _turn_id(self) -> str | None:
        return self._turns.current.turn_id if self._turns.current else None

    async def _heard(self, link: RunnerLink, heard: Heard) -> None:
        """Take a report of the agent to the lifecycle; return when what follows is done."""
        if link is not self._link:
            return  # a sandbox that we have left
        match heard:
            case AgentIdentity():
                await self.recorder.update_record(agent_session_id=heard.agent_session_id)
            case AgentTurnBegan():
                self._feed(lifecycle.AgentBegan(str(uuid.uuid4())))
            case AgentTurnEnded():
                self._feed(lifecycle.AgentRested(heard))
            case AgentGone():
                self._feed(lifecycle.SandboxLost(heard.error))
        await self._idle.wait()

    async def _deliver(self, turn_id: str) -> None:
        if self._link is None or self._turns.current is None:
            return  # lost meanwhile; the lifecycle hears of it from the listener
        content = self._turns.said
        try:
            await self._link.command("message", uuid=turn_id, content=_native(content))
        except SandboxFault as fault:
            self._feed(lifecycle.SandboxLost(_turn_error(fault)))

    async def _interrupt(self, turn_id: str) -> None:
        if self._link is not None:
            try:
                await self._link.command("interrupt", timeout_s=self._interrupt_grace_s)
            except SandboxFault as fault:
                _log.info("interrupt_unanswered", session_id=self.session_id, code=fault.code)
        await asyncio.sleep(self._interrupt_grace_s)
        self._feed(lifecycle.InterruptExpired(turn_id))

    async def _end_turn(self, effect: lifecycle.EndTurn) -> None:
        everything = self._state.phase not in {Phase.RUNNING, Phase.READY}
        await self._turns.end(effect.turn_id, effect.report, everything=everything, settle=self._settle)
        if self._link is not None:
            await self._link.acknowledge(self._link.seen)
        self._on_change(self.shown())

    async def _settle(self) -> None:
        """Bring the workspace's present state in, where there is still one to ask."""
        if self._link is None or self._state.phase is Phase.WAKING:
            return
        try:
            await self._feeding.settle(_SYNC_TIMEOUT_S)
        except SandboxFault as fault:
            _log.info("sync_unanswered", session_id=self.session_id, code=fault.code)

    async def _stop_sandbox(self) -> None:
        link = self._link
        if link is not None:
            await self._say_goodbye(link)
            self._link = None
            await link.close()
            await link.sandbox.stop()
        await self._around.gateway.close(self.session_id)
        await self.recorder.flush()
        await self.recorder.update_record(sandbox=None)
        if self._state.phase is Phase.STOPPING:
            self._feed(lifecycle.Stopped())

    async def _say_goodbye(self, link: RunnerLink) -> None:
        try:
            await link.command("close", timeout_s=_GOODBYE_TIMEOUT_S)
            await self._feeding.settle(_SYNC_TIMEOUT_S)
        except SandboxFault as fault:
            _log.info("goodbye_unanswered", session_id=self.session_id, code=fault.code)

    def _runtime(self) -> RuntimeStatus:
        return RuntimeStatus(
            is_loaded=True,
            phase=self._state.phase,
            status_message=self._status_message,
            active_turn_id=self._state.turn,
            queue_length=len(self._state.queue),
            sandbox=self._sandbox(),
        )

    def _sandbox(self) -> SandboxStatus | None:
        if self._link is None:
            return None
        ref = self._link.sandbox.ref
        return SandboxStatus(
            sandbox_id=ref.sandbox_id,
            provider=ref.provider,
            isolation=ref.isolation,
            status="starting" if self._state.phase is Phase.WAKING else "ready",
            restart_count=self.recorder.record.restart_count,
            started_at=ref.started_at,
            expires_at=self._link.sandbox.expires_at,
        )


_RUNTIME_LOST: Final = TurnError(
    code="runtime_lost", message="The runtime ended while this turn was under way.", retryable=True
)


async def _nothing() -> None:
    """There is no sandbox to settle."""


class _Over(Exception):
    """Ends the session's task group."""


def _turn_error(fault: RuntimeFault) -> TurnError:
    return TurnError(code=fault.code, message=fault.detail, retryable=fault.retryable)


def _native(content: Content) -> Any:
    """A message as runners take it: a string, or parts as plain JSON."""
    return content if isinstance(content, str) else [part.to_json() for part in content]
