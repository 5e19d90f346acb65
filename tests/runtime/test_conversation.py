"""The fold: however a session is read, live, from a snapshot, or from the store, it is the same."""

from datetime import UTC, datetime
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime.blocks import (
    BLOCK,
    AssistantText,
    Block,
    BlockState,
    Subagent,
    SubagentStatus,
    ToolResult,
    ToolStatus,
    ToolUse,
)
from agent_runtime.conversation import Conversation, merge_deltas
from agent_runtime.events import BlockComplete, BlockStart, BlockUpdate, Event, TextDelta
from agent_runtime.ports import StoredBlock

AT = datetime(2026, 1, 1, tzinfo=UTC)
IDS = st.sampled_from(["a", "b", "c", "d", "e"])
PLACES = st.sampled_from(["main", "child", "grandchild"])
STATES = st.sampled_from(BlockState)


def blocks_with(block_id: str) -> st.SearchStrategy[Block]:
    """Any kind of block, with ids that clash on purpose."""
    shared = {"id": block_id, "timestamp": AT}
    calls = st.sampled_from(["call-1", "call-2", "call-3"])
    return st.fixed_dictionaries(
        {
            "type": st.sampled_from(["assistant_text", "thinking", "tool_use", "tool_result", "subagent"]),
            "conversationId": PLACES,
            "state": STATES,
            "toolUseId": calls,
            "subagentId": PLACES,
            "status": st.sampled_from(["pending", "running", "success", "error", "cancelled"]),
        }
    ).map(
        lambda fields: BLOCK.validate_python(
            {**shared, **fields, "content": "", "toolName": "Bash", "output": "ok"}
        )
    )


BLOCKS = IDS.flatmap(blocks_with)
UPDATES = st.dictionaries(
    st.sampled_from(["status", "state", "name", "content", "id", "type", "toolUseId", "nonsense"]),
    st.sampled_from(["success", "cancelled", "complete", "streaming", "call-1"]) | st.integers() | st.none(),
    max_size=2,
)
EVENTS: st.SearchStrategy[list[Event]] = st.lists(
    st.one_of(
        BLOCKS.map(lambda block: BlockStart(block=block)),
        BLOCKS.map(lambda block: BlockComplete(block_id=block.id, block=block)),
        st.builds(TextDelta, block_id=IDS, delta=st.text(max_size=3)),
        st.builds(BlockUpdate, block_id=IDS, updates=UPDATES),
    ),
    max_size=40,
)


def fold(conversation: Conversation, events: list[Event]) -> Conversation:
    for event in events:
        conversation.apply(event)
    return conversation


def seen(conversation: Conversation) -> tuple[Block, ...]:
    return conversation.blocks(1000)[0]


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.integers(0, 40))
def test_a_snapshot_and_the_events_after_it_are_the_whole(events: list[Event], at: int) -> None:
    whole = fold(Conversation(), events)
    until = seen(fold(Conversation(), events[:at]))
    joined = Conversation([StoredBlock(index, block) for index, block in enumerate(until)])
    assert seen(fold(joined, events[at:])) == seen(whole)
    assert joined.subagents() == whole.subagents()


@settings(deadline=None)
@given(EVENTS)
def test_merged_deltas_fold_to_the_same(events: list[Event]) -> None:
    merged = merge_deltas(events)
    assert seen(fold(Conversation(), merged)) == seen(fold(Conversation(), events))
    for one, next_ in pairwise(merged):
        assert not (
            isinstance(one, TextDelta) and isinstance(next_, TextDelta) and one.block_id == next_.block_id
        )


@settings(deadline=None)
@given(EVENTS, st.lists(st.integers(1, 7), max_size=40))
def test_wherever_reads_end_every_delta_is_told_once_and_in_order(
    events: list[Event], reads: list[int]
) -> None:
    told, left = [], events
    for size in (*reads, len(events)):
        told += merge_deltas(left[:size])
        left = left[size:]
    assert seen(fold(Conversation(), told)) == seen(fold(Conversation(), events))
    assert [e for e in told if not isinstance(e, TextDelta)] == [
        e for e in events if not isinstance(e, TextDelta)
    ]
    assert letters(told) == letters(events)


