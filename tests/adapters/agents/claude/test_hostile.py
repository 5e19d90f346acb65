"""A sandbox may print anything: no line raises, and what comes out can always be stored and sent."""

import copy
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_runtime.events import Delta
from agent_runtime.frozen import Frozen
from agent_runtime_adapters.agents.claude.lines import MAX_TEXT
from agent_runtime_adapters.agents.claude.transcript import read_transcript
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator
from tests.adapters.agents.claude.scenarios import AT, SCENARIOS, lines, transcript

REAL = [line for name in SCENARIOS for line in lines(name)]
KEPT = [entry for name in SCENARIOS for entries in transcript(name).values() for entry in entries]
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(st.characters(), max_size=20),
    st.sampled_from(["\ud83d", "main", "2026-13-45", "9999-12-31T23:59:59-14:00", "x" * 201, 10**400]),
)
JSON = st.recursive(
    STRANGE,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TYPES = st.sampled_from(["assistant", "user", "system", "stream_event", "result", "conversation_reset"])
bounded = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in items for place in [(*path, key), *places(item, (*path, key))]]


def spoil(line: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    spoilt = copy.deepcopy(line)
    at = spoilt
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return spoilt


@st.composite
def spoilt(draw: st.DrawFn, real: list[dict[str, Any]]) -> dict[str, Any]:
    line = draw(st.sampled_from(real))
    for _ in range(draw(st.integers(1, 3))):
        if found := places(line):
            line = spoil(line, draw(st.sampled_from(found)), draw(JSON))
    return line


def swallow(native: list[dict[str, Any]]) -> None:
    translator = ClaudeTranslator()
    for line in native:
        for fact in translator.translate(line, turn_id="t", at=AT):
            if isinstance(fact, Frozen):
                fact.model_dump_json(by_alias=True)
            elif isinstance(fact, Delta):
                fact.delta.encode()


@bounded
@given(st.lists(st.one_of(spoilt(REAL), st.sampled_from(REAL)), max_size=12))
def test_spoilt_lines_never_raise(native: list[dict[str, Any]]) -> None:
    swallow(native)


@bounded
@given(st.lists(st.dictionaries(st.text(max_size=8), JSON, max_size=5), max_size=5), TYPES)
def test_arbitrary_objects_never_raise(native: list[dict[str, Any]], kind: str) -> None:
    swallow([{**line, "type": kind} for line in native] + native)


@bounded
@given(st.lists(st.one_of(spoilt(KEPT), st.sampled_from(KEPT)), max_size=12), JSON)
def test_spoilt_transcripts_never_raise(entries: list[dict[str, Any]], odd: Any) -> None:
    kept = {"main": entries, "subagents/agent-x": list(reversed(entries)), "subagents/agent-main": entries}
    for block in read_transcript({**kept, "other": [{"type": odd}]}):
        block.model_dump_json(by_alias=True)


def test_an_endless_nesting_does_no_harm() -> None:
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    call = {"type": "tool_use", "id": "t", "name": "Bash", "input": deep}
    swallow([{"type": "assistant", "message": {"id": "m", "content": [call]}}])


def test_a_giant_text_is_cut() -> None:
    text = {"type": "text", "text": "x" * (MAX_TEXT + 10)}
    line = {"type": "assistant", "message": {"id": "m", "content": [text]}}
    *_, whole = ClaudeTranslator().translate(line, turn_id=None, at=AT)
    assert len(whole.block.content) == MAX_TEXT


def test_a_subagent_cannot_call_itself_main() -> None:
    line = {"type": "assistant", "parent_tool_use_id": "t", "agent_id": "main"}
    line["message"] = {"id": "m", "content": [{"type": "text", "text": "I am main"}]}
    assert list(ClaudeTranslator().translate(line, turn_id=None, at=AT)) == []


def test_half_an_emoji_does_not_break_the_stream() -> None:
    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text"}}
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a\ud83d"}}
    begun = {"type": "message_start", "message": {"id": "m"}}
    swallow([{"type": "stream_event", "event": event} for event in (begun, start, delta)])
