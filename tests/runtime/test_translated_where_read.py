"""Deltas are translated by whoever reads them, everything else by a task that may have to wait: in one order.

The feed stands alone here, over a real link, with a session that takes its time to act on a report.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest

from agent_runtime.agent_feed import Heard
from agent_runtime.blocks import AssistantText, BlockState
from agent_runtime.clock import now
from agent_runtime.conversation import Conversation
from agent_runtime.errors import SandboxFault
from agent_runtime.events import BlockComplete, BlockStart, Event, LogEntry, Position, Replay, TextDelta
from agent_runtime.gathering import Gathering
from agent_runtime.recorder import Recorder
from agent_runtime.records import TurnStatus
from agent_runtime.reports import AgentIdentity, AgentTurnEnded, Translated
from agent_runtime.runner_feed import RunnerFeed
from agent_runtime.runner_link import RunnerLink
from agent_runtime.testing import samples
from agent_runtime.testing.scripted_agent import ScriptedTranslator, line_of
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from agent_runtime_sandbox.frames import Frame
from tests.runtime.test_runner_link import PairedSandbox, Side
from tests.waiting import eventually

TEXT = AssistantText(id="text", timestamp=now())
STEPS = 40
"""More turns of the loop than a batch takes from the socket to the end."""


class SlowLog(MemoryEventLog):
    """A log that others wait for, as one on another machine."""

    async def append(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...]:
        for _ in range(3):
            await asyncio.sleep(0)
        return super().append_at_once(session_id, events)

    def append_at_once(self, session_id: str, events: Sequence[Event]) -> None:  # type: ignore[override]
        return None


@dataclass
class Session:
    """What the feed belongs to: its turn ends where a report says so, once it was let."""

    log: MemoryEventLog
    recorder: Recorder
    start: Position
    side: Side
    turn_id: str = "turn 1"
    may_act: asyncio.Event = field(default_factory=asyncio.Event)
    reports: list[Heard] = field(default_factory=list)
    offsets: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    async def act(self, heard: Heard) -> None:
        self.reports.append(heard)
        await self.may_act.wait()
        if isinstance(heard, AgentTurnEnded):
            self.turn_id = "turn 2"

    def agent_says(self, *told: Translated) -> None:
        self.side.say(*(self.frame("agent", line=line_of(each)) for each in told))

    def frame(self, kind: str, **fields: object) -> Frame:
        return {"k": kind, "o": next(self.offsets), **fields}

    async def told(self) -> list[tuple[str | None, str]]:
        """The deltas in the log, with the turn that each was told in."""
        found = await self.log.since("session-1", self.start)
        assert isinstance(found, Replay)
        events = [entry.event for entry in found.entries]
        return [(event.turn_id, event.delta) for event in events if isinstance(event, TextDelta)]


near_and_far = pytest.mark.parametrize("log_type", [MemoryEventLog, SlowLog])
"""Logs where appending takes no time, and where it takes some of others' turns of the loop."""


@asynccontextmanager
async def feeding(
    log_type: type[MemoryEventLog], *, ends: bool = False, gathering: Gathering | None = None
) -> AsyncIterator[tuple[RunnerFeed, Session]]:
    """`ends`: the feed may end by itself, with its sandbox."""
    store, log, sandbox = MemoryPersistence(), log_type(), PairedSandbox()
    await store.open()
    record = samples.session("session-1")
    await store.create_session(record)
    start = await log.head("session-1")
    recorder = Recorder(
        record,
        Conversation(),
        files=(),
        position=start,
        log=log,
        persistence=store,
        sync_interval_s=1,
        page=50,
    )
    link = await RunnerLink.connect(sandbox, max_file_bytes=1000)
    session = Session(log, recorder, start, sandbox.sides[0])
    feed = RunnerFeed(
        link,
        ScriptedTranslator({}),
        recorder,
        turn_id=lambda: session.turn_id,
        report=session.act,
        gathering=gathering or Gathering(0.0),
    )
    try:
        async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
            running = tasks.create_task(until_lost(feed) if ends else feed.run())
            yield feed, session
            running.cancel()
    finally:
        await link.close()
        await sandbox.close()
        await store.close()


async def until_lost(feed: RunnerFeed) -> None:
    with suppress(SandboxFault):
        await feed.run()


def delta(text: str) -> TextDelta:
    return TextDelta(block_id="text", delta=text)


@near_and_far
@pytest.mark.parametrize("with_a_file", [False, True])
async def test_nothing_of_the_next_turn_is_told_before_the_session_has_ended_this_one(
    log_type: type[MemoryEventLog], with_a_file: bool
) -> None:
    async with feeding(log_type) as (_, session):
        session.agent_says(BlockStart(block=TEXT), delta("one "), AgentTurnEnded(status=TurnStatus.COMPLETED))
        if with_a_file:  # it is sorted between lines, which gives others their turn
            session.side.say(session.frame("file", path="a", change="deleted"))
        session.agent_says(delta("two "))
        await eventually(lambda: session.reports)
        session.agent_says(delta("three "))
        for _ in range(STEPS):
            await asyncio.sleep(0)
        assert await session.told() == [("turn 1", "one ")]
        session.may_act.set()
        await eventually(lambda: session.turn_id == "turn 2")
        session.agent_says(delta("four"))
        while "".join(text for _, text in await session.told()) != "one two three four":
            await asyncio.sleep(0)
        assert {turn for turn, _ in (await session.told())[1:]} == {"turn 2"}