def letters(events: list[Event]) -> list[tuple[str, str]]:
    """Each letter of all deltas, with the block that it belongs to."""
    return [(e.block_id, letter) for e in events if isinstance(e, TextDelta) for letter in e.delta]


@settings(max_examples=200, deadline=None)
@given(EVENTS)
def test_closing_leaves_nothing_open_and_answers_every_tool_once(events: list[Event]) -> None:
    conversation = fold(Conversation(), events)
    closing = conversation.close_open(at=AT, turn_id="t", reason="over", everything=True)
    fold(conversation, closing)
    blocks = seen(conversation)
    assert not [block for block in blocks if block.state is BlockState.STREAMING]
    called = {block.tool_use_id for block in blocks if isinstance(block, ToolUse)}
    answered = {block.tool_use_id for block in blocks if isinstance(block, ToolResult)}
    assert called <= answered
    given_now = [
        e.block.tool_use_id for e in closing if isinstance(e, BlockStart) and isinstance(e.block, ToolResult)
    ]
    assert len(given_now) == len(set(given_now))
    alive = {SubagentStatus.PENDING, SubagentStatus.RUNNING}
    assert not [agent for agent in conversation.subagents() if agent.status in alive]
    assert conversation.close_open(at=AT, turn_id="t", reason="over", everything=True) == []


@settings(deadline=None)
@given(EVENTS, st.integers(0, 6), st.sets(IDS))
def test_what_is_let_go_is_stored_and_awaited_by_nobody(
    events: list[Event], keep: int, unsaved: set[str]
) -> None:
    conversation = fold(Conversation(), events)
    before = seen(conversation)
    agents = conversation.subagents()
    conversation.trim(keep, unsaved=unsaved)
    after, has_more = conversation.blocks(1000)
    gone = [block for block in before if block not in after]
    assert has_more == bool(gone)
    assert len(gone) <= max(0, len(before) - keep)
    assert not [block for block in gone if block.state is BlockState.STREAMING or block.id in unsaved]
    assert conversation.subagents() == agents
    settled = {block.tool_use_id for block in before if isinstance(block, ToolResult)}
    settled |= {block.tool_use_id for block in after if isinstance(block, ToolUse)}
    assert all(block.tool_use_id in settled for block in gone if isinstance(block, ToolUse))


@settings(deadline=None)
@given(EVENTS)
def test_a_block_keeps_its_place(events: list[Event]) -> None:
    conversation = Conversation()
    places: dict[str, int] = {}
    for event in events:
        conversation.apply(event)
        for stored in conversation.stored(["a", "b", "c", "d", "e"]):
            assert places.setdefault(stored.block.id, stored.index) == stored.index
    assert sorted(places.values()) == list(range(len(places)))


def tool(call: str, *, place: str = "main", state: BlockState = BlockState.COMPLETE) -> ToolUse:
    return ToolUse(
        id=call, tool_name="Task", tool_use_id=call, timestamp=AT, conversation_id=place, state=state
    )


def agent(name: str, *, place: str = "main", call: str | None = None) -> Subagent:
    return Subagent(
        id=f"agent-{name}",
        subagent_id=name,
        conversation_id=place,
        timestamp=AT,
        status=SubagentStatus.RUNNING,
        tool_use_id=call,
    )


def result(call: str, result_id: str | None = None) -> ToolResult:
    return ToolResult(id=result_id or f"{call}:result", tool_use_id=call, output="started", timestamp=AT)


def told(*blocks: Block) -> list[Event]:
    return [BlockComplete(block_id=block.id, block=block) for block in blocks]


