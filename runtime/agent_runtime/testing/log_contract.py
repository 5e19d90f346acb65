"""EventLogContract: is your `EventLog` right? Derive from it and let pytest tell you.

    class TestMyLog(EventLogContract):
        @asynccontextmanager
        async def adapter(self):
            log = MyLog(...)              # keeps about BOUND_BYTES of each session
            try:
                yield log
            finally:
                await log.close()

One law stands behind all of it: whoever follows a log gets every event once and in order, or is told
that it did not (`Gap`); never silence, never a hole. For readable failures:
`pytest.register_assert_rewrite("agent_runtime.testing.log_contract")`.
"""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Final

from agent_runtime.events import (
    BlockComplete,
    BlockStart,
    Event,
    FileChanged,
    Gap,
    LogEntry,
    Position,
    Replay,
    TextDelta,
    TurnEnd,
    TurnStart,
)
from agent_runtime.ports import EventLog
from agent_runtime.testing import samples
from agent_runtime.testing.stories import story

BOUND_BYTES: Final = 1024 * 1024
"""What the log under test must keep of each session, and not much more than that."""

SID: Final = "session-1"


class EventLogContract:
    """The promises of `ports.EventLog`."""

    def adapter(self) -> AbstractAsyncContextManager[EventLog]:
        """An empty log with a bound of `BOUND_BYTES` a session; called once per test."""
        raise NotImplementedError

    @story
    async def test_an_empty_log_has_a_beginning(self, log: EventLog) -> None:
        """Position zero of an epoch that stays."""
        head = await log.head(SID)
        assert head.seq == 0
        assert Position.parse(str(head)) == head
        assert await log.head(SID) == head
        assert await log.since(SID, head) == Replay((), head)
        assert await log.append(SID, []) == ()
        assert await log.head(SID) == head

    @story
    async def test_events_get_places_from_one_without_holes(self, log: EventLog) -> None:
        """And times that do not run backwards, in UTC."""
        beginning = await log.head(SID)
        first = await log.append(SID, _deltas(1))
        more = await log.append(SID, _deltas(3))
        entries = first + more
        assert [entry.position for entry in entries] == [Position(beginning.epoch, n) for n in (1, 2, 3, 4)]
        assert [entry.event for entry in entries] == _deltas(1) + _deltas(3)
        times = [entry.at for entry in entries]
        assert times == sorted(times)
        assert all(at.utcoffset() is not None and not at.utcoffset() for at in times)
        assert await log.head(SID) == entries[-1].position

    @story
    async def test_since_gives_exactly_what_came_after(self, log: EventLog) -> None:
        """From every place, the head included."""
        beginning = await log.head(SID)
        entries = await log.append(SID, _deltas(6))
        head = entries[-1].position
        assert await log.since(SID, beginning) == Replay(entries, head)
        for entry in entries:
            assert await log.since(SID, entry.position) == Replay(entries[entry.position.seq :], head)

    @story
    async def test_an_event_of_every_shape_comes_back_as_it_was(self, log: EventLog) -> None:
        """Odd text and opaque values too."""
        events = _every_shape()
        beginning = await log.head(SID)
        await log.append(SID, events)
        replay = await log.since(SID, beginning)
        assert isinstance(replay, Replay)
        assert [entry.event for entry in replay.entries] == events

    @story
    async def test_a_position_that_cannot_be_is_a_gap(self, log: EventLog) -> None:
        """Ahead of the head, of another epoch, before the beginning."""
        entries = await log.append(SID, _deltas(3))
        head = entries[-1].position
        for odd in (Position(head.epoch, 4), Position(head.epoch, 10**17), Position(head.epoch, -1)):
            assert await log.since(SID, odd) == Gap(head)
        for seq in (0, 1, 3, 4):
            assert await log.since(SID, Position("another", seq)) == Gap(head)

    @story
    async def test_what_fell_out_of_the_bound_is_a_gap_and_the_newest_is_not(self, log: EventLog) -> None:
        """However much is published, a log stays small and says what it forgot."""
        beginning = await log.head(SID)
        entries: list[LogEntry] = []
        for _ in range(40):
            entries += await log.append(SID, _deltas(1, size=BOUND_BYTES // 8))
        head = entries[-1].position
        assert await log.since(SID, beginning) == Gap(head)
        kept, generous = 0, 16
        for entry in reversed(entries):
            after = Position(head.epoch, entry.position.seq - 1)
            answer = await log.since(SID, after)
            if answer == Gap(head):
                break
            kept += 1
            assert answer == Replay(tuple(entries[-kept:]), head)
        assert 1 <= kept <= generous, f"{kept} events of an eighth of the bound were kept"

    @story
    async def test_an_event_larger_than_the_bound_is_counted_all_the_same(self, log: EventLog) -> None:
        """Followers get it or a gap; the next event has the next place."""
        beginning = await log.head(SID)
        (large,) = await log.append(SID, _deltas(1, size=4 * BOUND_BYTES))
        assert await log.since(SID, beginning) in (Gap(large.position), Replay((large,), large.position))
        assert await log.since(SID, large.position) == Replay((), large.position)
        (after,) = await log.append(SID, _deltas(1))
        assert after.position == Position(large.position.epoch, 2)
        assert await log.since(SID, large.position) == Replay((after,), after.position)

    @story
    async def test_sessions_have_logs_of_their_own(self, log: EventLog) -> None:
        """A loud one takes nothing from a quiet one."""
        quiet = await log.append("quiet", _deltas(2))
        loud = 20
        for _ in range(loud):
            await log.append("loud", _deltas(1, size=BOUND_BYTES // 4))
        beginning = Position(quiet[0].position.epoch, 0)
        assert await log.since("quiet", beginning) == Replay(quiet, quiet[-1].position)
        assert (await log.head("loud")).seq == loud

    @story
    async def test_appends_at_once_are_each_in_one_piece(self, log: EventLog) -> None:
        """Every place is given once; what was appended together stands together."""
        beginning = await log.head(SID)

        async def publish(name: str) -> None:
            for _ in range(5):
                entries = await log.append(SID, _deltas(4, name=name))
                places = [entry.position.seq for entry in entries]
                assert places == list(range(places[0], places[0] + 4))

        async with asyncio.TaskGroup() as publishers:
            for number in range(5):
                publishers.create_task(publish(f"p{number}"))
        replay = await log.since(SID, beginning)
        assert isinstance(replay, Replay)
        assert [entry.position.seq for entry in replay.entries] == list(range(1, 101))

    @story
    async def test_waiting_ends_at_once_where_the_head_is_elsewhere(self, log: EventLog) -> None:
        """Behind, ahead, or in another epoch."""
        await log.append(SID, _deltas(2))
        head = await log.head(SID)
        for seq in (0, 1, 3):
            await log.wait(SID, Position(head.epoch, seq))
        await log.wait(SID, Position("another", head.seq))

    @story
    async def test_followers_get_every_event_once_and_in_order(self, log: EventLog) -> None:
        """All of them, while events arrive in pieces of any size."""
        beginning = await log.head(SID)
        total = 60
        followers: list[asyncio.Task[list[LogEntry]]] = []
        async with asyncio.TaskGroup() as group:
            followers += [group.create_task(_follow(log, beginning, total)) for _ in range(25)]
            published = 0
            for step in range(total):
                count = min(step % 4, total - published)
                published += len(await log.append(SID, _deltas(count)))
                await asyncio.sleep(0)
            await log.append(SID, _deltas(total - published))
        for follower in followers:
            assert [entry.position.seq for entry in follower.result()] == list(range(1, total + 1))

    @story
    async def test_a_follower_that_gives_up_disturbs_no_other(self, log: EventLog) -> None:
        """Viewers come and go while others wait."""
        head = await log.head(SID)
        async with asyncio.TaskGroup() as group:
            gone = group.create_task(log.wait(SID, head))
            staying = group.create_task(log.wait(SID, head))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            assert not staying.done()
            await log.append(SID, _deltas(1))
        assert gone.cancelled()

    @story
    async def test_whoever_takes_events_as_they_are_appended_gets_each_once_and_in_order(
        self, log: EventLog
    ) -> None:
        """Taken at once or read afterwards, and whether the log offers any or not."""
        after = await log.head(SID)
        total = 40
        seen: list[LogEntry] = []

        def take(entries: tuple[LogEntry, ...]) -> bool:
            nonlocal after
            if entries[0].position.seq % 3 == 0:
                return False
            seen.extend(entries)
            after = entries[-1].position
            return True

        async def follow() -> None:
            nonlocal after
            while True:
                await log.wait(SID, after, take)
                answer = await log.since(SID, after)
                assert isinstance(answer, Replay)
                seen.extend(answer.entries)
                after = answer.head

        async with asyncio.TaskGroup() as group:
            following = group.create_task(follow())
            for number in range(total):
                await log.append(SID, _deltas(1))
                if number % 2:
                    await asyncio.sleep(0)
            while len(seen) < total:  # noqa: ASYNC110 - the story as a whole is bounded
                await asyncio.sleep(0)
            following.cancel()
        assert [entry.position.seq for entry in seen] == list(range(1, total + 1))

    @story
    async def test_what_is_appended_at_once_stands_where_it_would_otherwise(self, log: EventLog) -> None:
        """Or nothing was done, and the log says so."""
        beginning = await log.head(SID)
        (first,) = await log.append(SID, _deltas(1))
        entries = [first, *(log.append_at_once(SID, _deltas(2)) or ())]
        entries += await log.append(SID, _deltas(1))
        assert await log.since(SID, beginning) == Replay(tuple(entries), entries[-1].position)
        assert [entry.position.seq for entry in entries] == list(range(1, len(entries) + 1))

    @story
    async def test_a_dropped_log_begins_anew_under_another_epoch(self, log: EventLog) -> None:
        """Who waits is woken, who held a position gets a gap; twice is as good as once."""
        entries = await log.append(SID, _deltas(2))
        old = entries[-1].position
        async with asyncio.TaskGroup() as group:
            group.create_task(log.wait(SID, old))
            await asyncio.sleep(0)
            await log.drop(SID)
        await log.drop(SID)
        await log.drop("nobody")
        head = await log.head(SID)
        assert head.seq == 0
        assert head.epoch != old.epoch
        assert await log.since(SID, old) == Gap(head)
        (entry,) = await log.append(SID, _deltas(1))
        assert entry.position == Position(head.epoch, 1)

    @story
    async def test_closing_twice_is_harmless(self, log: EventLog) -> None:
        """Shutdown paths meet."""
        await log.append(SID, _deltas(1))
        await log.close()
        await log.close()


async def _follow(log: EventLog, after: Position, total: int) -> list[LogEntry]:
    """Read the log until so many events came, as a viewer does."""
    seen: list[LogEntry] = []
    while len(seen) < total:
        await log.wait(SID, after)
        answer = await log.since(SID, after)
        assert isinstance(answer, Replay)
        seen += answer.entries
        after = answer.head
    return seen


def _deltas(count: int, *, size: int = 5, name: str = "b1") -> list[Event]:
    return [
        TextDelta(turn_id="t", conversation_id="main", block_id=name, delta="x" * size) for _ in range(count)
    ]


def _every_shape() -> list[Event]:
    blocks = samples.every_block()
    return [
        TurnStart(turn_id="t", turn=samples.turn()),
        *(BlockStart(turn_id="t", conversation_id="main", block=block) for block in blocks),
        TextDelta(turn_id="t", conversation_id="main", block_id="a1", delta=samples.ODD_TEXT),
        *(BlockComplete(conversation_id="main", block_id=block.id, block=block) for block in blocks),
        FileChanged(change="created", file=samples.file(samples.ODD_PATHS[6], b"\xff\x00")),
        TurnEnd(turn_id="t", turn=samples.full_turn()),
    ]
