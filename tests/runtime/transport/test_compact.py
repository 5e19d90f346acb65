"""A replay made smaller folds to the same; told with Hypothesis."""

import json
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from agent_runtime.blocks import Block
from agent_runtime.conversation import Conversation
from agent_runtime.events import BlockUpdate, Event, InputDelta, LogEntry, Position, QueueChanged, TextDelta
from agent_runtime.transport import wire
from agent_runtime.transport.compact import compact
from tests.runtime.transport.world import complete, delta, start

_IDS = st.sampled_from(["a", "b", "c"])
_TEXT = st.text("xyz", min_size=1, max_size=3)
_EVENTS = st.one_of(
    st.builds(start, _IDS),
    st.builds(delta, _IDS, _TEXT),
    st.builds(delta, _IDS, _TEXT),
    st.builds(InputDelta, block_id=_IDS, delta=_TEXT),
    st.builds(complete, _IDS, _TEXT),
    st.builds(BlockUpdate, block_id=_IDS, updates=st.just({"model": "m"})),
    st.just(QueueChanged(queue=())),
)


def entries(events: list[Event]) -> list[LogEntry]:
    at = datetime(2026, 1, 2, tzinfo=UTC)
    return [LogEntry(Position("e", seq), at, event) for seq, event in enumerate(events, 1)]


def folded(told: list[LogEntry], known: list[str]) -> tuple[Block, ...]:
    conversation = Conversation()
    for block_id in known:
        conversation.apply(start(block_id))
    for entry in told:
        conversation.apply(entry.event)
    return conversation.blocks(1000)[0]


@given(st.lists(_EVENTS, max_size=40), st.lists(_IDS, unique=True))
def test_it_folds_to_the_same_whatever_was_known_before(events: list[Event], known: list[str]) -> None:
    every = entries(events)
    assert folded(compact(every), known) == folded(every, known)


@given(st.lists(_EVENTS, max_size=40))
def test_places_rise_and_nothing_but_deltas_is_left_out(events: list[Event]) -> None:
    every = entries(events)
    fewer = compact(every)
    seqs = [entry.position.seq for entry in fewer]
    assert seqs == sorted(set(seqs))
    kept = [entry for entry in every if not isinstance(entry.event, TextDelta | InputDelta)]
    assert [entry for entry in fewer if not isinstance(entry.event, TextDelta | InputDelta)] == kept
    assert compact(fewer) == fewer


@given(st.text())
def test_any_text_whatsoever_is_encoded_as_json_on_one_line(text: str) -> None:
    data = wire.encoded("s", entries([delta("a", text)])[0])
    assert b"\n" not in data
    assert json.loads(data)["delta"] == text


def test_lone_surrogates_and_huge_numbers_out_of_a_sandbox_are_encoded() -> None:
    assert json.loads(wire.dump({"text": "\ud800", "number": 2**80})) == {"text": "\ud800", "number": 2**80}


def test_text_and_input_of_one_open_block_are_never_joined() -> None:
    told = [start("a"), delta("a", "x"), InputDelta(block_id="a", delta="y"), delta("a", "z")]

    kept = [entry.event for entry in compact(entries(told))][1:]

    assert "".join(event.delta for event in kept if isinstance(event, TextDelta)) == "xz"
    assert "".join(event.delta for event in kept if isinstance(event, InputDelta)) == "y"
