"""RunnerFeed: what comes off a runner, brought to where it belongs.

Files and transcript entries are noted at once; the agent's native lines are queued and translated
in order by a task of their own, which waits wherever the session must act first: after the end of a
turn, nothing of the next is read until the end is announced. Meaning is given by the agent's
translator; records are kept by `recorder`; decisions are taken by `session` through `report`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeAlias

import structlog

from agent_runtime.clock import now
from agent_runtime.errors import SandboxFault
from agent_runtime.events import Event, FileChanged
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
from agent_runtime.workspace import FileReport, file_of, read_report, shown
from agent_runtime_sandbox.frames import Frame

_log = structlog.get_logger(__name__)

_QUEUE_FRAMES: Final = 5_000
"""Native lines that may wait for translation before reading pauses and the journal holds the rest."""
_MAX_TRANSCRIPT_KEY: Final = 200
_YEAR_3000: Final = 32_503_680_000


@dataclass(frozen=True, slots=True)
class AgentGone:
    """The agent's process ended while its sandbox lives."""

    error: TurnError


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
        self._unread: dict[str, FileReport] = {}
        self._arrived_unread = asyncio.Event()
        self._fetching = asyncio.Lock()

    async def run(self) -> None:
        """Read until the sandbox is gone; all that came before is translated first.

        Raises `SandboxFault` (`sandbox_lost`), always.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._translate(), name="translate")
                tasks.create_task(self._fetch_when_unread(), name="fetch")
                await self._read()
        except* SandboxFault as group:
            raise group.exceptions[0] from None

    async def settle(self, timeout_s: float) -> None:
        """Have the runner look at all files now, and bring in what it found. Raises `SandboxFault`."""
        await self._link.command("sync", timeout_s=timeout_s)
        await self._fetch()

    async def _read(self) -> None:
        while True:
            try:
                batch = await self._link.next_batch()
            except SandboxFault:
                await self._drained.wait()
                raise
            for frame in batch:
                await self._sort(frame)
            if len(self._lines) > _QUEUE_FRAMES and self._turn_id() is not None:
                await self._drained.wait()

    async def _sort(self, frame: Frame) -> None:
        match frame["k"]:
            case "agent" | "exit":
                self._lines.append(frame)
                self._drained.clear()
                self._arrived.set()
            case "file":
                await self._file(frame)
            case "transcript":
                self._transcript(frame)
            case "stderr":
                _log.info("agent_stderr", session_id=self._recorder.session_id, text=_text(frame, "text"))
            case "fault":
                _log.warning("runner_fault", session_id=self._recorder.session_id, code=_text(frame, "code"))

    def _transcript(self, frame: Frame) -> None:
        key, entries = frame.get("key"), frame.get("entries")
        if isinstance(key, str) and 0 < len(key) <= _MAX_TRANSCRIPT_KEY and isinstance(entries, list):
            self._recorder.transcript_grew(key, [entry for entry in entries if isinstance(entry, dict)])

    async def _file(self, frame: Frame) -> None:
        report = read_report(frame)
        if report is None:
            _log.warning("file_report_refused", session_id=self._recorder.session_id)
            return
        self._unread.pop(report.file.path, None)
        if report.change == "deleted":
            self._recorder.file_changed(report.file, deleted=True)
        elif report.content is not None:
            self._recorder.file_changed(report.file, deleted=False)
        elif not report.skipped:
            self._unread[report.file.path] = report
            self._arrived_unread.set()
        event = FileChanged(change=report.change, file=shown(report), turn_id=self._turn_id())
        await self._recorder.publish([event])

    async def _fetch_when_unread(self) -> None:
        while True:
            await self._arrived_unread.wait()
            await self._fetch()

    async def _fetch(self) -> None:
        """Read the files whose content did not come with their report."""
        async with self._fetching:
            self._arrived_unread.clear()
            while self._unread:
                path, report = self._unread.popitem()
                try:
                    content = await self._link.read_file(path)
                except SandboxFault as fault:
                    _log.warning("file_not_read", session_id=self._recorder.session_id, code=fault.code)
                    continue
                if path not in self._unread:  # else it changed again meanwhile
                    file = file_of(path, content, modified_at=report.file.modified_at)
                    self._recorder.file_changed(file, deleted=False)

    async def _translate(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._lines:
                await self._translate_waiting()
            self._drained.set()

    async def _translate_waiting(self) -> None:
        """Translate what waits; what the lifecycle must know is reported in its place among events."""
        events: list[Event] = []
        while self._lines:
            frame = self._lines.popleft()
            for found in self._line(frame):
                if isinstance(found, _REPORTS):
                    await self._recorder.publish(events)
                    events = []
                    await self._report(found)
                else:
                    events.append(found)
        await self._recorder.publish(events)

    def _line(self, frame: Frame) -> Sequence[Event | Heard]:
        if frame["k"] == "exit":
            return (AgentGone(_exit_error(frame)),)
        line = frame.get("line")
        if not isinstance(line, dict):
            return ()
        moment = _moment(frame.get("t"))
        return self._translator.translate(line, turn_id=self._turn_id(), at=moment)


def _moment(seconds: object) -> datetime:
    """The runner's own clock where it is believable, ours otherwise."""
    if isinstance(seconds, int | float) and 0 <= seconds < _YEAR_3000:
        return datetime.fromtimestamp(seconds, UTC)
    return now()


def _text(frame: Frame, name: str) -> str:
    return str(frame.get(name, ""))[:500]


def _exit_error(frame: Frame) -> TurnError:
    reason = _text(frame, "reason") or "no reason given"
    return TurnError(code="agent_failed", message=f"The agent's process ended: {reason}", retryable=True)
