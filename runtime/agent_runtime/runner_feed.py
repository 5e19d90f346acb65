"""RunnerFeed: what comes off a runner, brought to where it belongs.

The agent's native lines go to `agent_feed`, which tells what they mean in their order; files (`file_feed`)
and transcript entries (`transcript_feed`) are noted at once. Deltas alone, which nearly all of it is, go
all the way to the viewers in the call of the loop that read them. Records are kept by `recorder`; decisions
are taken through `report`.

A `checkpoint` says how far all of this went. A feed that goes on from one of an earlier process reads
again what that process had read since, and the recorder is silent until it has `caught_up`. The runner
may forget what is before a checkpoint that is durable; in a long turn one is made as it goes, so that
the journal does not fill up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from agent_runtime.agent_feed import AgentFeed, Heard
from agent_runtime.errors import SandboxFault
from agent_runtime.file_feed import FileFeed
from agent_runtime.gathering import Gathering
from agent_runtime.incoming import text
from agent_runtime.log_lines import LogLines
from agent_runtime.ports import Translator
from agent_runtime.profile import FileRules
from agent_runtime.recorder import Recorder
from agent_runtime.records import Checkpoint
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
_ENOUGH_AT_ONCE: Final = 50
"""With so many frames in one read there is nothing to be gained by waiting for more."""
_TOO_MUCH_DISK: Final = "The sandbox's files took more disk than it may have, so it was ended."


class RunnerFeed:
    """Reads one link until the sandbox is gone.

    `caught_up` is set once all that the runner had kept when we attached has been dealt with.

    Args:
        turn_id, report: as of `AgentFeed`.
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
        self._recorder = recorder
        self._gathering = gathering
        self._lines = LogLines()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self.caught_up = asyncio.Event()
        self._sorted = link.seen
        self._first_index = recorder.conversation.next_index
        self._received_when_drained = 0
        self._received_when_acknowledged = 0
        self._passed: Checkpoint | None = None
        self._has_passed = asyncio.Event()
        self._agent = AgentFeed(translator, recorder, turn_id=turn_id, report=report, moved=self._moved)
        self._files = FileFeed(link, recorder, turn_id=turn_id, max_files=max_files)
        self._transcript = TranscriptFeed(recorder)
        recorder.relieved = self._go_on
        link.take = self._take
        self._note_caught_up()

    async def run(self) -> None:
        """Read until the sandbox is gone; all that came before is translated first.

        Raises `SandboxFault` (`sandbox_lost`), always.
        """
        lost: BaseException
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._agent.run(), name="translate")
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
        return self._agent.at_work

    @property
    def heard_at(self) -> float:
        """The loop's time of the agent's last line."""
        return self._agent.heard_at

    def mute(self) -> None:
        """Tell no more of what the agent says: it belongs to no turn. Files and transcript go on."""
        self._agent.mute()

    async def quiet(self) -> None:
        """Return when nothing that was translated is on its way to the log."""
        await self._agent.quiet()

    def beginning(self) -> Checkpoint:
        """The place before all that a new sandbox ever said."""
        return Checkpoint(offset=0, transcript=self._transcript.lengths_at(0), next_index=self._first_index)

    def checkpoint(self) -> Checkpoint | None:
        """How far we are; None while something is in the making that a checkpoint could not tell of.

        It holds once everything that the recorder has not saved yet is saved.
        """
        waiting, unread = self._agent.oldest_waiting, self._files.oldest_unread()
        done = self._sorted if waiting is None else waiting - 1
        if not self._agent.is_exact or self._recorder.silent or self._recorder.conversation.is_open:
            return None
        if unread is not None and unread <= done:
            return None
        return Checkpoint(
            offset=done,
            transcript=self._transcript.lengths_at(done),
            next_index=self._recorder.conversation.next_index,
            live_index=self._recorder.conversation.live_index,
            translator=self._agent.memory(),
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
            self._agent.one_by_one = False
            self._has_passed.set()

    def _moved(self) -> None:
        """The agent's lines went on, or wait for the session. Raises `SandboxFault`, as `_pace`."""
        if self._agent.one_by_one and not self._agent.is_reporting:
            self._make_checkpoint()
        self._note_caught_up()
        self._pace()

    def _note_caught_up(self) -> None:
        """What was told to an earlier process ends here, once none of it is still being told."""
        if self.caught_up.is_set() or not self._agent.is_idle:
            return
        if self._sorted >= self._link.greeting.head:
            self._recorder.speak()
            self.caught_up.set()

    def _take(self, frames: list[Frame]) -> float | None:
        """Frames in the call that read them: dealt with at once where that can be, and is all there is.

        To wake `_read` for them, and the relay of their viewers by another task, took two fifths of a lone
        line. Returns for how long to read nothing more; None: the frames are for `_read`.
        """
        if not (self.caught_up.is_set() and self._may_read.is_set() and self._agent.is_idle):
            return None
        if self._agent.one_by_one or self._is_much_unacknowledged():
            return None
        if self._recorder.calls.failing or self._recorder.full:
            return None
        if not all(frame["k"] == "agent" for frame in frames):
            return None
        self._received_when_drained = self._link.received
        self._agent.take(frames)
        self._sorted = frames[-1]["o"]
        self._agent.tell_deltas()
        self._files.try_again()
        may_rest = len(frames) < _ENOUGH_AT_ONCE and self._agent.is_idle  # else replies are waited for
        return self._gathering.pause_s() if may_rest else 0.0

    async def _read(self) -> None:
        while True:
            try:
                batch = await self._link.next_batch()
                if self._agent.is_idle:
                    self._received_when_drained = self._link.received
                for frame in batch:
                    await self._sort(frame)
                    self._sorted = frame["o"]
            except SandboxFault:
                self._agent.tell_deltas()
                await self._agent.drained()
                raise
            self._agent.tell_deltas()
            self._files.try_again()
            self._note_caught_up()
            if self._is_much_unacknowledged():
                self._agent.one_by_one = True
            self._pace()
            await self._may_read.wait()
            if len(batch) < _ENOUGH_AT_ONCE and batch[-1]["k"] == "agent" and not self._agent.is_reporting:
                await self._gathering.pause()

    def _is_much_unacknowledged(self) -> bool:
        return self._link.received - self._received_when_acknowledged > _ACKNOWLEDGE_BYTES

    def _pace(self) -> None:
        """Let reading pause while much waits to be done, but never while the session may need a reply.

        Raises `SandboxFault` (`sandbox_lost`) when more waits than can be.
        """
        idle = self._agent.oldest_waiting is None
        backlog = 0 if idle else self._link.received - self._received_when_drained
        if backlog > _MOST_BACKLOG_BYTES:
            raise SandboxFault("The agent says more than can be kept.", code="sandbox_lost")
        if (backlog > _BACKLOG_BYTES or self._is_full()) and not self._agent.is_reporting:
            self._may_read.clear()
        else:
            self._may_read.set()

    def _is_full(self) -> bool:
        """Whether so much waits for the store that the journal, on disk, must hold the rest."""
        waiting = self._link.received - self._received_when_acknowledged
        return self._recorder.full or (self._recorder.calls.failing and waiting > _UNSAVED_BYTES)

    def _say(self, tell: Callable[..., object], event: str, **facts: object) -> None:
        self._lines.say(event, tell, event, session_id=self._recorder.session_id, **facts)

    def _go_on(self) -> None:
        with suppress(SandboxFault):  # the reader finds out by itself
            self._pace()

    async def _sort(self, frame: Frame) -> None:
        match frame["k"]:
            case "agent" | "exit":
                self._agent.take((frame,))
            case "file":
                await self._files.take(frame)
            case "transcript":
                self._transcript.take(frame)
            case "stderr":
                self._say(_log.info, "agent_stderr", text=text(frame, "text"))
            case "fault":
                self._say(_log.warning, "runner_fault", code=text(frame, "code"))
                if frame.get("code") == "too_many_files":
                    await self._files.left_out(frame)
                elif frame.get("code") == SIGNALLED:  # not by us, or we would not hear of it
                    raise SandboxFault("The sandbox was told to end by a signal.", code="sandbox_lost")
                elif frame.get("code") == OUT_OF_DISK:
                    raise SandboxFault(_TOO_MUCH_DISK, code="sandbox_out_of_disk", retryable=False)
