"""What viewers are told of what an agent printed: all of it, by the right names, and of its session only."""

import json
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise, zip_longest
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent_runtime.blocks import MAIN, AssistantText, BlockState, Subagent, Thinking
from agent_runtime.events import TextDelta
from agent_runtime.reports import Translated
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator
from agent_runtime_sandbox.frames import LineSplitter, decode, encode
from tests.adapters.agents.claude.scenarios import AT, SCENARIOS, lines, live_blocks, transcript, translated

NEIGHBOURS = list(zip(SCENARIOS, SCENARIOS[1:] + SCENARIOS[:1], strict=True))


@pytest.mark.parametrize(("one", "other"), NEIGHBOURS)
def test_two_sessions_that_stream_at_once_do_not_touch_each_other(one: str, other: str) -> None:
    first, second = Reading(), Reading()
    for line, beside in zip_longest(lines(one), lines(other)):
        first.take(line)
        second.take(beside)
    for together, scenario in ((first, one), (second, other)):
        alone = Reading()
        for line in lines(scenario):
            alone.take(line)
        assert together.facts == alone.facts


class Reading:
    """What one session reads."""

    def __init__(self) -> None:
        self.facts: list[Translated] = []
        self._translator = ClaudeAgent().translator()

    def take(self, line: dict[str, Any] | None) -> None:
        if line is not None:
            self.facts += self._translator.translate(line, turn_id="turn", at=AT)


PIECES = st.lists(
    st.sampled_from(["\n", "\n\n", " ", "\t", "para one", "é", "\u200b"])
    | st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    min_size=1,
)


@settings(max_examples=150, deadline=None)
@given(PIECES)
def test_text_arrives_as_it_was_written_white_space_too(pieces: list[str]) -> None:
    translator, facts = ClaudeTranslator(), list[Translated]()
    for line in saying(pieces):
        facts += translator.translate(line, turn_id="turn", at=AT)
    (answer,) = [block for block in live_blocks(facts) if isinstance(block, AssistantText)]
    streamed = [fact.delta for fact in facts if isinstance(fact, TextDelta) and fact.block_id == answer.id]
    assert "".join(streamed) == answer.content == "".join(pieces)


def saying(pieces: list[str]) -> Iterator[dict[str, Any]]:
    """A recorded answer, with other words."""
    said = False
    for line in lines("thinking"):
        delta = line.get("event", {}).get("delta", {})
        if delta.get("type") == "text_delta":
            for piece in () if said else pieces:
                yield {**line, "event": {**line["event"], "delta": {"type": "text_delta", "text": piece}}}
            said = True
        elif line["type"] == "assistant" and line["message"]["content"][0]["type"] == "text":
            content = [{"type": "text", "text": "".join(pieces)}]
            yield {**line, "message": {**line["message"], "content": content}}
        else:
            yield line


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_transcript_read_again_is_the_same_with_the_times_of_long_ago(scenario: str) -> None:
    entries = transcript(scenario)
    blocks = ClaudeAgent().read_transcript(entries)
    assert ClaudeAgent().read_transcript(entries) == blocks
    assert len({block.id for block in blocks}) == len(blocks)
    written = {
        datetime.fromisoformat(entry["timestamp"])
        for key in entries.values()
        for entry in key
        if "timestamp" in entry
    }
    assert {block.timestamp for block in blocks} <= written


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_subagent_is_one_block_that_comes_to_an_end_and_owns_its_conversation(scenario: str) -> None:
    read = list(ClaudeAgent().read_transcript(transcript(scenario)))
    for blocks in (live_blocks(translated(scenario)), read):
        children = [block for block in blocks if isinstance(block, Subagent)]
        assert len({child.subagent_id for child in children}) == len(children)
        assert {child.status for child in children} <= {"success", "error", "cancelled"}
        speaking = {block.conversation_id for block in blocks} - {MAIN}
        assert speaking <= {child.subagent_id for child in children}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_thought_is_lost_or_left_open(scenario: str) -> None:
    said = {
        (line["message"]["id"], part["thinking"])
        for line in lines(scenario)
        if line["type"] == "assistant"
        for part in line["message"]["content"]
        if part["type"] == "thinking"
    }
    thoughts = [block for block in live_blocks(translated(scenario)) if isinstance(block, Thinking)]
    assert {thought for _, thought in said} <= {block.content for block in thoughts}
    assert len(thoughts) >= len(said)
    assert all(block.state is not BlockState.STREAMING for block in thoughts)


@settings(deadline=None)
@given(st.lists(st.text(), max_size=5), st.data())
def test_no_cut_of_the_bytes_harms_a_letter(texts: list[str], data: st.DataObject) -> None:
    """Not those of our own lines, which are ASCII, nor of lines in UTF-8."""
    frames = [{"k": "agent", "line": text} for text in texts]
    raw = [json.dumps(frame, ensure_ascii=False).encode(errors="surrogatepass") + b"\n" for frame in frames]
    for stream in (b"".join(raw), b"".join(encode(frame) for frame in frames)):
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=20)))
        splitter = LineSplitter()
        arrived = [
            decode(line)
            for begin, end in pairwise([0, *cuts, len(stream)])
            for line in splitter.feed(stream[begin:end])
        ]
        assert arrived == frames


def test_a_giant_line_is_put_together_without_going_over_it_again_and_again() -> None:
    """2048 pieces: whoever copies what there is at each of them copies 32 GiB."""
    piece, splitter = b"x" * 16384, LineSplitter()
    begun = process_time()
    for _ in range(2048):
        assert splitter.feed(piece) == []
    (line,) = splitter.feed(b"\n")
    assert len(line) == 32 * 1024 * 1024
    assert process_time() - begun < 2
