"""Holder: how a session comes to its sandbox, hears it, and lets go of it; one at a time.

    wake        a new sandbox, or the agent started again in one whose agent hibernates
    find        the sandbox of an earlier process, with what it said since then
    let_go      ended, with nothing left of it
    detach      left alive, for the next process of this runtime to find

What comes of it goes into the `machine`. The steps of a wake are in `wake`, the living sandbox is the
`attachment`; what is done with it is decided by `lifecycle` and performed by `performer`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Final

import structlog

from agent_runtime import moves
from agent_runtime.agent_feed import UNEXPECTED, AgentGone, Heard
from agent_runtime.attachment import Attachment, turn_error
from agent_runtime.errors import RuntimeFault, SandboxFault
from agent_runtime.events import WorkspaceRestored
from agent_runtime.idle import watch_idleness, watch_lifetime
from agent_runtime.machine import Machine
from agent_runtime.needs import Egress
from agent_runtime.profile import AgentProfile
from agent_runtime.recorder import Recorder
from agent_runtime.records import Phase, SandboxStatus, TurnError
from agent_runtime.runner_feed import RunnerFeed
from agent_runtime.runner_link import Greeting, RunnerLink
from agent_runtime.tasks import unhindered
from agent_runtime.wake import (
    Awake,
    Surroundings,
    find,
    forget_snapshot,
    give_up,
    rouse,
    wake,
    what_was_lost,
)

_log = structlog.get_logger(__name__)

WITH_AGENT: Final = frozenset({Phase.RUNNING, Phase.READY})
"""The phases in which an agent's process is there to be spoken to."""
_ON_THE_WAY: Final = frozenset({Phase.RUNNING, Phase.READY, Phase.WAKING, Phase.HIBERNATED})
_MISHAPS: Final = frozenset({"sandbox_out_of_memory", "sandbox_out_of_disk", "sandbox_expired"})
"""Why a sandbox ended, where that is known: what the next agent can do something about."""
_OF_NO_USE: Final = frozenset({"sandbox_lost", "sandbox_timeout"}) | _MISHAPS
_FIND_AGAIN_S: Final = (0.2, 1.0, 3.0)
"""Pauses before a sandbox is tried again that could not be reached, and may live: its agent works."""
_SNAPSHOT_S: Final = 120.0
"""For a provider to keep a sandbox's files; without it they come back from the store."""
_CATCH_UP_S: Final = 10.0
"""For what a runner said while nobody listened to be read; a whole journal takes about two."""

Spawn = Callable[[str, Coroutine[Any, Any, None]], asyncio.Task[None]]


