"""A translator's memory: another one, made from it, goes on exactly as the first would have."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent_runtime.events import BlockComplete, BlockStart, Delta
from agent_runtime.frozen import Frozen
from agent_runtime.reports import Translated
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from agent_runtime_adapters.agents.claude.memory import Memory, read
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator
from tests.adapters.agents.claude.scenarios import AT, SCENARIOS, lines
from tests.adapters.agents.claude.test_hostile import JSON, REAL, places, spoil, spoilt


def read_line(translator: ClaudeTranslator, line: dict[str, Any], number: int) -> list[Translated]:
    return list(translator.translate(line, turn_id=f"turn-{number // 20}", at=AT))


def open_after(facts: list[Translated], before: set[str]) -> set[str]:
    started = {fact.block.id for fact in facts if isinstance(fact, BlockStart)}
    return (before | started) - {fact.block_id for fact in facts if isinstance(fact, BlockComplete)}


def stored(memory: dict[str, Any]) -> dict[str, Any]:
    back: dict[str, Any] = json.loads(json.dumps(memory))
    return back


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_from_every_point_without_an_open_block_the_rest_becomes_the_same_events(scenario: str) -> None:
    native = lines(scenario)
    translator, facts, points, opened = ClaudeTranslator(), [], {}, set[str]()
    for number, line in enumerate(native):
        facts.append(read_line(translator, line, number))
        opened = open_after(facts[-1], opened)
        if not opened:
            points[number + 1] = translator.memory()
    assert len(points) > 2
    for point, memory in points.items():
        another = ClaudeAgent().translator(stored(memory))
        rest = [read_line(another, native[number], number) for number in range(point, len(native))]
        assert rest == facts[point:], point
        assert another.memory() == translator.memory()


def test_the_points_lie_in_mid_message_in_mid_turn_and_beside_living_subagents() -> None:
    translator, found = ClaudeTranslator(), set[str]()
    for number, line in enumerate(lines("background_subagent")):
        read_line(translator, line, number)
        memory = translator.memory()
        found |= {name for name in ("message", "children", "counted") if memory.get(name)}
    assert found == {"message", "children", "counted"}


def test_without_the_memory_the_rest_would_become_something_else() -> None:
    native = lines("background_subagent")
    started = next(n for n, line in enumerate(native) if line.get("subtype") == "task_started")
    known, fresh = ClaudeTranslator(), ClaudeTranslator()
    for number, line in enumerate(native[: started + 1]):
        read_line(known, line, number)
    rest = list(enumerate(native))[started + 1 :]
    assert [read_line(known, line, n) for n, line in rest] != [read_line(fresh, line, n) for n, line in rest]


bounded = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def real_memories() -> list[dict[str, Any]]:
    found = []
    for scenario in SCENARIOS:
        translator = ClaudeTranslator()
        for number, line in enumerate(lines(scenario)):
            read_line(translator, line, number)
        found.append(translator.memory())
    return found


MEMORIES = real_memories()


@st.composite
def spoilt_memories(draw: st.DrawFn) -> dict[str, Any]:
    memory = stored(draw(st.sampled_from(MEMORIES)))
    return spoil(memory, draw(st.sampled_from(places(memory))), draw(JSON))


@bounded
@given(st.one_of(JSON, spoilt_memories()), st.lists(st.sampled_from(REAL), max_size=8))
def test_a_memory_that_makes_no_sense_is_none_and_never_raises(
    memory: Any, native: list[dict[str, Any]]
) -> None:
    translator, fresh = ClaudeAgent().translator(memory), ClaudeTranslator()
    believed = read(memory) != Memory()
    for number, line in enumerate(native):
        facts = read_line(translator, line, number)
        assert believed or facts == read_line(fresh, line, number)
        for fact in facts:
            if isinstance(fact, Frozen):
                fact.model_dump_json(by_alias=True)
            elif isinstance(fact, Delta):
                fact.delta.encode()
    assert json.dumps(translator.memory())


@bounded
@given(st.lists(st.one_of(spoilt(REAL), st.sampled_from(REAL)), max_size=12))
def test_whatever_is_printed_the_memory_can_be_stored_and_is_read_again(native: list[dict[str, Any]]) -> None:
    translator = ClaudeTranslator()
    for number, line in enumerate(native):
        read_line(translator, line, number)
        memory = translator.memory()
        assert ClaudeTranslator(stored(memory)).memory() == memory


def test_the_memory_of_a_thousand_talkative_subagents_stays_small() -> None:
    translator = ClaudeTranslator()
    for number in range(1000):
        task = {"task_id": f"agent{number:012}", "tool_use_id": f"toolu_{number:020}", "prompt": "x" * 10_000}
        read_line(
            translator, {"type": "system", "subtype": "task_started", "task_type": "local_agent", **task}, 0
        )
        message = {"id": f"msg_{number}", "content": [{"type": "text", "text": "y" * 100_000}]}
        said = {"parent_tool_use_id": task["tool_use_id"], "agent_id": task["task_id"], "message": message}
        read_line(translator, {"type": "assistant", **said}, 0)
    memory = translator.memory()
    assert len(memory["children"]) == 200
    assert len(json.dumps(memory)) < 96 * 1024
