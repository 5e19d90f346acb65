"""Performer: carries out the effects that `lifecycle` asks for, one session's sandbox in hand.

    Wake, CancelWake           an agent comes to be in a task of its own, or is given up (`holder`)
    Deliver, Steer, Interrupt  said to the agent through the `attachment`
    BeginTurn, EndTurn, ...    recorded and announced (`turns`, `recorder`)
    EndAgent, StopSandbox      hibernated; synced, left and ended

What comes of an effect goes back into the `machine` as an input. What callers may ask of a session
is next door, in `session`; that also owns the tasks.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import structlog

from agent_runtime import moves
from agent_runtime.agent_feed import AgentGone, Heard
from agent_runtime.attachment import Attachment, turn_error
from agent_runtime.blocks import Content
from agent_runtime.errors import Conflict, SandboxFault
from agent_runtime.events import OptionsChanged, QueueChanged, SessionStatus
from agent_runtime.holder import WITH_AGENT, Holder
from agent_runtime.machine import Machine
from agent_runtime.moves import Effect
from agent_runtime.profile import AgentProfile
from agent_runtime.recorder import Recorder
from agent_runtime.records import ClientSession, Phase, RuntimeStatus, TurnStatus
from agent_runtime.reports import (
    AgentIdentity,
    AgentTookIn,
    AgentTurnBegan,
    AgentTurnEnded,
)
from agent_runtime.runner_link import NO_AGENT, REFUSED
from agent_runtime.turns import Turns
from agent_runtime.wake import Surroundings

_log = structlog.get_logger(__name__)

_NOT_HANDED: Final = frozenset({REFUSED, NO_AGENT})
"""Faults after which the agent surely does not have what it was to be handed."""


class Performer:
    """One session's hands. `spawn` begins a task that its owner awaits; set it before `perform`.

    Args:
        profile: asked for at each wake, so that a changed profile counts from the next one on.
        on_change: called when what a session list shows has changed.
    """

    def __init__(
        self,
        recorder: Recorder,
        turns: Turns,
        around: Surroundings,
        *,
        profile: Callable[[str], Awaitable[AgentProfile]],
        on_change: Callable[[ClientSession], None],
    ) -> None:
        self.machine = Machine(moved=self._moved)
        self.holder = Holder(
            recorder,
            around,
            self.machine,
            profile=profile,
            say=self._announce,
            turn_id=self._turn_id,
            heard=self._heard,
            follow_options=self._follow_options,
        )
        self._recorder = recorder
        self._turns = turns
        self._around = around
        self._on_change = on_change
        self._session_id = recorder.session_id
        self._status_message: str | None = None
        self._changing_options = asyncio.Lock()
        self._noting = False
        self._steering: dict[str, asyncio.Future[bool]] = {}
        self._how: dict[type, Callable[[Any], Awaitable[None]]] = {
            moves.Wake: self._begin_wake,
            moves.CancelWake: self._cancel_wake,
            moves.BeginTurn: self._begin_turn,
            moves.Deliver: self._begin_delivery,
            moves.Steer: self._begin_steering,
            moves.Interrupt: self._begin_interrupt,
            moves.EndTurn: self._end_turn,
            moves.EndUnbegun: self._end_unbegun,
            moves.EndAgent: self._end_agent,
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
        if self.holder.attached is not None and self.machine.state.phase is not Phase.WAKING:
            await self.holder.attached.settle()

    async def steered(self, turn_id: str, within_s: float) -> bool:
        """Whether the agent was handed a message in mid-turn; False when that is not known in time."""
        outcome = self._steering.setdefault(turn_id, asyncio.get_running_loop().create_future())
        try:
            async with asyncio.timeout(within_s):
                return await outcome
        except TimeoutError:
            return False
        finally:
            self._steering.pop(turn_id, None)

    def _moved(self) -> None:
        self.holder.mute_when_leaving()

    async def update_options(self, options: dict[str, Any]) -> None:
        """Change session options; a running agent follows.

        Raises `InvalidRequest`, `Conflict` (`options_refused`) when the running agent cannot change
        them, and `SandboxFault`.
        """
        async with self._changing_options:
            before = self._recorder.record.session_options
            merged = self._around.agent.check_options({**before, **options})
            told: dict[str, Any] = {}
            if self.holder.attached is not None and self.machine.state.phase in WITH_AGENT:
                await self._tell_options(self.holder.attached, before, merged)
                told = {"agent_options": merged}
            await self._recorder.update_record(session_options=merged, **told)
            await self._recorder.publish([OptionsChanged(session_options=merged)])
        self._on_change(self.shown())

    async def _follow_options(self, attached: Attachment) -> None:
        async with self._changing_options:
            has, wanted = self._recorder.record.agent_options, self._recorder.record.session_options
            if has is not None and has != wanted:
                await self._tell_options(attached, has, wanted)
                await self._recorder.update_record(agent_options=wanted)

    async def _tell_options(
        self, attached: Attachment, before: dict[str, Any], after: dict[str, Any]
    ) -> None:
        changed = {name: value for name, value in after.items() if before.get(name) != value}
        try:
            if changed:
                await attached.change_options(changed)
        except SandboxFault as fault:
            if fault.code == NO_AGENT:
                return  # the next one is started with them
            if fault.code != REFUSED:
                raise
            raise Conflict(fault.detail, code="options_refused", session_id=self._session_id) from fault

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
        self.holder.begin_wake(effect.attempt)

    async def _cancel_wake(self, _: moves.CancelWake) -> None:
        await self.holder.cancel_wake()
        if self.holder.attached is not None:  # it was just done, or was there before
            await self._stop_sandbox()

    def _turn_id(self) -> str | None:
        return self._turns.current.turn_id if self._turns.current else None

    async def _heard(self, heard: Heard) -> None:
        """Take a report of the agent to the lifecycle; return when what follows is done."""
        match heard:
            case AgentIdentity():
                if heard.agent_session_id != self._recorder.record.agent_session_id:
                    self._recorder.note(agent_session_id=heard.agent_session_id)
            case AgentTookIn():
                self.machine.feed(moves.Steered(heard.message_id))
            case AgentTurnBegan():
                self.machine.feed(moves.AgentBegan(str(uuid.uuid4())))
            case AgentTurnEnded():
                self.machine.feed(moves.AgentRested(heard))
            case AgentGone():
                attached, turn_id = self.holder.attached, self.machine.state.turn
                untouched = attached is not None and attached.untouched(turn_id)
                self.machine.feed(moves.SandboxLost(heard.error, untouched=untouched))
        await self.machine.idle()

    async def _begin_delivery(self, effect: moves.Deliver) -> None:
        """In a task of its own: an interrupt must not wait for a runner that does not answer."""
        attached = self.holder.attached
        if attached is not None and self._turn_id() == effect.turn_id:
            attached.expect(effect.turn_id)
            self.holder.spawn("deliver", self._deliver(attached, effect.turn_id, self._turns.said))

    async def _deliver(self, attached: Attachment, turn_id: str, content: Content) -> None:
        try:
            await self._hand_over(attached, turn_id, content)
        except SandboxFault as fault:
            if attached is self.holder.attached:
                untouched = fault.code == NO_AGENT or attached.untouched(turn_id)
                self.machine.feed(moves.SandboxLost(turn_error(fault), untouched=untouched))

    async def _hand_over(self, attached: Attachment, turn_id: str, content: Content) -> None:
        """A message, behind what the agent is still to be told. Raises `SandboxFault`."""
        note = None if self._noting else self._recorder.record.untold
        if isinstance(content, str) and content.startswith("/"):
            note = None  # an order to the agent must come as it is; the next message brings the note
        if note is None:
            return await attached.deliver(turn_id, content)
        self._noting = True  # a message that is handed over meanwhile must not bring it too
        try:
            await attached.deliver(turn_id, content, note=note)
            await self._recorder.update_record(untold=None)
        finally:
            self._noting = False
        return None

    async def _begin_steering(self, effect: moves.Steer) -> None:
        waiting = self._turns.waiting(effect.turn_id)
        if self.holder.attached is not None and waiting is not None:
            self.holder.attached.expect(effect.turn_id)
            steering = self._steer(self.holder.attached, effect.turn_id, waiting)
            self.holder.spawn("steer", steering)

    async def _steer(self, attached: Attachment, turn_id: str, content: Content) -> None:
        taken = False
        try:
            await self._hand_over(attached, turn_id, content)
            taken = True
        except SandboxFault as fault:
            _log.info("not_steered", session_id=self._session_id, code=fault.code)
            if fault.code in _NOT_HANDED:  # else nobody knows: its answer may be all that was lost
                self.machine.feed(moves.NotSteered(turn_id))
        outcome = self._steering.get(turn_id)
        if outcome is not None and not outcome.done():
            outcome.set_result(taken)

    async def _begin_turn(self, effect: moves.BeginTurn) -> None:
        await self._turns.begin(effect.turn_id, **await self._checkpoint())

    async def _checkpoint(self) -> dict[str, Any]:
        """How far we are, as a change of the record, with all before it durable."""
        attached = self.holder.attached
        checkpoint = attached.feed.checkpoint() if attached is not None else None
        if checkpoint is None:
            return {}
        await self._recorder.flush()
        return {"checkpoint": checkpoint}

    async def _begin_interrupt(self, effect: moves.Interrupt) -> None:
        self.holder.spawn("interrupt", self._interrupt(effect.turn_id))

    async def _interrupt(self, turn_id: str | None) -> None:
        attached = self.holder.attached
        if turn_id is None:
            if attached is not None:
                await attached.hush()
            return
        if attached is not None:
            await attached.interrupt(self._around.interrupt_grace_s)
        self.machine.feed(moves.InterruptExpired(turn_id))

    async def _end_unbegun(self, effect: moves.EndUnbegun) -> None:
        await self._turns.end_unbegun(effect.turn_id, effect.report)
        self._on_change(self.shown())

    async def _end_turn(self, effect: moves.EndTurn) -> None:
        # What works in the background outlives a turn that the agent ended itself.
        by_itself = effect.report.status is TurnStatus.COMPLETED
        everything = self.machine.state.phase not in WITH_AGENT and not by_itself
        attached = self.holder.attached
        if attached is not None:
            await attached.feed.quiet()
        await self._turns.end(effect.turn_id, effect.report, everything=everything, settle=self._settled)
        if attached is not None and self._recorder.record.checkpoint is not None:
            await attached.feed.acknowledge(self._recorder.record.checkpoint)
        self._on_change(self.shown())

    async def _settled(self) -> dict[str, Any]:
        """Bring files in; how far we are then, or that the sandbox is of no more use to anybody."""
        await self.settle()
        if self.holder.attached is None:
            return {}
        if self.machine.state.phase is Phase.STOPPING:
            return {"sandbox": None, "checkpoint": None}
        checkpoint = self.holder.attached.feed.checkpoint()
        return {} if checkpoint is None else {"checkpoint": checkpoint}

    async def _end_agent(self, _: moves.EndAgent) -> None:
        attached = self.holder.attached
        if attached is None:
            return
        try:
            await attached.end_agent()
            await attached.settle()
        except SandboxFault as fault:
            self.machine.feed(moves.SandboxLost(turn_error(fault)))

    async def _stop_sandbox(self, effect: moves.StopSandbox | None = None) -> None:
        """Nothing ends before what is in it is durable, however long the store takes."""
        if self.holder.attached is not None:
            await self.holder.attached.say_goodbye()
        await self._turns.close_open(TurnStatus.CANCELLED, everything=True)
        await self._recorder.flush()
        kept = await self.holder.keep_files() if effect is not None and effect.keep else {}
        if kept or self._recorder.record.sandbox is not None:
            await self._recorder.update_record(sandbox=None, checkpoint=None, **kept)
        await self.holder.let_go()
        await self._recorder.flush()
        if self.machine.state.phase is Phase.STOPPING:
            self.machine.feed(moves.Stopped())

    def _runtime(self) -> RuntimeStatus:
        return RuntimeStatus(
            is_loaded=True,
            phase=self.machine.state.phase,
            status_message=self._status_message,
            active_turn_id=self.machine.state.turn,
            queue_length=len(self.machine.state.queue),
            sandbox=self.holder.status(),
        )
