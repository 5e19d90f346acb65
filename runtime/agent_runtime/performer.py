"""Performer: carries out the effects that `lifecycle` asks for, one session's sandbox in hand.

    Wake, CancelWake         a sandbox comes to be in a task of its own (`wake`), or is given up
    Deliver, Interrupt       said to the agent through the `attachment`
    BeginTurn, EndTurn, ...  recorded and announced (`turns`, `recorder`)
    StopSandbox              synced, left and ended

What comes of an effect goes back into the `machine` as an input. What callers may ask of a session
is next door, in `session`; that also owns the tasks.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

import structlog

from agent_runtime import moves
from agent_runtime.attachment import Attachment, turn_error
from agent_runtime.blocks import Content
from agent_runtime.errors import Conflict, RuntimeFault, SandboxFault
from agent_runtime.events import OptionsChanged, QueueChanged, SessionStatus, WorkspaceRestored
from agent_runtime.machine import Machine
from agent_runtime.moves import Effect
from agent_runtime.ports import AgentIdentity, AgentTurnBegan, AgentTurnEnded
from agent_runtime.profile import AgentProfile
from agent_runtime.recorder import Recorder
from agent_runtime.records import ClientSession, Phase, RuntimeStatus, SandboxStatus, TurnError, TurnStatus
from agent_runtime.runner_feed import UNEXPECTED, AgentGone, Heard, RunnerFeed
from agent_runtime.runner_link import RunnerLink
from agent_runtime.tasks import unhindered
from agent_runtime.turns import Turns
from agent_runtime.wake import Awake, Surroundings, wake

_log = structlog.get_logger(__name__)

_WITH_AGENT: Final = frozenset({Phase.RUNNING, Phase.READY})
_ON_THE_WAY: Final = frozenset({Phase.RUNNING, Phase.READY, Phase.WAKING})


class Performer:
    """One session's hands. `spawn` begins a task that its owner awaits; set it before `perform`.

    Args:
        profile: asked for at each wake, so that a changed profile counts from the next sandbox on.
        on_change: called when what a session list shows has changed.
    """

    def __init__(
        self,
        recorder: Recorder,
        turns: Turns,
        around: Surroundings,
        *,
        profile: Callable[[str], Awaitable[AgentProfile]],
        interrupt_grace_s: float,
        on_change: Callable[[ClientSession], None],
    ) -> None:
        self.machine = Machine(moved=self._moved)
        self.spawn: Callable[[str, Coroutine[Any, Any, None]], asyncio.Task[None]] = _not_yet
        self._recorder = recorder
        self._turns = turns
        self._around = around
        self._profile = profile
        self._interrupt_grace_s = interrupt_grace_s
        self._on_change = on_change
        self._session_id = recorder.session_id
        self._status_message: str | None = None
        self._changing_options = asyncio.Lock()
        self._attached: Attachment | None = None
        self._waking: asyncio.Task[None] | None = None
        self._how: dict[type, Callable[[Any], Awaitable[None]]] = {
            moves.Wake: self._begin_wake,
            moves.CancelWake: self._cancel_wake,
            moves.BeginTurn: self._begin_turn,
            moves.Deliver: self._begin_delivery,
            moves.Interrupt: self._begin_interrupt,
            moves.EndTurn: self._end_turn,
            moves.EndUnbegun: self._end_unbegun,
            moves.StopSandbox: self._stop_sandbox,
            moves.AnnounceQueue: self._announce_queue,
            moves.AnnounceStatus: self._announce_status,
        }

    async def perform(self, effect: Effect) -> None:
        """Carry out one effect."""
        await self._how[type(effect)](effect)

    def shown(self) -> ClientSession:
        """The session as clients see it now."""
        return ClientSession.of(self._recorder.record, self._runtime())

    async def settle(self) -> None:
        """Bring the workspace's present state in, where there is a sandbox to ask."""
        if self._attached is not None and self.machine.state.phase is not Phase.WAKING:
            await self._attached.settle()

    def _moved(self) -> None:
        """What the agent says while its sandbox is ended belongs to no turn."""
        if self._attached is not None and self.machine.state.phase not in _ON_THE_WAY:
            self._attached.feed.mute()

    async def update_options(self, options: dict[str, Any]) -> None:
        """Change session options; a running agent follows.

        Raises `InvalidRequest`, `Conflict` (`options_refused`) when the running agent cannot change
        them, and `SandboxFault`.
        """
        async with self._changing_options:
            before = self._recorder.record.session_options
            merged = self._around.agent.check_options({**before, **options})
            if self._attached is not None and self.machine.state.phase in _WITH_AGENT:
                await self._tell_options(self._attached, before, merged)
            await self._recorder.update_record(session_options=merged)
            await self._recorder.publish([OptionsChanged(session_options=merged)])
        self._on_change(self.shown())

    async def _tell_options(
        self, attached: Attachment, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        try:
            if changed:
                await attached.change_options(changed)
        except SandboxFault as fault:
            if fault.code != "runner_refused":
                raise
            raise Conflict(fault.detail, code="options_refused", session_id=self._session_id) from fault

    async def leave_nothing(self) -> None:
        """End the sandbox, if there is one, and its way out. Idempotent."""
        attached, self._attached = self._attached, None
        try:
            if attached is not None:
                await attached.leave()
        finally:
            await self._around.gateway.close(self._session_id)

    async def _announce_queue(self, _: moves.AnnounceQueue) -> None:
        queue = self._turns.queue(self.machine.state.queue)
        await self._recorder.publish([QueueChanged(queue=queue)])

    async def _announce_status(self, _: moves.AnnounceStatus) -> None:
        await self._announce(None)

    async def _announce(self, message: str | None) -> None:
        self._status_message = message
        await self._recorder.publish([SessionStatus(runtime=self._runtime())])
        self._on_change(self.shown())

    async def _begin_wake(self, effect: moves.Wake) -> None:
        self._waking = self.spawn("wake", self._wake(effect.attempt))

    async def _wake(self, attempt: int) -> None:
        bound_s = self._around.wake_timeout_s
        try:
            async with asyncio.timeout(bound_s):
                profile = await self._profile(self._recorder.record.agent_profile_reference)
                awake = await wake(
                    self._recorder, profile, self._around, say=self._announce, read=self._listen_to
                )
            error = await self._woken(attempt, awake)
        except RuntimeFault as fault:
            error = turn_error(fault)
        except TimeoutError:
            message = f"There was no sandbox with a ready agent within {bound_s:g} s."
            error = TurnError(code="sandbox_timeout", message=message, retryable=True)
        except Exception:
            _log.exception("wake_failed", session_id=self._session_id)
            error = UNEXPECTED
        if error is not None:
            _log.warning("wake_failed", session_id=self._session_id, code=error.code, detail=error.message)
            await unhindered(self.leave_nothing())
            self.machine.feed(moves.WakeFailed(attempt, error))

    async def _woken(self, attempt: int, awake: Awake) -> TurnError | None:
        """Record the new sandbox and go on, or say why it is of no use after all."""
        record = self._recorder.record
        before = record.last_sandbox_id
        ref = awake.link.sandbox.ref
        restarts = record.restart_count + (before is not None)
        await self._recorder.update_record(
            sandbox=ref, last_sandbox_id=ref.sandbox_id, restart_count=restarts
        )
        if before is not None:
            restored = WorkspaceRestored(
                from_sandbox_id=before, restored_files=awake.restored, lost_paths=awake.lost or None
            )
            await self._recorder.publish([restored])
        assert self._attached is not None
        async with self._changing_options:  # somebody may have changed them while we woke
            await self._tell_options(self._attached, awake.options, self._recorder.record.session_options)
            if self._attached.lost is None:
                self.machine.feed(moves.Woken(attempt))
            return self._attached.lost

    async def _cancel_wake(self, _: moves.CancelWake) -> None:
        if self._waking is not None and not self._waking.done():
            self._waking.cancel()
            await asyncio.wait([self._waking])
        if self._attached is not None:  # it was just done
            await self._stop_sandbox()

    def _listen_to(self, link: RunnerLink) -> None:
        feed = RunnerFeed(
            link,
            self._around.agent.translator(),
            self._recorder,
            turn_id=self._turn_id,
            report=partial(self._heard, link),
        )
        self._attached = Attachment(self._session_id, link, feed)
        self._attached.reader = self.spawn("listen", self._listen(self._attached))

    async def _listen(self, attached: Attachment) -> None:
        error = await attached.listen()
        if attached is self._attached:  # else we left it ourselves
            self.machine.feed(moves.SandboxLost(error))

    def _turn_id(self) -> str | None:
        return self._turns.current.turn_id if self._turns.current else None

    async def _heard(self, link: RunnerLink, heard: Heard) -> None:
        """Take a report of the agent to the lifecycle; return when what follows is done."""
        if self._attached is None or link is not self._attached.link:
            return  # a sandbox that we have left
        match heard:
            case AgentIdentity():
                await self._recorder.update_record(agent_session_id=heard.agent_session_id)
            case AgentTurnBegan():
                self.machine.feed(moves.AgentBegan(str(uuid.uuid4())))
            case AgentTurnEnded():
                self.machine.feed(moves.AgentRested(heard))
            case AgentGone():
                self._attached.lost = heard.error
                self.machine.feed(moves.SandboxLost(heard.error))
        await self.machine.idle()

    async def _begin_delivery(self, effect: moves.Deliver) -> None:
        """In a task of its own: an interrupt must not wait for a runner that does not answer."""
        if self._attached is not None and self._turn_id() == effect.turn_id:
            delivery = self._deliver(self._attached, effect.turn_id, self._turns.said)
            self.spawn("deliver", delivery)

    async def _deliver(self, attached: Attachment, turn_id: str, content: Content) -> None:
        try:
            await attached.deliver(turn_id, content)
        except SandboxFault as fault:
            if attached is self._attached:
                self.machine.feed(moves.SandboxLost(turn_error(fault)))

    async def _begin_turn(self, effect: moves.BeginTurn) -> None:
        await self._turns.begin(effect.turn_id)

    async def _begin_interrupt(self, effect: moves.Interrupt) -> None:
        self.spawn("interrupt", self._interrupt(effect.turn_id))

    async def _interrupt(self, turn_id: str) -> None:
        if self._attached is not None:
            await self._attached.interrupt(self._interrupt_grace_s)
        self.machine.feed(moves.InterruptExpired(turn_id))

    async def _end_unbegun(self, effect: moves.EndUnbegun) -> None:
        await self._turns.end_unbegun(effect.turn_id, effect.report)
        self._on_change(self.shown())

    async def _end_turn(self, effect: moves.EndTurn) -> None:
        everything = self.machine.state.phase not in _WITH_AGENT
        if self._attached is not None:
            await self._attached.feed.quiet()
        await self._turns.end(effect.turn_id, effect.report, everything=everything, settle=self.settle)
        if self._attached is not None:
            await self._attached.feed.acknowledge()
        self._on_change(self.shown())

    async def _stop_sandbox(self, _: object = None) -> None:
        attached = self._attached
        if attached is not None:
            await attached.say_goodbye()
        await self.leave_nothing()
        await self._turns.close_open(TurnStatus.CANCELLED, everything=True)
        await self._recorder.flush()
        if self._recorder.record.sandbox is not None:
            await self._recorder.update_record(sandbox=None)
        if self.machine.state.phase is Phase.STOPPING:
            self.machine.feed(moves.Stopped())

    def _runtime(self) -> RuntimeStatus:
        return RuntimeStatus(
            is_loaded=True,
            phase=self.machine.state.phase,
            status_message=self._status_message,
            active_turn_id=self.machine.state.turn,
            queue_length=len(self.machine.state.queue),
            sandbox=self._sandbox(),
        )

    def _sandbox(self) -> SandboxStatus | None:
        if self._attached is None:
            return None
        starting = self.machine.state.phase is Phase.WAKING
        return self._attached.status(starting=starting, restart_count=self._recorder.record.restart_count)


def _not_yet(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    work.close()
    raise RuntimeError(f"nobody owns the task {name} yet")
