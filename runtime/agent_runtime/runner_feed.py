"""RunnerFeed: what comes off a runner, brought to where it belongs.

Files (`file_feed`) and transcript entries are noted at once. The agent's native lines are queued and
translated in order by a task of their own, which waits wherever the session must act first: after
the end of a turn, nothing of the next is translated until the end is announced. What is durable is
acknowledged as it goes, so that the runner's journal does not fill up in a long turn. Meaning is given
by the agent's translator; records are kept by `recorder`; decisions are taken through `report`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

import orjson
import structlog

from agent_runtime.clock import now
from agent_runtime.errors import SandboxFault
from agent_runtime.events import Event
from agent_runtime.file_feed import FileFeed
from agent_runtime.frozen import text_of
from agent_runtime.ports import (
    AgentIdentity,
    AgentTurnBegan,
    AgentTurnEnded,
    Report,
    Translator,
)
from agent_runtime.recorder import Recorder
from agent_runtime.records import TurnError
from agent_runtime.runner_link import RunnerLink
from agent_runtime_sandbox.frames import Frame

_log = structlog.get_logger(__name__)

_MIB: Final = 1024 * 1024
_BACKLOG_BYTES: Final = 32 * _MIB
"""Native lines that may wait for translation before reading pauses and the journal holds the rest."""
_MOST_BACKLOG_BYTES: Final = 512 * _MIB
"""While the session acts, reading cannot pause: replies come the same way. No honest runner says so
much without an acknowledgement; one that does is cut off."""
_ACKNOWLEDGE_BYTES: Final = 16 * _MIB
"""Far below what a runner's journal takes before it holds its agent back."""
_LINES_AT_ONCE: Final = 256
"""Native lines that are translated before the loop gets on with others."""
_MAX_TRANSCRIPT_KEY: Final = 200
_MAX_NESTING: Final = 200
_YEAR_3000: Final = 32_503_680_000


@dataclass(frozen=True, slots=True)
class AgentGone:
    """The agent's process ended while its sandbox lives."""

    error: TurnError


UNEXPECTED: Final = TurnError(
    code="internal", message="Something unexpected went wrong inside the runtime.", retryable=True
)
Heard: TypeAlias = Report | AgentGone
_REPORTS: Final = (AgentIdentity, AgentTurnBegan, AgentTurnEnded, AgentGone)


