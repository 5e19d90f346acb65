"""A relay alone, over a log in memory: each viewer gets every event once, in order, as it is appended."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import pytest

from agent_runtime.events import Position, TextDelta
from agent_runtime.transport.relay import Admission, Relay
from agent_runtime_adapters.logs.memory import MemoryEventLog

SID = "session"
A_LONG_TIME_S = 600.0
"""Nothing here takes so long, whatever else the machine does: so all of a rush is on another's heels."""


class Viewers:
    """What each connection was sent: the places of the events. `breaks`: sending fails from now on."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}
        self.sent = 0
        self.breaks = False

    def deliver(self, sids: Sequence[str], events: Iterable[tuple[str, bytes]]) -> None:
        if self.breaks:
            raise ZeroDivisionError
        self.sent += 1
        places = [json.loads(envelope)["seq"] for _, envelope in events]
        for sid in sids:
            self.seen.setdefault(sid, []).extend(places)


def delta(text: str = "x") -> TextDelta:
    return TextDelta(block_id="b", delta=text)


async def still_there() -> None:
    """The session of these tests is never deleted."""


@asynccontextmanager
async def relaying() -> AsyncIterator[tuple[Relay, MemoryEventLog, Viewers]]:
    log, viewers = MemoryEventLog(), Viewers()
    start = await log.head(SID)
    relay = Relay(log, SID, start, viewers.deliver, still_there)
    relay.admit(Admission("first", start))
    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(relay.run())
        await rest()
        yield relay, log, viewers
        for sid in relay.viewers:
            relay.remove(sid)


async def rest() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_event_is_with_its_viewers_before_the_append_returns() -> None:
    async with relaying() as (_, log, viewers):
        log.append_at_once(SID, [delta(), delta()])
        assert viewers.seen == {"first": [1, 2]}


async def test_a_rush_of_events_is_sent_in_few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent_runtime.transport.relay._ON_THE_HEELS_S", A_LONG_TIME_S)
    async with relaying() as (_, log, viewers):
        for _ in range(100):
            log.append_at_once(SID, [delta()])
        assert viewers.seen == {"first": [1]}
        await rest()
        assert viewers.seen == {"first": list(range(1, 101))}
        assert viewers.sent < 50


async def test_whoever_is_about_to_be_let_in_misses_nothing_and_hears_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("agent_runtime.transport.relay._ON_THE_HEELS_S", 0.0)
    async with relaying() as (relay, log, viewers):
        log.append_at_once(SID, [delta()])
        relay.admit(Admission("second", await log.head(SID)))
        log.append_at_once(SID, [delta()])
        assert viewers.seen == {"first": [1]}  # this one waits until the other is in
        await rest()
        log.append_at_once(SID, [delta()])
        assert viewers.seen == {"first": [1, 2, 3], "second": [2, 3]}


@pytest.mark.parametrize("seed", range(20))
async def test_however_viewers_come_and_go_each_hears_without_a_hole(seed: int) -> None:
    dice, admitted, left = random.Random(seed), {"first": 0}, set[str]()
    async with relaying() as (relay, log, viewers):
        for number in range(200):
            match dice.randrange(5):
                case 0 if len(admitted) - len(left) < 10:
                    sid, head = f"viewer {number}", await log.head(SID)
                    after = Position(head.epoch, dice.randint(max(0, head.seq - 5), head.seq))
                    admitted[sid] = after.seq
                    relay.admit(Admission(sid, after))
                case 1 if len(relay.viewers) > 1:
                    left.add(sid := dice.choice(relay.viewers))
                    relay.remove(sid)
                case 2:
                    await asyncio.sleep(0)
                case _:
                    await log.append(SID, [delta()] * dice.randint(1, 3))
        await rest()
        last = (await log.head(SID)).seq
        for sid, after in admitted.items():
            seen = viewers.seen.get(sid, [])
            assert seen == list(range(after + 1, after + 1 + len(seen)))
            assert sid in left or seen[-1:] == ([last] if last > after else [])


async def test_a_relay_that_cannot_send_ends_and_whoever_appends_goes_on() -> None:
    log, viewers = MemoryEventLog(), Viewers()
    start = await log.head(SID)
    relay = Relay(log, SID, start, viewers.deliver, still_there)
    relay.admit(Admission("first", start))
    ends: list[Exception] = []

    async def run() -> None:
        try:
            await relay.run()
        except ZeroDivisionError as error:
            ends.append(error)

    async with asyncio.timeout(20), asyncio.TaskGroup() as tasks:
        tasks.create_task(run())
        await rest()
        viewers.breaks = True
        (entry,) = log.append_at_once(SID, [delta()])
        assert entry.position.seq == 1
        viewers.breaks = False
    assert len(ends) == 1
    assert viewers.seen == {}  # not even afterwards: who knows what was sent before it failed
