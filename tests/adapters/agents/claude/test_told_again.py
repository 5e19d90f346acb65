"""A runtime that dies at any point and reads its agent's lines again ends with the same conversation.

What is durable when it dies: a checkpoint, made while no block was open, or by a turn's end; and the
blocks that were complete at some later point. The lines after the checkpoint are folded again onto that,
by a translator that goes on from the checkpoint's memory. Then the run goes on. The law: every block
has the id, the index, the content and the state that it would have had without the death.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from agent_runtime.blocks import Block, UserMessage
from agent_runtime.conversation import Conversation
from agent_runtime.ports import StoredBlock
from agent_runtime.reports import (
    AgentIdentity,
    AgentTookIn,
    AgentTurnBegan,
    AgentTurnEnded,
)
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator
from tests.adapters.agents.claude.scenarios import AT, SCENARIOS, lines

PLACES = 1000
places = st.integers(0, PLACES)


@dataclass
class Runtime:
    """Does what a session does with native lines. `saved` is the store, which outlives it."""

    conversation: Conversation
    translator: ClaudeTranslator
    turns: int = 0
    begun: int = 0
    saved: dict[str, StoredBlock] = field(default_factory=dict)
    unsaved: dict[str, None] = field(default_factory=dict)

    def hear(self, line: dict[str, Any]) -> bool:
        """Read one line; whether it ended a turn."""
        ended = False
        for fact in self.translator.translate(line, turn_id=f"turn-{self.turns}", at=AT):
            match fact:
                case AgentIdentity() | AgentTookIn():
                    pass
                case AgentTurnBegan():
                    self._begin_turn()
                case AgentTurnEnded():
                    self.conversation.told_again()
                    ended = True
                    for event in self.conversation.close_open(
                        at=AT, turn_id=f"turn-{self.turns}", reason="cut off", everything=False
                    ):
                        self._fold(event)
                case _:
                    self._fold(fact)
        return ended

    def checkpoint(self, line: int) -> "Checkpoint":
        memory = json.loads(json.dumps(self.translator.memory()))
        return Checkpoint(line, self.conversation.next_index, memory, self.turns)

    def save(self) -> None:
        self.saved |= {entry.block.id: entry for entry in self.conversation.stored(self.unsaved)}
        self.unsaved.clear()

    def blocks(self) -> list[tuple[int, Block]]:
        held = self.conversation.stored(block.id for block in self.conversation.blocks(10_000)[0])
        return [(entry.index, entry.block) for entry in held]

    def _fold(self, event: Any) -> None:
        if (block_id := self.conversation.apply(event)) is not None:
            self.unsaved[block_id] = None

    def _begin_turn(self) -> None:
        """The user's message is stored with the turn, before the agent hears it: it is not told again."""
        self.turns += 1
        if self.turns > self.begun:
            self.begun = self.turns
            block = UserMessage(id=f"said-{self.turns}", timestamp=AT, content="go on", message_id="m")
            self.saved[block.id] = self.conversation.add(block)


@dataclass(frozen=True)
class Checkpoint:
    line: int
    next_index: int
    memory: dict[str, Any]
    turns: int


@dataclass(frozen=True)
class Death:
    """As shares of the lines: how many were heard, how far it had saved, where the checkpoint was."""

    heard: int
    saved: int
    checkpoint: int


def whole(native: Sequence[dict[str, Any]]) -> list[list[tuple[int, Block]]]:
    """The conversation before the first line and after each, without a death."""
    runtime, seen = Runtime(Conversation(), ClaudeTranslator()), [[]]
    for line in native:
        runtime.hear(line)
        seen.append(runtime.blocks())
    return seen


def live_until(
    native: Sequence[dict[str, Any]], runtime: Runtime, lived: range, death: Death, durable: Checkpoint
) -> Checkpoint:
    """Hear these lines until the death; the checkpoint that is durable then, beside what was saved."""
    saved = min(lived.stop, share(death.saved, native))
    for number in lived:
        ended = runtime.hear(native[number]) and number < lived.stop - 1  # or it died in the turn's end
        if ended or number < saved:
            runtime.save()
        wanted = ended or number < min(saved, share(death.checkpoint, native))
        if wanted and not runtime.conversation.is_open:
            durable = runtime.checkpoint(number + 1)
    return durable


def share(place: int, native: Sequence[dict[str, Any]]) -> int:
    return place * len(native) // PLACES


def taken_up(dead: Runtime, checkpoint: Checkpoint) -> Runtime:
    stored = sorted(dead.saved.values(), key=lambda entry: entry.index)
    return Runtime(
        Conversation(stored, told_from=checkpoint.next_index),
        ClaudeTranslator(checkpoint.memory),
        turns=checkpoint.turns,
        begun=dead.begun,
        saved=dict(dead.saved),
    )


deaths = st.lists(st.builds(Death, places, places, places), min_size=1, max_size=3)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(SCENARIOS), deaths)
@example("budget", [Death(858, 858, 0)])  # in a turn's end: what was closed is stored, the end is not
def test_whenever_it_dies_the_conversation_is_that_of_one_that_never_died(
    scenario: str, deaths: list[Death]
) -> None:
    native = lines(scenario)
    unhurt = whole(native)
    runtime, heard, checkpoint = Runtime(Conversation(), ClaudeTranslator()), 0, Checkpoint(0, 0, {}, 0)
    for death in sorted(deaths, key=lambda death: death.heard):
        lived = range(heard, share(death.heard, native))
        checkpoint = live_until(native, runtime, lived, death, checkpoint)
        runtime, heard = taken_up(runtime, checkpoint), lived.stop
        for number in range(checkpoint.line, heard):
            if runtime.hear(native[number]):  # its end was not durable: now it is
                runtime.save()
                checkpoint = runtime.checkpoint(number + 1)
        runtime.conversation.told_again()
        assert runtime.blocks() == unhurt[heard]
    for number in range(heard, len(native)):
        runtime.hear(native[number])
        assert runtime.blocks() == unhurt[number + 1]
