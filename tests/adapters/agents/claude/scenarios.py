"""Recorded runs of the real agent: what it printed, what it kept, and what both become.

A scenario is a folder of `tests/adapters/golden/claude`: `lines.jsonl` is the agent's output as it
came (without control traffic), `transcript/` what it wrote down, `events.jsonl` what the output
must become. `UPDATE_GOLDEN=1 pytest tests/adapters/agents/claude/test_golden.py` writes the last
one anew; read the diff before you commit it.
"""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agent_runtime.blocks import MAIN, Block
from agent_runtime.conversation import Conversation
from agent_runtime.ports import AgentIdentity, AgentTurnBegan, AgentTurnEnded, Translated
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator

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
