"""Recorded runs of the real agent: what it printed, what it kept, and what both become.

A scenario is a folder of `tests/adapters/golden/claude`: `lines.jsonl` is the agent's output as it
came (without control traffic), `transcript/` what it wrote down, `events.jsonl` what the output
must become. `UPDATE_GOLDEN=1 pytest tests/adapters/agents/claude/test_golden.py` writes the last
one anew; read the diff before you commit it.
"""

import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from agent_runtime.blocks import MAIN, Block
from agent_runtime.conversation import Conversation
from agent_runtime.reports import (
    AgentIdentity,
    AgentTurnBegan,
    AgentTurnEnded,
    Translated,
)
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator
from agent_runtime_sandbox.drivers.shown_order import NOTE, ShownOrder

Transcript = dict[str, list[dict[str, Any]]]
GOLDEN = Path(__file__).parents[3] / "adapters" / "golden" / "claude"
SCENARIOS = sorted(folder.name for folder in GOLDEN.iterdir())
AT = datetime(2026, 1, 1, tzinfo=UTC)
CUT_OFF = "cut off"


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def lines(scenario: str) -> list[dict[str, Any]]:
    return read(GOLDEN / scenario / "lines.jsonl")


def transcript(scenario: str) -> dict[str, list[dict[str, Any]]]:
    root = GOLDEN / scenario / "transcript"
    return {str(path.relative_to(root).with_suffix("")): read(path) for path in sorted(root.rglob("*.jsonl"))}


@cache
def written(scenario: str) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """The transcript with the driver's notes; each entry with the place of the line that it came with.

    Most entries have the uuid of their line; others were written before what follows them.
    """
    native = lines(scenario)
    places = {line["uuid"]: at for at, line in reversed(list(enumerate(native))) if "uuid" in line}
    places |= {line["user_message_uuid"]: at for at, line in enumerate(native) if _is(line, "reset")}
    began = {line["task_id"]: at for at, line in enumerate(native) if _is(line, "task_started")}
    ended = {line["task_id"]: at for at, line in enumerate(native) if _is(line, "task_notification")}
    found = {}
    for key, entries in transcript(scenario).items():
        own = [entry for entry in entries if entry["type"] != NOTE]
        place, placed = len(native), []
        for entry in reversed(own):
            told = _task(entry)
            place = min(place, _place(entry, places))
            placed.append((place if told is None else ended.get(told, len(native)), entry))
        first = began.get(key.rpartition("agent-")[2], -1)
        found[key] = [(max(first, at), entry) for at, entry in reversed(placed)]
    order = ShownOrder()
    notes = [(at, note) for at, line in enumerate(native) if (note := order.note(line)) is not None]
    return {**found, "main": found["main"] + notes}


def kept(scenario: str, until: int = 1 << 30) -> Transcript:
    """What was written down when so many lines had been printed."""
    return {key: [entry for at, entry in placed if at < until] for key, placed in written(scenario).items()}


def _is(line: dict[str, Any], kind: str) -> bool:
    return kind in {line.get("subtype"), line["type"].removeprefix("conversation_")}


def _task(entry: dict[str, Any]) -> str | None:
    """The child of whose end the agent was told; not in the order of what was said."""
    told = entry["type"] == "queue-operation" and re.search(r"<task-id>([\w-]+)<", str(entry.get("content")))
    return told[1] if told else None


def _place(entry: dict[str, Any], places: dict[str, int]) -> int:
    names = [entry.get("uuid"), entry.get("parentUuid") if entry.get("subtype") == "local_command" else None]
    return min([places[name] for name in names if name in places], default=1 << 30)


def translated(scenario: str) -> list[Translated]:
    """All that a recording becomes; turns are called turn-1, turn-2 and so on."""
    return translate_all(lines(scenario))


def translate_all(native: Iterable[dict[str, Any]]) -> list[Translated]:
    translator, turns, facts = ClaudeTranslator(), 0, []
    for line in native:
        for fact in translator.translate(line, turn_id=f"turn-{turns}", at=AT):
            turns += isinstance(fact, AgentTurnBegan)
            facts.append(fact)
    return facts


def live_blocks(facts: Iterable[Translated]) -> list[Block]:
    """What a session holds after these facts: it closes at each turn's end what the turn left open."""
    conversation = Conversation()
    for fact in facts:
        if isinstance(fact, AgentTurnEnded):
            _close(conversation, everything=False)
        elif not isinstance(fact, AgentIdentity | AgentTurnBegan):
            conversation.apply(fact)
    _close(conversation, everything=True)
    return list(conversation.blocks(10_000)[0])


def in_conversation(blocks: Iterable[Block], conversation_id: str = MAIN) -> list[Block]:
    return [block for block in blocks if block.conversation_id == conversation_id]


def _close(conversation: Conversation, *, everything: bool) -> None:
    for event in conversation.close_open(at=AT, turn_id=None, reason=CUT_OFF, everything=everything):
        conversation.apply(event)
