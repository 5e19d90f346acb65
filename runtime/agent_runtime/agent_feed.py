"""AgentFeed: the agent's native lines, in their order: translated, told of, and brought up.

Deltas, which nobody has to act on and which nearly all lines are, are told in the call that brings them.
From the first line that means more a task goes on, which waits wherever the session must act first: after
the end of a turn, nothing of the next is translated until the end is announced. Meaning is given by the
agent's translator; events go to `recorder`. Where the lines come from, and how far all of it went, is next
door in `runner_feed`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypeAlias

import structlog

from agent_runtime.events import Delta, Event
from agent_runtime.incoming import exit_error, moment
from agent_runtime.ports import Translator
from agent_runtime.recorder import Recorder
from agent_runtime.records import TurnError
from agent_runtime.reports import AgentIdentity, AgentTookIn, AgentTurnBegan, AgentTurnEnded, Report
from agent_runtime_sandbox.frames import Frame

_log = structlog.get_logger(__name__)

_LINES_AT_ONCE: Final = 256
"""Native lines that are translated before the loop gets on with others."""
_KILLED: Final = frozenset({-9, 137})
"""Exit codes of a process that SIGKILL ended, as its parent sees it and as a shell says it."""


@dataclass(frozen=True, slots=True)
class AgentGone:
    """The agent's process ended while its sandbox lives. `killed`: not of its own accord."""

    error: TurnError
    killed: bool = False


UNEXPECTED: Final = TurnError(
    code="internal", message="Something unexpected went wrong inside the runtime.", retryable=True
)
Heard: TypeAlias = Report | AgentGone
_REPORTS: Final = (AgentIdentity, AgentTurnBegan, AgentTookIn, AgentTurnEnded, AgentGone)


