"""Orders: what a message asks of the scripted agent, and the blocks that must come of it. Pure.

The text of a message is the whole piece (`drivers.scripted`), so everything that the agent says is known
before it is said; what a completed turn has to hold is read from the piece that was sent.
"""

import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from agent_runtime.blocks import (
    AssistantText,
    Block,
    BlockState,
    Subagent,
    System,
    Thinking,
    ToolResult,
    ToolUse,
)
from agent_runtime.events import BlockComplete, BlockStart, BlockUpdate, MetadataUpdate, TextDelta
from agent_runtime.frozen import Frozen
from agent_runtime.records import TurnStatus, Usage
from agent_runtime.reports import (
    AgentIdentity,
    AgentTookIn,
    AgentTurnEnded,
    Translated,
)
from agent_runtime.testing.scripted_agent import line_of

AGENT_ID = "chaos"
HEARD = {
    "n": "$PLACE",
    "turn": "$MESSAGE",
    "heard": "$HEARD",
    "notes": "$NOTES",
    "agent": "$AGENT",
    "recalled": "$RECALLED",
    "mood": "$OPTION:mood",
}
"""The entry that an agent remembers when it hears a message: what it heard, and what it knew then."""
AT = datetime(2026, 1, 1, tzinfo=UTC)
Step = dict[str, Any]


class Written(Frozen):
    """A file as an order writes it."""

    path: str
    text: str


@dataclass(frozen=True)
class Order:
    """One message. `fate` is how its agent ends it: `rests`, `exits` or `hangs`."""

    message_id: str
    text: str
    blocks: tuple[dict[str, Any], ...]
    files: tuple[Written, ...]
    entries: int
    fate: str


class Composer:
    """Puts steps in a row; `blocks` are the final forms, in order of appearance."""

    def __init__(self, name: str, dice: random.Random, pause_s: float) -> None:
        self.steps: list[Step] = []
        self.blocks: dict[str, dict[str, Any]] = {}
        self.files: list[Written] = []
        self.entries = 0
        self._name = name
        self._dice = dice
        self._pause_s = pause_s
        self._count = 0

    def compose(self, parts: int) -> None:
        self._say(AgentIdentity(AGENT_ID))
        who = System(id=f"{self._name}-who", subtype="agent", message="$AGENT", timestamp=AT)
        self._whole(who)
        self.steps.append({"remember": [HEARD]})
        self.entries += 1
        for _ in range(parts):
            kinds = [self._text, self._text, self._thought, self._tool, self._file, self._subagent]
            self._dice.choice(kinds)()
            if self._dice.random() < 0.5:
                self._take_in()
            if self._dice.random() < 0.5:
                self._remember()
        self._remember()
        if self._dice.random() < 0.5:
            self._take_in()

    def _next(self, kind: str) -> str:
        self._count += 1
        return f"{self._name}-{kind}{self._count}"

    def _say(self, *told: Translated) -> None:
        self.steps += [{"line": line_of(each)} for each in told]

    def _rest(self) -> None:
        if self._dice.random() < 0.7:
            self.steps.append({"pause": round(self._dice.random() * 2 * self._pause_s, 4)})

    def _whole(self, block: Block) -> None:
        started = block.model_copy(update={"state": BlockState.STREAMING})
        told = {"conversation_id": block.conversation_id}
        self._say(BlockStart(block=started, **told), BlockComplete(block_id=block.id, block=block, **told))
        self.blocks[block.id] = block.to_json()

    def _updated(self, block: Block, **updates: Any) -> None:
        self._say(BlockUpdate(block_id=block.id, updates=updates, conversation_id=block.conversation_id))
        self.blocks[block.id] |= updates

    def _streamed(self, block: AssistantText | Thinking) -> None:
        words = [f"{self._dice.randrange(10_000)} " for _ in range(self._dice.randrange(1, 30))]
        self._say(BlockStart(block=block.model_copy(update={"state": BlockState.STREAMING})))
        for word in words:
            self._say(TextDelta(block_id=block.id, delta=word))
            self._rest()
        whole = block.model_copy(update={"content": "".join(words)})
        self._say(BlockComplete(block_id=block.id, block=whole))
        self.blocks[block.id] = whole.to_json()

    def _text(self) -> None:
        self._streamed(AssistantText(id=self._next("text"), timestamp=AT))

    def _thought(self) -> None:
        self._streamed(Thinking(id=self._next("thought"), timestamp=AT))

    def _tool(self, conversation: str = "main") -> None:
        name = self._next("tool")
        call = f"call-{name}"
        use = ToolUse(
            id=name,
            conversation_id=conversation,
            timestamp=AT,
            tool_name="Bash",
            tool_use_id=call,
            input={"n": 1},
        )
        self._whole(use)
        self._rest()
        answer = ToolResult(
            id=f"{call}:result", conversation_id=conversation, timestamp=AT, tool_use_id=call, output="done"
        )
        self._whole(answer)
        self._updated(use, status="success")

    def _file(self) -> None:
        path = self._dice.choice(["shared.txt", f"{self._next('file')}.txt"])
        size = self._dice.choice([10, 1_000, 90_000])
        text = f"{self._name} {self._count} ".ljust(size, "x")
        self.steps.append({"write": path, "text": text})
        self.files.append(Written(path=path, text=text))

    def _subagent(self) -> None:
        name = self._next("sub")
        call = f"call-{name}"
        use = ToolUse(id=f"{name}-use", timestamp=AT, tool_name="Task", tool_use_id=call)
        child = Subagent(id=f"{name}-block", subagent_id=name, timestamp=AT, tool_use_id=call)
        self._whole(use)
        self._whole(child)
        self._updated(child, status="running")
        self._tool(conversation=name)
        self._updated(child, status="success", output="well")
        self._whole(ToolResult(id=f"{call}:result", timestamp=AT, tool_use_id=call, output="well"))
        self._updated(use, status="success")

    def _take_in(self) -> None:
        """What was said meanwhile becomes part of this turn."""
        self.steps.append({"takeIn": HEARD | {"takenIn": True}, "line": line_of(AgentTookIn("$MESSAGE"))})

    def _remember(self) -> None:
        count = self._dice.randrange(1, 4)
        self.steps.append({"remember": [{"n": "$PLACE", "turn": "$MESSAGE"}] * count})
        self.entries += count