def test_a_subagent_in_the_background_goes_on_with_all_below_it() -> None:
    conversation = fold(
        Conversation(),
        told(
            tool("background"),
            agent("child", call="background"),
            result("background"),
            agent("grandchild", place="child"),
            tool("inner", place="grandchild"),
            tool("waits-for-it"),
            agent("foreground", call="waits-for-it"),
        ),
    )
    fold(conversation, conversation.close_open(at=AT, turn_id="t", reason="cut", everything=False))
    status = {each.subagent_id: each.status for each in conversation.subagents()}
    assert status == {
        "child": SubagentStatus.RUNNING,
        "grandchild": SubagentStatus.RUNNING,
        "foreground": SubagentStatus.CANCELLED,
    }
    answered = {block.tool_use_id for block in seen(conversation) if isinstance(block, ToolResult)}
    assert answered == {"background", "waits-for-it"}
    fold(conversation, conversation.close_open(at=AT, turn_id="t", reason="cut", everything=True))
    assert {each.status for each in conversation.subagents()} == {SubagentStatus.CANCELLED}


def test_a_cut_off_text_keeps_what_was_said_and_a_cut_off_tool_is_cancelled() -> None:
    text = AssistantText(id="text", timestamp=AT, state=BlockState.STREAMING)
    call = tool("call", state=BlockState.STREAMING)
    conversation = fold(
        Conversation(),
        [BlockStart(block=text), TextDelta(block_id="text", delta="half a sen"), BlockStart(block=call)],
    )
    fold(conversation, conversation.close_open(at=AT, turn_id="t", reason="Interrupted.", everything=True))
    said, used, answer = seen(conversation)
    assert isinstance(said, AssistantText)
    assert (said.content, said.state) == ("half a sen", BlockState.ABORTED)
    assert isinstance(used, ToolUse)
    assert (used.status, used.state) == (ToolStatus.CANCELLED, BlockState.ABORTED)
    assert isinstance(answer, ToolResult)
    assert (answer.output, answer.is_error) == ("Interrupted.", True)


def test_an_answer_counts_whatever_its_id() -> None:
    conversation = fold(Conversation(), told(tool("call"), result("call", "an-id-of-its-own")))
    conversation.apply(BlockUpdate(block_id="call", updates={"status": "success"}))
    assert conversation.close_open(at=AT, turn_id="t", reason="over", everything=True) == []


def test_text_after_the_end_of_a_block_is_not_text_of_it() -> None:
    block = AssistantText(id="text", timestamp=AT, content="whole")
    conversation = fold(Conversation(), [*told(block), TextDelta(block_id="text", delta="!")])
    assert seen(conversation) == (block,)


def test_a_hundred_thousand_deltas_are_folded_one_by_one() -> None:
    """Joining at each delta would copy five billion characters here."""
    conversation = Conversation()
    conversation.apply(BlockStart(block=AssistantText(id="t", timestamp=AT, state=BlockState.STREAMING)))
    delta = TextDelta(block_id="t", delta="x")
    for _ in range(100_000):
        conversation.apply(delta)
    (block,) = seen(conversation)
    assert isinstance(block, AssistantText)
    assert len(block.content) == 100_000


def test_what_the_store_holds_goes_on_where_it_stopped() -> None:
    conversation = Conversation([StoredBlock(7, tool("old"))], has_older=True)
    fold(conversation, told(result("old"), tool("new")))
    assert [(stored.index, stored.block.id) for stored in conversation.stored(["old", "new", "none"])] == [
        (7, "old"),
        (9, "new"),
    ]
    assert conversation.blocks(1) == ((tool("new"),), True)
    assert conversation.blocks(0)[0] == ()


def test_an_update_while_text_is_open_keeps_what_was_said() -> None:
    conversation = Conversation()
    opened = AssistantText(id="a", timestamp=AT, content="", state=BlockState.STREAMING)
    events: list[Event] = [
        BlockStart(block=opened),
        TextDelta(block_id="a", delta="half "),
        BlockUpdate(block_id="a", updates={"model": "m"}),
        TextDelta(block_id="a", delta="said"),
    ]
    (block,) = seen(fold(conversation, events))

    assert block == opened.model_copy(update={"content": "half said", "model": "m"})
