"""Positions, events as JSON, and what a log's entries cost the collector."""

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.events import EVENT, InputDelta, LogEntry, Position, TextDelta, TurnStart
from agent_runtime.records import Turn, TurnStatus
from agent_runtime.testing.samples import NOON as AT

EPOCHS = st.text("abcXYZ019_-", min_size=1, max_size=64)


@given(EPOCHS, st.integers(0, 10**18 - 1))
def test_a_position_is_read_as_it_is_written(epoch: str, seq: int) -> None:
    assert Position.parse(str(Position(epoch, seq))) == Position(epoch, seq)


@given(st.text(max_size=80))
def test_what_is_read_is_what_was_written(text: str) -> None:
    position = Position.parse(text)
    assert position is None or str(position) == text


@pytest.mark.parametrize(
    "text",
    ["", ":", "a:", ":1", "a:-1", "a:01", "a:1 ", "a:1\n", "a b:1", "a:1:2", "a:\u0661", "a:" + "9" * 19],
)
def test_what_is_no_position_is_none(text: str) -> None:
    assert Position.parse(text) is None


def test_an_event_survives_its_json() -> None:
    turn = Turn(turn_id="t", index=0, status=TurnStatus.RUNNING, started_at=AT)
    for event in (TurnStart(turn=turn, turn_id="t"), TextDelta(block_id="b", delta="\u2028\n")):
        assert EVENT.validate_python(event.to_json()) == event
        assert None not in event.to_json().values()


def test_the_collector_looks_at_nothing_that_a_log_holds_of_a_stream() -> None:
    for delta in (TextDelta(block_id="b", delta="x"), InputDelta(block_id="b", delta="x")):
        entry = LogEntry(Position("e", 1), AT, delta)
        assert not any(map(gc.is_tracked, (entry, entry.position, entry.event)))


def test_a_delta_can_be_read_written_and_held_by_a_model_as_any_event() -> None:
    delta = TextDelta(block_id="b", delta="x", turn_id="t")
    assert EVENT.validate_python(delta) is delta
    assert EVENT.validate_python(delta.to_json()) == delta
    assert EVENT.dump_python(delta, mode="json", by_alias=True, exclude_none=True) == delta.to_json()
