"""Turns: durable before anybody is told, each begun and ended once, and paid for once."""

from datetime import UTC, datetime
from typing import Any

import pytest

from agent_runtime.blocks import ImagePart, ImageSource, TextPart
from agent_runtime.conversation import Conversation
from agent_runtime.errors import Conflict, InvalidRequest, PersistenceFault, RateLimited
from agent_runtime.events import Position, Replay
from agent_runtime.recorder import Recorder
from agent_runtime.records import SessionRecord, TurnStatus
from agent_runtime.reports import AgentTurnEnded
from agent_runtime.turns import MAX_WAITING, MOST_REMEMBERED, Turns
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.memory import MemoryPersistence
from tests.faults import FaultyPersistence

AT = datetime(2026, 1, 1, tzinfo=UTC)


class Desk:
    """Turns with their recorder, store and log."""

    @classmethod
    async def opened(cls, cost_usd: float | None = None) -> "Desk":
        desk = cls()
        desk.store = FaultyPersistence(MemoryPersistence())
        await desk.store.open()
        record = SessionRecord(
            session_id="s",
            owner="anna",
            architecture="scripted",
            agent_profile_reference="p",
            created_at=AT,
            last_activity=AT,
            cost_usd=cost_usd,
        )
        await desk.store.create_session(record)
        desk.log = MemoryEventLog()
        desk.start = await desk.log.head("s")
        desk.recorder = Recorder(
            record,
            Conversation(),
            files=(),
            position=desk.start,
            log=desk.log,
            persistence=desk.store,
            sync_interval_s=1.0,
            page=50,
        )
        desk.turns = Turns(desk.recorder, desk.store, next_index=0, is_new=True)
        return desk

    store: FaultyPersistence
    log: MemoryEventLog
    start: Position
    recorder: Recorder
    turns: Turns

    async def accept(self, content: Any, message_id: str | None = None) -> Any:
        return await self.turns.accept(content, message_id, admit=lambda: None)

    async def end(self, turn_id: str, **report: Any) -> None:
        ended = AgentTurnEnded(**{"status": TurnStatus.COMPLETED, **report})
        await self.turns.end(turn_id, ended, everything=True, settle=nothing)

    async def kinds(self) -> list[str]:
        replay = await self.log.since("s", self.start)
        assert isinstance(replay, Replay)
        return [entry.event.type for entry in replay.entries]


async def nothing() -> dict[str, Any]:
    return {}


async def test_a_message_is_durable_when_it_is_accepted() -> None:
    desk = await Desk.opened()
    turn, known = await desk.accept("hello", "m")
    assert not known
    (stored,) = await desk.store.inner.load_turns("s", limit=5)
    assert stored == turn
    assert (stored.status, stored.content, stored.message_id) == (TurnStatus.QUEUED, "hello", "m")
    assert await desk.kinds() == [], "nobody is told before it begins"


async def test_a_message_that_is_not_admitted_is_nowhere() -> None:
    desk = await Desk.opened()

    def refuse() -> None:
        raise Conflict("busy")

    with pytest.raises(Conflict):
        await desk.turns.accept("hello", "m", admit=refuse)
    assert await desk.store.inner.load_turns("s", limit=5) == ()
    first, _ = await desk.accept("hello", "m")
    again, known = await desk.turns.accept("hello", "m", admit=refuse)
    assert (again.turn_id, known) == (first.turn_id, True), "a known one is not asked about"


async def test_a_turn_and_its_message_begin_in_one_write() -> None:
    desk = await Desk.opened()
    turn, _ = await desk.accept("hello")
    desk.store.calls.clear()
    await desk.turns.begin(turn.turn_id)
    assert desk.store.calls == ["save_turn"]
    (stored,) = await desk.store.inner.load_turns("s", limit=5)
    assert (stored.status, stored.content) == (TurnStatus.RUNNING, None)
    page = await desk.store.inner.load_blocks("s", limit=5)
    assert [each.block.id for each in page.blocks] == [turn.turn_id]
    assert await desk.kinds() == ["turn_start", "block_start", "block_complete"]
    assert not desk.recorder.dirty, "it is saved and needs no write of its own"
    await desk.end(turn.turn_id)
    assert (await desk.kinds())[-1] == "turn_end"


async def test_a_repeated_message_is_known_in_every_stage() -> None:
    desk = await Desk.opened()
    turn, _ = await desk.accept("hello", "m")
    for act in (nothing, lambda: desk.turns.begin(turn.turn_id), lambda: desk.end(turn.turn_id)):
        await act()
        again, known = await desk.accept("hello", "m")
        assert (again.turn_id, known) == (turn.turn_id, True)


