"""RunnerFeed: what comes off a runner, brought to where it belongs.

Files (`file_feed`) and transcript entries (`transcript_feed`) are noted at once. The agent's native lines
are queued and translated in order by a task of their own, which waits wherever the session must act first:
after the end of a turn, nothing of the next is translated until the end is announced. Deltas, which nobody
acts on, are translated where they are read. Meaning is given by the agent's translator; records are kept by
`recorder`; decisions are taken through `report`.

A `checkpoint` says how far all of this went. A feed that goes on from one of an earlier process reads
again what that process had read since, and the recorder is silent until it has `caught_up`. The runner
may forget what is before a checkpoint that is durable; in a long turn one is made as it goes, so that
the journal does not fill up.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

import structlog

from agent_runtime.errors import SandboxFault
from agent_runtime.events import Event, InputDelta, TextDelta
from agent_runtime.file_feed import FileFeed
from agent_runtime.gathering import Gathering
from agent_runtime.incoming import exit_error, moment, text
from agent_runtime.ports import Translator
from agent_runtime.profile import FileRules
from agent_runtime.recorder import Recorder
from agent_runtime.records import Checkpoint, TurnError
from agent_runtime.reports import (
    AgentIdentity,
    AgentTookIn,
    AgentTurnBegan,
    AgentTurnEnded,
    Report,
)
from agent_runtime.runner_link import RunnerLink
from agent_runtime.transcript_feed import TranscriptFeed
from agent_runtime_sandbox.frames import OUT_OF_DISK, SIGNALLED, Frame

_log = structlog.get_logger(__name__)

_MIB: Final = 1024 * 1024
_BACKLOG_BYTES: Final = 32 * _MIB
"""Native lines that may wait for translation before reading pauses and the journal holds the rest."""
_MOST_BACKLOG_BYTES: Final = 512 * _MIB
"""While the session acts, reading cannot pause: replies come the same way. No honest runner says so
much without an acknowledgement; one that does is cut off."""
_UNSAVED_BYTES: Final = 64 * _MIB
"""What may wait in memory for a store that does not answer."""
_ACKNOWLEDGE_BYTES: Final = 16 * _MIB
"""Far below what a runner's journal takes before it holds its agent back."""
_LINES_AT_ONCE: Final = 256
"""Native lines that are translated before the loop gets on with others."""
_ENOUGH_AT_ONCE: Final = 50
"""With so many frames in one read there is nothing to be gained by waiting for more."""


@dataclass(frozen=True, slots=True)
class AgentGone:
    """The agent's process ended while its sandbox lives. `killed`: not of its own accord."""

    error: TurnError
    killed: bool = False


_KILLED: Final = frozenset({-9, 137})
"""Exit codes of a process that SIGKILL ended, as its parent sees it and as a shell says it."""
_TOO_MUCH_DISK: Final = "The sandbox's files took more disk than it may have, so it was ended."

UNEXPECTED: Final = TurnError(
    code="internal", message="Something unexpected went wrong inside the runtime.", retryable=True
)
Heard: TypeAlias = Report | AgentGone
_REPORTS: Final = (AgentIdentity, AgentTurnBegan, AgentTookIn, AgentTurnEnded, AgentGone)