class Holder:
    """`attached` is the sandbox that the session has, None without one. `spawn` is set by the owner.

    `mishap` is what ended the last one, where that is known and no agent has been told of it.

    Args:
        profile: asked for at each wake, so that a changed profile counts from the next one on.
        say: tells viewers what is being done.
        heard: takes a report of the agent; returns when what follows from it is done.
        follow_options: has a freshly started agent follow options that changed meanwhile.
    """

    def __init__(
        self,
        recorder: Recorder,
        around: Surroundings,
        machine: Machine,
        *,
        profile: Callable[[str], Awaitable[AgentProfile]],
        say: Callable[[str | None], Awaitable[None]],
        turn_id: Callable[[], str | None],
        heard: Callable[[Heard], Awaitable[None]],
        follow_options: Callable[[Attachment], Awaitable[None]],
    ) -> None:
        self.attached: Attachment | None = None
        self.mishap: TurnError | None = None
        self.spawn: Spawn = _not_yet
        self._recorder = recorder
        self._around = around
        self._machine = machine
        self._profile = profile
        self._say = say
        self._turn_id = turn_id
        self._take = heard
        self._follow_options = follow_options
        self._session_id = recorder.session_id
        self._waking: asyncio.Task[None] | None = None
        self._found: RunnerLink | None = None
        self._idle_timeout_s: float | None = None

    # Coming to a sandbox.

    def begin_wake(self, attempt: int) -> None:
        """Wake in a task of its own; `Woken` or `WakeFailed` comes of it."""
        self._waking = self.spawn("wake", self._wake(attempt))

    async def cancel_wake(self) -> None:
        """Give the wake up; return when nothing is under way any more."""
        if self._waking is not None and not self._waking.done():
            self._waking.cancel()
            await asyncio.wait([self._waking])

    async def _wake(self, attempt: int) -> None:
        bound_s, before = self._around.wake_timeout_s, self.attached
        try:
            async with asyncio.timeout(bound_s):
                reference = self._recorder.record.agent_profile_reference
                profile = await self._recorder.calls.read(lambda: self._profile(reference), bound_s / 2)
                self._idle_timeout_s = profile.sandbox.idle_timeout_s
                awake = await self._come_to(profile)
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
            if before is not None and self.attached is before:
                await self._recorder.flush()  # nothing ends before what is in it is durable
            await unhindered(self.let_go())
            self._machine.feed(moves.WakeFailed(attempt, error))

    async def _come_to(self, profile: AgentProfile) -> Awake:
        """The agent started in the sandbox that is there; in a new one where that is of no more use."""
        if self.attached is not None:
            link = self.attached.link
            try:
                return await rouse(self._recorder, profile, self._around, link, say=self._say)
            except SandboxFault as fault:
                _log.warning("agent_not_roused", session_id=self._session_id, code=fault.code)
            await self._recorder.flush()
            await unhindered(self.let_go())
        awake = await wake(self._recorder, profile, self._around, say=self._say, read=self._listen_to)
        await self._note_new_sandbox(awake)
        return awake

    async def _note_new_sandbox(self, awake: Awake) -> None:
        """From here on the record leads to the sandbox; before, whoever starts anew ends it as a leftover."""
        assert self.attached is not None
        record = self._recorder.record
        before, snapshot = record.last_sandbox_id, record.snapshot
        ref = awake.link.sandbox.ref
        await self._recorder.update_record(
            sandbox=ref,
            checkpoint=self.attached.feed.beginning(),
            agent_options=awake.options,
            last_sandbox_id=ref.sandbox_id,
            snapshot=None,
            restart_count=record.restart_count + (before is not None),
            untold=what_was_lost(awake, record.untold, self.mishap) if before is not None else None,
        )
        self.mishap = None
        if before is not None:
            restored = WorkspaceRestored(
                from_sandbox_id=before, restored_files=awake.restored, lost_paths=awake.lost or None
            )
            await self._recorder.publish([restored])
        if snapshot is not None:
            self.spawn("forget", forget_snapshot(self._around.sandboxes, snapshot))

    async def _woken(self, attempt: int, awake: Awake) -> TurnError | None:
        """Go on, or say why the sandbox is of no use after all."""
        attached = self.attached
        assert attached is not None
        if self._recorder.record.agent_options != awake.options:
            await self._recorder.update_record(agent_options=awake.options)
        await self._follow_options(attached)  # somebody may have changed them meanwhile
        if attached.lost is None:
            self._machine.feed(moves.Woken(attempt))
        return attached.lost

    async def find(self) -> Greeting | None:
        """Attach again to the sandbox that the record names; how it stands, None where it is gone.

        One that cannot be gone on in is ended.
        """
        record = self._recorder.record
        for pause_s in (*_FIND_AGAIN_S, None):
            try:
                self._found = await find(record, self._around, egress=await self._allowed())
            except RuntimeFault as fault:
                _log.warning("sandbox_not_found_again", session_id=self._session_id, code=fault.code)
                self._note_mishap(turn_error(fault))
                if fault.code in _OF_NO_USE or pause_s is None:
                    break
            else:
                return self._found.greeting
            await asyncio.sleep(pause_s)
        await unhindered(give_up(record, self._around))
        self._recorder.conversation.told_again()
        return None

    async def _allowed(self) -> Egress | None:
        """What the profile lets out now, None where it is not to be had; how long it may rest is noted."""
        try:
            needs = (await self._profile(self._recorder.record.agent_profile_reference)).sandbox
        except RuntimeFault as fault:
            _log.warning("egress_not_known", session_id=self._session_id, code=fault.code)
            return None
        self._idle_timeout_s = needs.idle_timeout_s
        return needs.egress

    def go_on(self, unfinished: Iterable[str]) -> None:
        """Hear what the sandbox that was found said meanwhile, silently; `caught_up` waits for the end.

        Before it the lifecycle must know of the turn under way, or its end would not be understood.
        The agent may have been handed any of the `unfinished` turns.
        """
        link, checkpoint = self._found, self._recorder.record.checkpoint
        assert link is not None
        assert checkpoint is not None
        self._found = None
        self._recorder.silent = True
        self._recorder.transcript_stored(checkpoint.transcript)
        attached = self._attach(link, checkpoint.translator)
        for turn_id in unfinished:
            attached.take_over(turn_id)

    async def follow_options(self) -> None:
        """Have the agent of a sandbox that was found follow options that it was not told of in time."""
        if self.attached is not None and self._machine.state.phase in WITH_AGENT:
            try:
                await self._follow_options(self.attached)
            except RuntimeFault as fault:
                _log.warning("options_not_followed", session_id=self._session_id, code=fault.code)

    async def caught_up(self) -> None:
        """Return when all that a found sandbox had said is dealt with, or it takes too long."""
        attached = self.attached
        if attached is None:
            return
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                await attached.feed.caught_up.wait()
        except TimeoutError:
            _log.warning("not_caught_up", session_id=self._session_id)
        self._recorder.speak()

    # Having one.

    def mute_when_leaving(self) -> None:
        """What the agent says while its sandbox is ended belongs to no turn."""
        if self.attached is not None and self._machine.state.phase not in _ON_THE_WAY:
            self.attached.feed.mute()

    @property
    def at_work(self) -> bool:
        """Whether the agent has anything at work beside its turns."""
        return self.attached is not None and self.attached.feed.at_work

    def status(self) -> SandboxStatus | None:
        """The sandbox as clients see it."""
        if self.attached is None:
            return None
        starting = self._machine.state.phase is Phase.WAKING
        return self.attached.status(starting=starting, restart_count=self._recorder.record.restart_count)

    def _listen_to(self, link: RunnerLink) -> None:
        self._attach(link, None)

    def _attach(self, link: RunnerLink, memory: dict[str, Any] | None) -> Attachment:
        feed = RunnerFeed(
            link,
            self._around.agent.translator(memory),
            self._recorder,
            turn_id=self._turn_id,
            report=partial(self._heard, link),
            gathering=self._around.gathering,
            max_files=self._around.file_rules.max_files,
        )
        self.attached = attached = Attachment(self._session_id, link, feed)
        attached.tasks.append(self.spawn("listen", self._listen(attached)))
        attached.tasks.append(self.spawn("watch", self._watch(link)))
        attached.tasks.append(
            self.spawn(
                "idle",
                watch_idleness(
                    self._machine,
                    feed,
                    attached.passages,
                    agent_idle_s=self._around.agent_idle_s,
                    sandbox_idle_s=self._idle_timeout_s or self._around.sandbox_idle_s,
                ),
            )
        )
        if (expires_at := link.sandbox.expires_at) is not None:
            started_at = link.sandbox.ref.started_at
            aging = watch_lifetime(self._machine, feed, started_at=started_at, expires_at=expires_at)
            attached.tasks.append(self.spawn("lifetime", aging))
        return attached

    async def _watch(self, link: RunnerLink) -> None:
        """A runner that is stopped tells nobody; while nothing is under way nobody has to know."""
        silence_s = self._around.runner_silence_s
        await link.watch(silence_s, wanted=lambda: self._machine.state.phase is Phase.RUNNING)

    async def _listen(self, attached: Attachment) -> None:
        error = await attached.listen()
        if attached is self.attached:  # else we left it ourselves
            self._note_mishap(error)
            self._recorder.speak()
            attached.feed.caught_up.set()
            untouched = attached.untouched(self._machine.state.turn)
            self._machine.feed(moves.SandboxLost(error, untouched=untouched))

    async def _heard(self, link: RunnerLink, heard: Heard) -> None:
        if self.attached is None or link is not self.attached.link:
            return  # a sandbox that we have left
        if isinstance(heard, AgentGone):
            attached = self.attached
            if heard.killed and (mishap := await link.mishap()) is not None:
                heard = AgentGone(turn_error(mishap))
            self._note_mishap(heard.error)
            attached.lost = heard.error
        await self._take(heard)

    def _note_mishap(self, error: TurnError) -> None:
        if error.code in _MISHAPS:
            self.mishap = error

    # Letting go.

    async def keep_files(self) -> dict[str, Any]:
        """Keep the sandbox's files beyond its end, where that is offered, as a change of the record.

        Without it nothing of the session is lost that it promises to keep: the store has that.
        """
        attached = self.attached
        if attached is None or attached.lost is not None:
            return {}
        try:
            async with asyncio.timeout(_SNAPSHOT_S):
                return {"snapshot": await attached.link.sandbox.snapshot()}
        except (RuntimeFault, TimeoutError) as fault:
            code = fault.code if isinstance(fault, RuntimeFault) else "sandbox_timeout"
            if code != "unsupported":
                _log.warning("no_snapshot", session_id=self._session_id, code=code)
            return {}

    async def let_go(self) -> None:
        """End the sandbox, if there is one, and its way out. Idempotent."""
        attached, self.attached = self.attached, None
        found, self._found = self._found, None
        try:
            if attached is not None:
                await attached.leave()
            if found is not None:
                await found.close()
                await found.sandbox.stop()
        finally:
            await self._around.gateway.close(self._session_id)

    async def detach(self) -> None:
        """Leave the sandbox to the next process of this runtime. Idempotent."""
        attached, self.attached = self.attached, None
        found, self._found = self._found, None
        if attached is not None:
            await attached.detach()
        if found is not None:
            await found.close()


def _not_yet(name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    work.close()
    raise RuntimeError(f"nobody owns the task {name} yet")