async def test_a_message_that_the_store_did_not_take_with_its_turn_is_still_to_be_saved() -> None:
    desk = await Desk.opened()
    turn, _ = await desk.accept("hello")
    desk.store.only, desk.store.breaks = {"save_turn"}, InvalidRequest("no turn", code="unstorable_value")
    await desk.turns.begin(turn.turn_id)
    await desk.recorder.flush()
    page = await desk.store.inner.load_blocks("s", limit=5)
    assert [each.block.id for each in page.blocks] == [turn.turn_id]


async def test_the_store_is_not_asked_for_a_message_where_all_are_remembered() -> None:
    desk = await Desk.opened()
    await desk.accept("hello", "m")
    assert "find_turn" not in desk.store.calls, "there was none before the first"
    await desk.accept("hello", "m")
    assert "find_turn" in desk.store.calls
    later = Turns(desk.recorder, desk.store, next_index=0)  # loaded before "m" was stored
    _, known = await later.accept("hello", "m", admit=lambda: None)
    assert not known, "nobody took up what was queued before it was loaded: it is queued now"
    assert [each.message_id for each in await desk.store.inner.load_turns("s", limit=5)] == ["m"]


async def test_a_message_is_known_again_after_more_of_them_than_are_remembered() -> None:
    desk = await Desk.opened()
    first, _ = await desk.accept("first", "first")
    await desk.turns.begin(first.turn_id)
    for number in range(MOST_REMEMBERED):
        turn, _ = await desk.accept("another", str(number))
        await desk.turns.begin(turn.turn_id)
    again, known = await desk.accept("first", "first")
    assert (again.turn_id, known) == (first.turn_id, True)


async def test_a_failed_save_takes_no_place_twice() -> None:
    desk = await Desk.opened()
    desk.store.only, desk.store.deaf = {"save_turn"}, True
    with pytest.raises(PersistenceFault):
        await desk.accept("lost")
    desk.store.deaf = False
    turn, _ = await desk.accept("kept")
    indices = [each.index for each in await desk.store.inner.load_turns("s", limit=5)]
    assert len(indices) == len(set(indices))
    assert turn.index == max(indices)


async def test_there_is_an_end_to_what_may_wait() -> None:
    desk = await Desk.opened()
    turns = [(await desk.accept(f"{number}"))[0] for number in range(MAX_WAITING)]
    with pytest.raises(RateLimited):
        await desk.accept("one more")
    await desk.turns.begin(turns[0].turn_id)
    await desk.accept("one more")


async def test_a_turn_that_never_ran_ends_beside_the_one_under_way() -> None:
    desk = await Desk.opened()
    one, _ = await desk.accept("one")
    two, _ = await desk.accept("two")
    await desk.turns.begin(one.turn_id)
    await desk.turns.end_unbegun(two.turn_id, AgentTurnEnded(status=TurnStatus.CANCELLED))
    await desk.turns.end_unbegun(two.turn_id, AgentTurnEnded(status=TurnStatus.CANCELLED))
    assert desk.turns.current is not None
    assert desk.turns.current.turn_id == one.turn_id
    await desk.end(one.turn_id)
    statuses = [turn.status for turn in await desk.store.inner.load_turns("s", limit=5)]
    assert statuses == [TurnStatus.COMPLETED, TurnStatus.CANCELLED]
    assert (await desk.kinds()).count("turn_end") == 2


async def test_a_turn_costs_what_the_total_grew_by() -> None:
    desk = await Desk.opened(cost_usd=1.0)
    costs = []
    for total in (1.25, 1.5, None, 0.1, 0.3):
        turn, _ = await desk.accept("x")
        await desk.turns.begin(turn.turn_id)
        await desk.end(turn.turn_id, total_cost_usd=total)
    costs = [turn.cost_usd for turn in await desk.store.inner.load_turns("s", limit=9)]
    assert costs == [0.25, 0.25, None, 0.1, 0.2]
    assert desk.recorder.record.cost_usd == 0.3


async def test_a_queue_shows_who_waits_in_short() -> None:
    desk = await Desk.opened()
    picture = ImagePart(source=ImageSource(media_type="image/png", data="AAAA"))
    first, _ = await desk.accept("x" * 1000, "a")
    second, _ = await desk.accept((TextPart(text="see"), picture), "b")
    shown = desk.turns.queue([first.turn_id, second.turn_id, "unknown"])
    assert [(each.message_id, each.preview) for each in shown] == [("a", "x" * 200), ("b", "see [image]")]