class RunnerFeed:
    """Reads one link until the sandbox is gone.

    Args:
        turn_id: the turn that events belong to at this moment.
        report: called in order with what the lifecycle must know; returns when the session has
            done what follows from it.
    """

    def __init__(
        self,
        link: RunnerLink,
        translator: Translator,
        recorder: Recorder,
        *,
        turn_id: Callable[[], str | None],
        report: Callable[[Heard], Awaitable[None]],
    ) -> None:
        self._link = link
        self._translator = translator
        self._recorder = recorder
        self._turn_id = turn_id
        self._report = report
        self._lines: deque[Frame] = deque()
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._telling = asyncio.Lock()
        self._reporting = False
        self._muted = False
        self._sorted = 0
        self._behind: int | None = None
        self._received_when_drained = 0
        self._received_when_acknowledged = 0
        self._much_to_acknowledge = asyncio.Event()
        self._files = FileFeed(link, recorder, turn_id=turn_id)

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

    def mute(self) -> None:
        """Translate no more: what the agent still says belongs to no turn. Files go on."""
        self._muted = True
        self._lines.clear()

    async def quiet(self) -> None:
        """Return when nothing that was translated is on its way to the log."""
        async with self._telling:
            return

    async def acknowledge(self) -> None:
        """Let the runner forget what was made of its frames; that must be durable by now."""
        self._received_when_acknowledged = self._link.received
        await self._link.acknowledge(self._done())

    def _done(self) -> int:
        """The newest offset up to which all frames were dealt with."""
        if self._behind is not None:
            return self._behind - 1
        return self._lines[0]["o"] - 1 if self._lines else self._sorted

    async def _acknowledge_much(self) -> None:
        while True:
            await self._much_to_acknowledge.wait()
            self._much_to_acknowledge.clear()
            done = self._done()
            self._received_when_acknowledged = self._link.received
            await self._recorder.flush()
            await self._link.acknowledge(done)

    async def _read(self) -> None:
        while True:
            try:
                batch = await self._link.next_batch()
            except SandboxFault:
                await self._drained.wait()
                raise
            for frame in batch:
                await self._sort(frame)
                self._sorted = frame["o"]
            self._files.try_again()
            if self._link.received - self._received_when_acknowledged > _ACKNOWLEDGE_BYTES:
                self._much_to_acknowledge.set()
            self._pace()
            await self._may_read.wait()

    def _pace(self) -> None:
        """Let reading pause while much waits, but never while the session may need a reply.

        Raises `SandboxFault` (`sandbox_lost`) when more waits than can be.
        """
        backlog = self._link.received - self._received_when_drained if self._lines else 0
        if backlog > _MOST_BACKLOG_BYTES:
            raise SandboxFault("The agent says more than can be kept.", code="sandbox_lost")
        if backlog > _BACKLOG_BYTES and not self._reporting:
            self._may_read.clear()
        else:
            self._may_read.set()

    async def _sort(self, frame: Frame) -> None:
        match frame["k"]:
            case "agent" | "exit" if not self._muted:
                if self._drained.is_set():
                    self._received_when_drained = self._link.received
                self._lines.append(frame)
                self._drained.clear()
                self._arrived.set()
            case "file":
                await self._files.take(frame)
            case "transcript":
                self._transcript(frame)
            case "stderr":
                _log.info("agent_stderr", session_id=self._recorder.session_id, text=_text(frame, "text"))
            case "fault":
                _log.warning("runner_fault", session_id=self._recorder.session_id, code=_text(frame, "code"))
                if frame.get("code") == "too_many_files":
                    await self._files.left_out(frame)

    def _transcript(self, frame: Frame) -> None:
        key, entries = frame.get("key"), frame.get("entries")
        if isinstance(key, str) and 0 < len(key) <= _MAX_TRANSCRIPT_KEY and isinstance(entries, list):
            self._recorder.transcript_grew(key, [entry for entry in entries if _is_storable(entry)])

    async def _translate(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._lines:
                await self._translate_some()
                await asyncio.sleep(0)
            self._drained.set()
            self._pace()

    async def _translate_some(self) -> None:
        """Translate what waits; what the lifecycle must know is reported in its place among events."""
        events: list[Event] = []
        self._behind = self._lines[0]["o"]
        for _ in range(min(_LINES_AT_ONCE, len(self._lines))):
            if self._muted:
                break
            frame = self._lines.popleft()
            for found in self._line(frame):
                if isinstance(found, _REPORTS):
                    await self._tell(events)
                    events = []
                    await self._bring_up(found, frame["o"])
                else:
                    events.append(found)
        await self._tell(events)
        self._behind = None

    async def _tell(self, events: list[Event]) -> None:
        async with self._telling:
            if not self._muted:
                await self._recorder.publish(events)

    async def _bring_up(self, heard: Heard, offset: int) -> None:
        """Report; what is behind this frame waits, so all before it is dealt with."""
        self._behind, self._reporting = offset, True
        self._pace()
        try:
            await self._report(heard)
        finally:
            self._reporting = False

    def _line(self, frame: Frame) -> Sequence[Event | Heard]:
        if frame["k"] == "exit":
            return (AgentGone(_exit_error(frame)),)
        line = frame.get("line")
        if not isinstance(line, dict):
            return ()
        moment = _moment(frame.get("t"))
        try:
            return self._translator.translate(line, turn_id=self._turn_id(), at=moment)
        except Exception:  # a translator's defect must not cost the files of the workspace
            _log.exception("line_not_translated", session_id=self._recorder.session_id)
            return (AgentGone(UNEXPECTED),)


def _moment(seconds: object) -> datetime:
    """The runner's own clock where it is believable, ours otherwise."""
    if isinstance(seconds, int | float) and 0 <= seconds < _YEAR_3000:
        return datetime.fromtimestamp(seconds, UTC)
    return now()


def _text(frame: Frame, name: str) -> str:
    said = frame.get(name)
    return text_of(said[:500]) if isinstance(said, str) else ""


def _is_storable(entry: object) -> bool:
    """Whether a store can take it: an object, and not nested without end."""
    if not isinstance(entry, dict):
        return False
    try:
        orjson.dumps(entry)  # it has a bound of its own, and is fast
    except TypeError:
        return _nesting(entry) <= _MAX_NESTING
    return True


def _nesting(value: object) -> int:
    """How deep a JSON value is, without recursion."""
    depth, level = 0, [value]
    while level and depth <= _MAX_NESTING:
        depth += 1
        inner: list[object] = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
        level = inner
    return depth


def _exit_error(frame: Frame) -> TurnError:
    reason = _text(frame, "message") or _text(frame, "reason") or "no reason given"
    return TurnError(code="agent_failed", message=f"The agent's process ended: {reason}", retryable=True)