class RunnerFeed:
    """Reads one link until the sandbox is gone.

    `heard_at` is the loop's time of the agent's last line. `caught_up` is set once all that the runner
    had kept when we attached has been dealt with.

    Args:
        turn_id: the turn that events belong to at this moment.
        report: called in order with what the lifecycle must know; returns when the session has
            done what follows from it.
        gathering: tells how long to wait after what was read.
    """

    def __init__(
        self,
        link: RunnerLink,
        translator: Translator,
        recorder: Recorder,
        *,
        turn_id: Callable[[], str | None],
        report: Callable[[Heard], Awaitable[None]],
        gathering: Gathering,
        max_files: int = FileRules().max_files,
    ) -> None:
        self._link = link
        self._translator = translator
        self._recorder = recorder
        self._turn_id = turn_id
        self._report = report
        self._gathering = gathering
        self._lines: deque[Frame] = deque()
        self._untold: Sequence[Event | Heard] = ()
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._telling = asyncio.Lock()
        self.heard_at = asyncio.get_running_loop().time()
        self.caught_up = asyncio.Event()
        self._stamped: tuple[object, datetime] = ("", moment(None))
        self._reporting = False
        self._translating = False
        self._muted = False
        self._sorted = link.seen
        self._exact = True
        self._first_index = recorder.conversation.next_index
        self._received_when_drained = 0
        self._received_when_acknowledged = 0
        self._wants_checkpoint = False
        self._passed: Checkpoint | None = None
        self._has_passed = asyncio.Event()
        self._files = FileFeed(link, recorder, turn_id=turn_id, max_files=max_files)
        self._transcript = TranscriptFeed(recorder)
        recorder.relieved = self._go_on
        self._note_caught_up()

    async def run(self) -> None:
        """Read until the sandbox is gone; all that came before is translated first.

        Raises `SandboxFault` (`sandbox_lost`), always.
        """
        lost: BaseException
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._translate(), name="translate")
                tasks.create_task(self._files.fetch_when_told(), name="fetch")
                tasks.create_task(self._acknowledge_much(), name="acknowledge")
                await self._read()
        except* SandboxFault as group:
            lost = group.exceptions[0]
        raise lost  # not within the clause: Python before 3.11.4 would wrap it in a group

    async def settle(self, timeout_s: float) -> None:
        """Have the runner look at all files now, and bring in what it found. Raises `SandboxFault`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._link.command("sync", timeout_s=timeout_s)
                await self._files.fetch()
        except TimeoutError as error:
            raise SandboxFault("The files took too long.", code="sandbox_timeout") from error

    @property
    def at_work(self) -> bool:
        """Whether the agent has anything at work beside its turns."""
        return self._translator.at_work > 0

    def mute(self) -> None:
        """Translate no more: what the agent still says belongs to no turn. Files and transcript go on.

        So does who it says it is: the transcript is of no use to its next process without that.
        """
        self._muted = True
        self._identify(self._untold)
        self._untold = ()
        while self._lines:
            self._identify(self._translated(self._lines.popleft()))

    def _translated(self, frame: Frame) -> Sequence[Event | Heard]:
        return self._line(frame) if frame["k"] == "agent" else ()

    def _identify(self, told: Sequence[Event | Heard]) -> None:
        for found in told:
            known = self._recorder.record.agent_session_id
            if isinstance(found, AgentIdentity) and found.agent_session_id != known:
                self._recorder.note(agent_session_id=found.agent_session_id)

    async def quiet(self) -> None:
        """Return when nothing that was translated is on its way to the log."""
        async with self._telling:
            return

    def beginning(self) -> Checkpoint:
        """The place before all that a new sandbox ever said."""
        return Checkpoint(offset=0, transcript=self._transcript.lengths_at(0), next_index=self._first_index)

    def checkpoint(self) -> Checkpoint | None:
        """How far we are; None while something is in the making that a checkpoint could not tell of.

        It holds once everything that the recorder has not saved yet is saved.
        """
        done = self._lines[0]["o"] - 1 if self._lines else self._sorted
        unread = self._files.oldest_unread()
        if not self._exact or self._muted or self._recorder.silent or self._recorder.conversation.is_open:
            return None
        if unread is not None and unread <= done:
            return None
        return Checkpoint(
            offset=done,
            transcript=self._transcript.lengths_at(done),
            next_index=self._recorder.conversation.next_index,
            live_index=self._recorder.conversation.live_index,
            translator=self._translator.memory(),
        )

    async def acknowledge(self, checkpoint: Checkpoint) -> None:
        """Let the runner forget what is before a checkpoint; that must be durable by now."""
        self._received_when_acknowledged = self._link.received
        self._transcript.forget(checkpoint.offset)
        await self._link.acknowledge(checkpoint.offset)

    async def _acknowledge_much(self) -> None:
        """In a long turn: make a checkpoint durable where one could be made."""
        while True:
            await self._has_passed.wait()
            self._has_passed.clear()
            if (passed := self._passed) is not None:
                await self._recorder.flush()
                known = self._recorder.record.checkpoint
                if known is None or known.offset < passed.offset:  # a turn's end may have overtaken us
                    await self._recorder.update_record(checkpoint=passed)
                    await self.acknowledge(passed)

    def _make_checkpoint(self) -> None:
        self._passed = self.checkpoint()
        if self._passed is not None:
            self._wants_checkpoint = False
            self._has_passed.set()

    def _note_caught_up(self) -> None:
        """What was told to an earlier process ends here, once neither task is still telling any of it."""
        done = not (self._lines or self._untold or self._telling.locked())
        if done and not self.caught_up.is_set() and self._sorted >= self._link.greeting.head:
            self._recorder.speak()
            self.caught_up.set()

    async def _read(self) -> None:
        while True:
            try:
                batch = await self._link.next_batch()
            except SandboxFault:
                await self._drained.wait()
                raise
            for frame in batch:
                if frame["k"] == "agent":  # nearly all of them; the long way costs a coroutine each
                    self._queue(frame)
                else:
                    await self._sort(frame)
                self._sorted = frame["o"]
            if self._lines and not self._translating:
                await self._translate_deltas()
            self._files.try_again()
            self._note_caught_up()
            if self._link.received - self._received_when_acknowledged > _ACKNOWLEDGE_BYTES:
                self._wants_checkpoint = True
            self._pace()
            await self._may_read.wait()
            if len(batch) < _ENOUGH_AT_ONCE and batch[-1]["k"] == "agent" and not self._reporting:
                await self._gathering.pause()

    def _pace(self) -> None:
        """Let reading pause while much waits to be done, but never while the session may need a reply.

        Raises `SandboxFault` (`sandbox_lost`) when more waits than can be.
        """
        backlog = self._link.received - self._received_when_drained if self._lines else 0
        if backlog > _MOST_BACKLOG_BYTES:
            raise SandboxFault("The agent says more than can be kept.", code="sandbox_lost")
        if (backlog > _BACKLOG_BYTES or self._is_full()) and not self._reporting:
            self._may_read.clear()
        else:
            self._may_read.set()

    def _is_full(self) -> bool:
        """Whether so much waits for the store that the journal, on disk, must hold the rest."""
        waiting = self._link.received - self._received_when_acknowledged
        return self._recorder.full or (self._recorder.failing and waiting > _UNSAVED_BYTES)

    def _go_on(self) -> None:
        with suppress(SandboxFault):  # the reader finds out by itself
            self._pace()

    def _queue(self, frame: Frame) -> None:
        if self._muted:
            return self._identify(self._translated(frame))
        if self._drained.is_set():
            self._received_when_drained = self._link.received
        self._lines.append(frame)
        self._drained.clear()
        self._arrived.set()
        return None

    async def _sort(self, frame: Frame) -> None:
        match frame["k"]:
            case "exit":
                self._queue(frame)
            case "file":
                await self._files.take(frame)
            case "transcript":
                self._transcript.take(frame)
            case "stderr":
                _log.info("agent_stderr", session_id=self._recorder.session_id, text=text(frame, "text"))
            case "fault":
                _log.warning("runner_fault", session_id=self._recorder.session_id, code=text(frame, "code"))
                if frame.get("code") == "too_many_files":
                    await self._files.left_out(frame)
                elif frame.get("code") == SIGNALLED:  # not by us, or we would not hear of it
                    raise SandboxFault("The sandbox was told to end by a signal.", code="sandbox_lost")
                elif frame.get("code") == OUT_OF_DISK:
                    raise SandboxFault(_TOO_MUCH_DISK, code="sandbox_out_of_disk", retryable=False)

    async def _translate(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            self._translating = True
            while self._lines or self._untold:
                await self._translate_some(1 if self._wants_checkpoint else _LINES_AT_ONCE)
                if self._wants_checkpoint:
                    self._make_checkpoint()
                if self._lines:
                    await asyncio.sleep(0)
            self._translating = False
            self._note_caught_up()
            self._drained.set()
            self._pace()

    async def _translate_deltas(self) -> None:
        """Translate in the reader's own task what nobody has to act on, which nearly all lines are.

        To wake `_translate` for them took a tenth of a lone line. At the first one that means more, and
        where a checkpoint is wanted, it takes over.
        """
        events: list[Event] = []
        self._exact = False
        self.heard_at = asyncio.get_running_loop().time()
        while self._lines and not (self._untold or self._muted or self._wants_checkpoint):
            told = self._line(self._lines.popleft())
            deltas = [found for found in told if isinstance(found, TextDelta | InputDelta)]
            if len(deltas) == len(told):
                events += deltas
            else:
                self._untold = told
        await self._tell(events)
        if not (self._lines or self._untold):
            self._exact = True
            self._arrived.clear()
            self._drained.set()

    async def _translate_some(self, most: int) -> None:
        """Translate what waits; what the lifecycle must know is reported in its place among events."""
        events: list[Event] = []
        self._exact = False
        self.heard_at = asyncio.get_running_loop().time()
        for _ in range(min(most, len(self._lines) + bool(self._untold))):
            if self._muted:
                break
            told, self._untold = self._untold, ()
            told = told or self._line(self._lines.popleft())
            for found in told:
                if isinstance(found, _REPORTS):
                    await self._tell(events)
                    events = []
                    await self._bring_up(found, is_last=found is told[-1])
                else:
                    events.append(found)
        await self._tell(events)
        self._exact = True

    async def _tell(self, events: list[Event]) -> None:
        async with self._telling:
            if not self._muted:
                await self._recorder.publish(events)

    async def _bring_up(self, heard: Heard, *, is_last: bool) -> None:
        """Report, and wait for what follows from it. After the last of a frame we are exactly there."""
        if isinstance(heard, AgentTurnEnded | AgentGone):
            self._recorder.speak()  # how a turn ends is told once, and now
        self._reporting, self._exact = True, is_last
        self._pace()
        try:
            await self._report(heard)
        finally:
            self._reporting, self._exact = False, False

    def _line(self, frame: Frame) -> Sequence[Event | Heard]:
        if frame["k"] == "exit":
            return () if frame.get("reason") == "closed" else (_gone(frame),)
        line = frame.get("line")
        if not isinstance(line, dict):
            return ()
        try:
            stamp = frame.get("t")  # which frames of one write have in common
            if stamp != self._stamped[0]:
                self._stamped = (stamp, moment(stamp))
            return self._translator.translate(line, turn_id=self._turn_id(), at=self._stamped[1])
        except Exception:  # a translator's defect must not cost the files of the workspace
            _log.exception("line_not_translated", session_id=self._recorder.session_id)
            return (AgentGone(UNEXPECTED),)


def _gone(frame: Frame) -> AgentGone:
    return AgentGone(exit_error(frame), killed=frame.get("code") in _KILLED)