class AgentFeed:
    """Takes the lines of one link; `run` is to be run beside whoever brings them.

    `heard_at` is the loop's time of the last line that was translated. `is_reporting` is true while the
    session acts on what it was told. While `one_by_one`, each line is followed by a call of `moved`.

    Args:
        turn_id: the turn that events belong to at this moment.
        report: called in order with what the lifecycle must know; returns when the session has
            done what follows from it.
        moved: called whenever the task got on, begins to wait for the session, or has nothing left.
    """

    def __init__(
        self,
        translator: Translator,
        recorder: Recorder,
        *,
        turn_id: Callable[[], str | None],
        report: Callable[[Heard], Awaitable[None]],
        moved: Callable[[], None],
    ) -> None:
        self._translator = translator
        self._recorder = recorder
        self._turn_id = turn_id
        self._report = report
        self._moved = moved
        self._lines: deque[Frame] = deque()
        self._untold: Sequence[Event | Heard] = ()
        self._arrived = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._telling = asyncio.Lock()
        self._went_on = asyncio.Event()
        self._is_over = False
        self._stamped: tuple[object, datetime] = ("", moment(None))
        self._is_working = False
        self._is_between_lines = True
        self._is_muted = False
        self._loop = asyncio.get_running_loop()  # to ask for it takes a system call each time
        self.heard_at = self._loop.time()
        self.is_reporting = False
        self.one_by_one = False

    @property
    def at_work(self) -> bool:
        """Whether the agent has anything at work beside its turns."""
        return self._translator.at_work > 0

    @property
    def is_idle(self) -> bool:
        """Whether all that was taken is in the log."""
        return not (self._lines or self._untold or self._is_working)

    @property
    def is_exact(self) -> bool:
        """Whether no line is half told, so that `oldest_waiting` says how far all of it went."""
        return self._is_between_lines and not (self._untold or self._is_muted)

    @property
    def oldest_waiting(self) -> int | None:
        """The offset of the first line that is not translated yet."""
        return self._lines[0]["o"] if self._lines else None

    def memory(self) -> dict[str, object]:
        """The translator's, as of `oldest_waiting`."""
        return self._translator.memory()

    def take(self, frames: Iterable[Frame]) -> None:
        """Take `agent` and `exit` frames; what follows from them is told by `tell_deltas` and `run`."""
        if self._is_muted:
            for frame in frames:
                self._identify(self._translated(frame))
        else:
            self._lines.extend(frames)

    def tell_deltas(self) -> None:
        """Tell what stands first and needs nobody to act on it; the task goes on with the rest.

        To wake the task for them took a tenth of a lone line.
        """
        if self._lines and not (self._is_working or self._untold or self.one_by_one):
            self.heard_at = self._loop.time()
            self._is_between_lines = False
            deltas, rest = self._deltas()
            if deltas and not self._recorder.publish_at_once(deltas):
                rest = (*deltas, *rest)
            self._untold = rest
            self._is_between_lines = True
        if self._lines or self._untold:
            self._drained.clear()
            self._arrived.set()

    def _deltas(self) -> tuple[list[Event], Sequence[Event | Heard]]:
        """The deltas that stand first; the rest of what the first line means that is more, or nothing."""
        deltas: list[Event] = []
        while self._lines:
            told = self._line(self._lines.popleft())
            for place, each in enumerate(told):
                if not isinstance(each, Delta):
                    return deltas, told[place:]
                deltas.append(each)
        return deltas, ()

    async def run(self) -> None:
        """Translate and tell whatever `tell_deltas` left, until cancelled."""
        try:
            while True:
                await self._arrived.wait()
                self._arrived.clear()
                self._is_working = True
                while self._lines or self._untold:
                    await self._tell_some(1 if self.one_by_one else _LINES_AT_ONCE)
                    self._moved()
                    if self._lines:
                        await asyncio.sleep(0)
                self._is_working = False
                self._drained.set()
                self._moved()
        finally:
            self._is_over = True
            self._went_on.set()

    async def drained(self) -> None:
        """Return when all that was taken has been dealt with."""
        await self._drained.wait()

    async def quiet(self) -> None:
        """Return when nothing that was translated is on its way to the log.

        What comes behind a report that the session acts on is not: it waits for the session.
        """
        if self._untold and not self._is_over:  # a log that could not take it at once left it to the task
            self._went_on.clear()
            await self._went_on.wait()
        async with self._telling:
            return

    def mute(self) -> None:
        """Tell no more: what the agent still says belongs to no turn.

        But for who it says it is: the transcript is of no use to its next process without that.
        """
        self._is_muted = True
        self._identify(self._untold)
        self._untold = ()
        self._went_on.set()
        while self._lines:
            self._identify(self._translated(self._lines.popleft()))

    def _translated(self, frame: Frame) -> Sequence[Event | Heard]:
        return self._line(frame) if frame["k"] == "agent" else ()

    def _identify(self, told: Sequence[Event | Heard]) -> None:
        for found in told:
            known = self._recorder.record.agent_session_id
            if isinstance(found, AgentIdentity) and found.agent_session_id != known:
                self._recorder.note(agent_session_id=found.agent_session_id)

    async def _tell_some(self, most: int) -> None:
        """Tell of what waits; what the lifecycle must know is reported in its place among events."""
        events: list[Event] = []
        self._is_between_lines = False
        self.heard_at = self._loop.time()
        for _ in range(min(most, len(self._lines) + bool(self._untold))):
            if self._is_muted:
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
        self._is_between_lines = True
        self._went_on.set()

    async def _tell(self, events: list[Event]) -> None:
        async with self._telling:
            if not self._is_muted:
                await self._recorder.publish(events)

    async def _bring_up(self, heard: Heard, *, is_last: bool) -> None:
        """Report, and wait for what follows from it. After the last of a frame we are between lines."""
        if isinstance(heard, AgentTurnEnded | AgentGone):
            self._recorder.speak()  # how a turn ends is told once, and now
        self.is_reporting, self._is_between_lines = True, is_last
        self._went_on.set()
        self._moved()
        try:
            await self._report(heard)
        finally:
            self.is_reporting, self._is_between_lines = False, False

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
            return _checked(self._translator.translate(line, turn_id=self._turn_id(), at=self._stamped[1]))
        except Exception:  # a translator's defect must not cost the files of the workspace
            _log.exception("line_not_translated", session_id=self._recorder.session_id)
            return (AgentGone(UNEXPECTED),)


def _checked(told: Sequence[Event | Heard]) -> Sequence[Event | Heard]:
    """What a translator made of a line. Raises TypeError for a delta without text: its class does not."""
    for each in told:
        if isinstance(each, Delta) and not (type(each.delta) is type(each.block_id) is str):
            raise TypeError("a delta whose text or block is no string")
    return told


def _gone(frame: Frame) -> AgentGone:
    return AgentGone(exit_error(frame), killed=frame.get("code") in _KILLED)
