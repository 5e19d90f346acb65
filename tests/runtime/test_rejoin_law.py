"""The law of joining again, over every recording of a real agent: whoever left misses nothing.

A viewer that takes a snapshot, or that left and comes back with its position, ends in the very bytes
of one that never left; where that cannot be promised it is told so. `clients/console` has the same
law for the console's own fold.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime.blocks import BLOCK, Block
from agent_runtime.conversation import Conversation, merge_deltas
from agent_runtime.events import (
    EVENT,
    BlockComplete,
    BlockStart,
    BlockUpdate,
    Event,
    Gap,
    InputDelta,
    LogEntry,
    Position,
    Replay,
    TextDelta,
    TurnEnd,
    TurnStart,
)
from agent_runtime.ports import StoredBlock
from agent_runtime.reports import (
    AgentIdentity,
    AgentTookIn,
    AgentTurnBegan,
    AgentTurnEnded,
    Translated,
)
from agent_runtime.testing import samples
from agent_runtime.transport import wire
from agent_runtime.transport.compact import compact
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.logs.size import size_of
from tests.adapters.agents.claude.scenarios import SCENARIOS, translated

AT = datetime(2026, 1, 1, tzinfo=UTC)
SID = "session-1"
EVERYTHING = 10_000
SESSIONS = 650  # each is cut twice
PLACES = 1000

scenarios = st.sampled_from(SCENARIOS)
arrived_at_once = st.integers(1, 8)
places = st.integers(0, PLACES)


@cache
def session_of(scenario: str, at_once: int = 1) -> tuple[Event, ...]:
    """What a session publishes of a recording when so many facts arrive together: what a turn left
    open is closed when it ends, neighbouring deltas of one arrival are merged."""
    conversation, events, arrived = Conversation(), list[Event](), list[Event]()
    facts = translated(scenario)
    for number, fact in enumerate(facts, 1):
        for event in published(fact, conversation, is_last=number == len(facts)):
            conversation.apply(event)
            arrived.append(event)
        if number % at_once == 0 or number == len(facts):
            events += merge_deltas(arrived)
            arrived.clear()
    return tuple(events)


def published(fact: Translated, conversation: Conversation, *, is_last: bool) -> list[Event]:
    match fact:
        case AgentIdentity() | AgentTookIn():
            return []
        case AgentTurnBegan():
            return [TurnStart(turn=samples.turn())]
        case AgentTurnEnded():
            closing = conversation.close_open(at=AT, turn_id=None, reason="cut off", everything=is_last)
            return [*closing, TurnEnd(turn=samples.turn())]
        case _:
            return [fact]


class Viewer:
    """Knows only what came over the wire: blocks, and the input of tools that is being written."""

    def __init__(self, snapshot: Iterable[Block] = ()) -> None:
        told = [BLOCK.validate_json(wire.dump(block.to_json())) for block in snapshot]
        self._conversation = Conversation([StoredBlock(index, block) for index, block in enumerate(told)])
        self._drafts: dict[str, str] = {}

    def hear(self, entries: Iterable[LogEntry]) -> "Viewer":
        for entry in entries:
            event = EVENT.validate_json(wire.encoded(SID, entry))
            self._conversation.apply(event)
            match event:
                case InputDelta():
                    self._drafts[event.block_id] = self._drafts.get(event.block_id, "") + event.delta
                case BlockComplete():
                    self._drafts.pop(event.block_id, None)
        return self

    @property
    def blocks(self) -> tuple[Block, ...]:
        return self._conversation.blocks(EVERYTHING)[0]

    def shows(self) -> bytes:
        """Every block in its place, and the subagents among them."""
        held = self._conversation.stored(block.id for block in self.blocks)
        agents = [agent.to_json() for agent in self._conversation.subagents()]
        return wire.dump([[(one.index, one.block.to_json()) for one in held], agents])

    def shows_with_drafts(self) -> bytes:
        """A snapshot tells nothing of the drafts, a replay does."""
        return self.shows() + wire.dump(self._drafts)


async def logged(events: Sequence[Event]) -> tuple[LogEntry, ...]:
    return await MemoryEventLog(clock=lambda: AT).append(SID, events)


def place_in(events: Sequence[Event], place: int) -> int:
    return place * len(events) // PLACES


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_one_that_stays_sees_what_was_told_of_each_block(scenario: str) -> None:
    """Block for block, without a fold: its newest whole form, then the text and the updates after it."""
    entries = await logged(session_of(scenario))
    viewer = Viewer()
    for at, entry in enumerate(entries, 1):
        viewer.hear([entry])
        past = [heard.event for heard in entries[:at]]
        begun = dict.fromkeys(event.block.id for event in past if isinstance(event, BlockStart))
        assert [block.to_json() for block in viewer.blocks] == [told_of(each, past) for each in begun]


def told_of(block_id: str, past: Sequence[Event]) -> dict[str, Any]:
    about = [event for event in past if block_id in (getattr(event, "block_id", None), started(event))]
    newest = max(at for at, event in enumerate(about) if isinstance(event, BlockStart | BlockComplete))
    whole = about[newest]
    assert isinstance(whole, BlockStart | BlockComplete)
    block = whole.block.to_json()
    for event in about[newest + 1 :]:
        if isinstance(event, TextDelta):
            block["content"] += event.delta
        if isinstance(event, BlockUpdate):
            block |= event.updates
    return block


def started(event: Event) -> str | None:
    return event.block.id if isinstance(event, BlockStart) else None


@pytest.mark.parametrize("at_once", [1, 5])
@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_snapshot_at_any_event_and_the_rest_are_the_whole(scenario: str, at_once: int) -> None:
    """At the end, and at each of the next events: later the whole blocks would hide a lost piece."""
    entries = await logged(session_of(scenario, at_once))
    stays = Viewer()
    seen = [(stays.shows(), stays.blocks)]
    for entry in entries:
        stays.hear([entry])
        seen.append((stays.shows(), stays.blocks))
    for at in range(len(seen)):
        joined = Viewer(snapshot=seen[at][1])
        assert joined.shows() == seen[at][0]
        soon = min(at + 3, len(entries))
        for after in range(at, soon):
            joined.hear(entries[after : after + 1])
            assert joined.shows() == seen[after + 1][0], f"joined after {at}, differs after {after + 1}"
        joined.hear(entries[soon:])
        assert joined.shows_with_drafts() == stays.shows_with_drafts(), f"joined after event {at}"


@settings(max_examples=SESSIONS, derandomize=True, deadline=None, database=None)
@given(scenarios, arrived_at_once, st.tuples(places, places, places, places).map(sorted))
def test_a_viewer_that_was_cut_and_comes_back_sees_what_one_that_stayed_sees(
    scenario: str, at_once: int, cuts: list[int]
) -> None:
    """It is cut twice, and the session goes on meanwhile: each time it brings its position as text."""
    events = session_of(scenario, at_once)
    left, back, left_again, back_again = (place_in(events, cut) for cut in cuts)

    async def story() -> None:
        log = MemoryEventLog(clock=lambda: AT)
        stayed, went = Viewer(), Viewer()
        live = await log.append(SID, events[:left])
        stayed.hear(live)
        went.hear(live)
        for gone, returned, until in ((left, back, left_again), (left_again, back_again, len(events))):
            position = str(Position((await log.head(SID)).epoch, gone))
            stayed.hear(await log.append(SID, events[gone:returned]))
            went.hear(await replayed(log, position))
            assert went.shows_with_drafts() == stayed.shows_with_drafts()
            live = await log.append(SID, events[returned:until])
            stayed.hear(live)
            went.hear(live)
            assert went.shows_with_drafts() == stayed.shows_with_drafts()

    asyncio.run(story())


async def replayed(log: MemoryEventLog, position: str) -> list[LogEntry]:
    """What the viewer at this position is sent; no more than it missed, and up to the head."""
    after = Position.parse(position)
    assert after is not None
    found = await log.since(SID, after)
    assert isinstance(found, Replay)
    assert found.head == await log.head(SID)
    sent = compact(found.entries)
    assert all(after.seq < entry.position.seq <= found.head.seq for entry in sent)
    return sent


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(scenarios, arrived_at_once, places, st.integers(0, 60_000))
def test_a_position_too_old_is_a_gap_and_every_other_gets_all_it_missed(
    scenario: str, at_once: int, place: int, bound: int
) -> None:
    events = session_of(scenario, at_once)
    kept = newest_within(bound, events)

    async def story() -> None:
        log = MemoryEventLog(max_bytes_per_session=bound, clock=lambda: AT)
        entries = await log.append(SID, events)
        head = await log.head(SID)
        seq = place_in(events, place)
        found = await log.since(SID, Position(head.epoch, seq))
        if len(events) - seq > kept:
            assert found == Gap(head)
        else:
            assert found == Replay(entries[seq:], head)

    asyncio.run(story())


def newest_within(bound: int, events: Sequence[Event]) -> int:
    kept, size = 0, 0
    for event in reversed(events):
        size += size_of(event)
        if size > bound:
            break
        kept += 1
    return kept


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(scenarios, places, st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.integers(1, 10**17 - 1))
def test_a_position_of_another_epoch_or_ahead_of_the_head_is_a_gap(
    scenario: str, place: int, other_epoch: str, ahead: int
) -> None:
    events = session_of(scenario)

    async def story() -> None:
        log = MemoryEventLog(clock=lambda: AT)
        await log.append(SID, events)
        head = await log.head(SID)
        before = str(Position(head.epoch, place_in(events, place)))
        elsewhere = f"{other_epoch}:{place_in(events, place)}"
        assert await answer(log, elsewhere) == Gap(head)
        assert await answer(log, f"{head.epoch}:{head.seq + ahead}") == Gap(head)
        await log.drop(SID)
        assert await answer(log, before) == Gap(await log.head(SID))

    asyncio.run(story())


async def answer(log: MemoryEventLog, position: str) -> Replay | Gap:
    after = Position.parse(position)
    assert after is not None
    return await log.since(SID, after)


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(st.text() | st.from_regex(r"[A-Za-z0-9_-]{0,66}:-?[0-9]{0,20}\s?") | st.from_regex(r"\w*:\d*"))
def test_a_text_is_the_one_position_that_is_written_so_or_none(text: str) -> None:
    found = Position.parse(text)
    assert found is None or str(found) == text


@pytest.mark.parametrize(
    "nonsense",
    ["", ":", "e", "e:", ":1", "e:-1", "e:01", "e:1.0", "e:1 ", " e:1", "e:1\n", "e:x", "e:1:2", "é:1",
     "e:\u0661", "e:" + "9" * 19, "e" * 65 + ":1", "null", json.dumps({"epoch": "e", "seq": 1})],
)  # fmt: skip
def test_nonsense_is_no_position(nonsense: str) -> None:
    assert Position.parse(nonsense) is None