@near_and_far
async def test_deltas_keep_their_order_whoever_translates_them(log_type: type[MemoryEventLog]) -> None:
    async with feeding(log_type) as (_, session):
        session.may_act.set()
        session.agent_says(BlockStart(block=TEXT))
        expected = ""
        for number in range(200):
            said: list[Translated] = [delta(f"{number} ")]
            if number % 3 == 0:
                said.insert(number % 2, AgentIdentity(f"agent {number}"))
            session.agent_says(*said)
            expected += f"{number} "
            for _ in range(number % 5):
                await asyncio.sleep(0)
        while "".join(text for _, text in await session.told()) != expected:
            await asyncio.sleep(0)
        assert len(session.reports) == 67


@near_and_far
@pytest.mark.parametrize("steps", range(STEPS))
async def test_muted_at_any_step_it_still_says_who_the_agent_is(
    log_type: type[MemoryEventLog], steps: int
) -> None:
    async with feeding(log_type) as (feed, session):
        session.agent_says(BlockStart(block=TEXT), delta("one "), AgentIdentity("who it is"), delta("two "))
        for _ in range(steps):
            await asyncio.sleep(0)
        feed.mute()
        session.may_act.set()
        await eventually(
            lambda: (
                session.recorder.record.agent_session_id == "who it is"
                or AgentIdentity("who it is") in session.reports
            )
        )
        session.agent_says(delta("three"), AgentIdentity("somebody else"))
        await eventually(lambda: session.recorder.record.agent_session_id == "somebody else")
        assert "three" not in str(await session.told())


@near_and_far
async def test_while_too_much_waits_for_the_store_nothing_more_is_read(
    log_type: type[MemoryEventLog],
) -> None:
    async with feeding(log_type) as (_, session):
        session.agent_says(BlockStart(block=TEXT), delta("one "))
        while not await session.told():
            await asyncio.sleep(0)
        session.recorder.transcript_grew("main", [{}], size_bytes=65 << 20)
        session.agent_says(delta("two "))  # in it the reader finds that out
        for _ in range(STEPS):
            await asyncio.sleep(0)
        for _ in range(5):
            session.agent_says(delta("more "))
            for _ in range(STEPS):
                await asyncio.sleep(0)
        assert "".join(text for _, text in await session.told()) == "one two "


@near_and_far
async def test_what_came_before_the_runners_last_words_is_told_first(log_type: type[MemoryEventLog]) -> None:
    async with feeding(log_type, ends=True) as (_, session):
        session.may_act.set()
        session.agent_says(BlockStart(block=TEXT))
        session.side.say(
            session.frame("agent", line=line_of(delta("one "))),
            session.frame("agent", line=line_of(AgentTurnEnded(status=TurnStatus.COMPLETED))),
            session.frame("fault", code="signalled", message="told to end"),
        )
        await eventually(lambda: session.turn_id == "turn 2")
        assert await session.told() == [("turn 1", "one ")]


class BreaksAtDeltas(MemoryEventLog):
    def append_at_once(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...]:
        if isinstance(events[0], TextDelta):
            raise ZeroDivisionError
        return super().append_at_once(session_id, events)


async def test_lines_that_could_not_be_told_are_in_no_checkpoint() -> None:
    whole = TEXT.model_copy(update={"state": BlockState.COMPLETE})
    feeds: list[RunnerFeed] = []

    async def lose_a_line() -> None:
        async with feeding(BreaksAtDeltas) as (feed, session):
            feeds.append(feed)
            session.agent_says(BlockStart(block=TEXT), BlockComplete(block_id=whole.id, block=whole))
            await eventually(lambda: feed.checkpoint() and feed.checkpoint().offset == 2)
            session.agent_says(delta("lost"))
            await asyncio.Event().wait()  # until the feed has failed

    with pytest.raises(ExceptionGroup, match="unhandled"):
        await lose_a_line()
    assert feeds[0].checkpoint() is None


async def test_quiet_is_not_said_while_a_far_log_has_not_got_what_was_translated() -> None:
    async with feeding(SlowLog) as (feed, session):
        session.agent_says(BlockStart(block=TEXT))
        await eventually(lambda: "text" in session.recorder.conversation)
        said, looked_between = "", 0
        for steps in range(STEPS):
            heard_before = feed.heard_at
            session.agent_says(delta(f"{steps} "))
            said += f"{steps} "
            for _ in range(steps):
                await asyncio.sleep(0)
            if feed.heard_at != heard_before:  # it is translated
                looked_between += "".join(text for _, text in await session.told()) != said
                await feed.quiet()
                assert "".join(text for _, text in await session.told()) == said
            while "".join(text for _, text in await session.told()) != said:
                await asyncio.sleep(0)
            for _ in range(STEPS):
                await asyncio.sleep(0)
        assert looked_between


async def test_while_the_loop_is_busy_what_comes_in_pieces_is_told_as_few_events() -> None:
    times, spent = itertools.count(0.0, 1.0), itertools.count(0.0, 1.0)
    busy = Gathering(0.05, clock=lambda: next(times), spent=lambda: next(spent))
    async with feeding(MemoryEventLog, gathering=busy) as (_, session):
        session.agent_says(BlockStart(block=TEXT))
        await eventually(lambda: "text" in session.recorder.conversation)
        expected = ""
        for number in range(50):
            session.agent_says(delta(f"{number} "))
            expected += f"{number} "
            await asyncio.sleep(0)
        while "".join(text for _, text in await session.told()) != expected:
            await asyncio.sleep(0)
        assert len(await session.told()) < 10