def stream(message_id: str, *, blocks: int, pieces: int, piece_bytes: int, pause_s: float) -> str:
    """The text of a message that asks for much text; what is streamed needs not be sent before."""
    steps: list[Step] = []
    for number in range(blocks):
        block = AssistantText(id=f"{message_id}-{number}", timestamp=AT, state=BlockState.STREAMING)
        steps.append({"line": line_of(BlockStart(block=block))})
        delta = line_of(TextDelta(block_id=block.id, delta=f"$TEXT:{piece_bytes}"))
        steps.append({"line": delta, "times": pieces, "pause": pause_s})
        content = f"$TEXT:{pieces * piece_bytes}"
        whole = block.model_copy(update={"state": BlockState.COMPLETE, "content": content})
        steps.append({"line": line_of(BlockComplete(block_id=block.id, block=whole))})
    piece = {"steps": steps, "end": _ended("completed"), "interrupted": _ended("cancelled")}
    return "play " + json.dumps(piece)


def order(message_id: str, dice: random.Random, *, parts: int, pause_s: float, fate: str = "rests") -> Order:
    """Compose one."""
    composer = Composer(message_id, dice, pause_s)
    composer.compose(parts)
    if fate == "exits":
        at = dice.randrange(len(composer.steps))
        composer.steps.insert(at, {"exit": 3})
    if fate == "hangs":
        composer.steps.append({"hang": True})
    composer._say(MetadataUpdate(usage=Usage(output_tokens=len(composer.steps))))
    piece = {"steps": composer.steps, "end": _ended("completed"), "interrupted": _ended("cancelled")}
    return Order(
        message_id,
        "play " + json.dumps(piece),
        tuple(composer.blocks.values()),
        tuple(composer.files),
        composer.entries,
        fate,
    )


def _ended(status: str) -> Step:
    return line_of(AgentTurnEnded(status=TurnStatus(status))) | {"messageIds": "$MESSAGES"}
