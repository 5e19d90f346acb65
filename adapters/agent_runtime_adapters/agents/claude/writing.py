"""Writing: the events that one native line becomes, in order.

A `Writing` lives as long as the reading of one line. It stamps turn and conversation on everything,
and keeps the rule that a block which arrives whole is started and completed at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from agent_runtime.blocks import AssistantText, Block, BlockState, Thinking, ToolResult, ToolStatus, ToolUse
from agent_runtime.events import BlockComplete, BlockStart, BlockUpdate
from agent_runtime.reports import Translated


@dataclass(slots=True)
class Writing:
    """Collects in `out` what a line means. `at` is the line's time, `turn_id` the turn it belongs to."""

    turn_id: str | None
    at: datetime
    out: list[Translated] = field(default_factory=list)

    def start(self, block: Block) -> None:
        """The block begins; it is shown as streaming, whatever its state will be."""
        opened = block.model_copy(update={"state": BlockState.STREAMING})
        self.out.append(BlockStart(block=opened, turn_id=self.turn_id, conversation_id=block.conversation_id))

    def complete(self, block: Block) -> None:
        """The block is whole."""
        self.out.append(
            BlockComplete(
                block_id=block.id, block=block, turn_id=self.turn_id, conversation_id=block.conversation_id
            )
        )

    def whole(self, block: Block) -> None:
        """A block that was never streamed: it begins empty and is complete."""
        self.start(_emptied(block))
        self.complete(block)

    def update(self, block_id: str, conversation_id: str, updates: dict[str, Any]) -> None:
        """Status or metadata of a block changed; keys are camelCase."""
        self.out.append(
            BlockUpdate(
                block_id=block_id, updates=updates, turn_id=self.turn_id, conversation_id=conversation_id
            )
        )


def _emptied(block: Block) -> Block:
    """The same block before it had content, so that nothing large is sent twice."""
    if isinstance(block, AssistantText | Thinking):
        return block.model_copy(update={"content": ""})
    if isinstance(block, ToolUse):
        return block.model_copy(update={"input": {}, "status": ToolStatus.PENDING})
    if isinstance(block, ToolResult):
        return block.model_copy(update={"output": ""})
    return block
