"""Conversation: a session's events folded into its blocks. Pure: no loop, clock, chance or I/O.

The same fold serves live events, replays and what is read back from the store, so all three end in
the same blocks. It holds the newest blocks of all of a session's conversations (main and
subagents) in one order; older ones are only in the store. Who appends events is `recorder`; what a
joining viewer gets is `Snapshot`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from agent_runtime.blocks import (
    BLOCK,
    MAIN,
    Block,
    BlockState,
    Subagent,
    SubagentStatus,
    TextBlock,
    ToolResult,
    ToolStatus,
    ToolUse,
)
from agent_runtime.events import BlockComplete, BlockStart, BlockUpdate, Event, Position, TextDelta
from agent_runtime.ports import StoredBlock
from agent_runtime.records import ClientSession, QueuedMessage, WorkspaceFile

_NEVER_UPDATED: Final = frozenset({"id", "type", "content", "conversationId", "toolUseId"})
_LIVE_TOOL: Final = frozenset({ToolStatus.PENDING, ToolStatus.RUNNING})
_LIVE_SUBAGENT: Final = frozenset({SubagentStatus.PENDING, SubagentStatus.RUNNING})


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A session as of `position`: what a viewer needs who cannot be given a replay.

    `blocks` are the newest page in order, open ones with their content so far; `has_more` tells of
    older ones; `subagents` are all that are known, wherever their blocks are.
    """

    session: ClientSession
    position: Position
    blocks: tuple[Block, ...]
    has_more: bool
    subagents: tuple[Subagent, ...]
    queue: tuple[QueuedMessage, ...]
    files: tuple[WorkspaceFile, ...]


@dataclass(slots=True)
class _Held:
    """A block in its place; text that arrived since it was last made whole is in `pieces`."""

    index: int
    block: Block
    pieces: list[str] = field(default_factory=list)

    def whole(self) -> Block:
        if self.pieces and isinstance(self.block, TextBlock):
            content = self.block.content + "".join(self.pieces)
            self.block = self.block.model_copy(update={"content": content})
            self.pieces.clear()
        return self.block


class Conversation:
    """The newest blocks of a session, open and closed, in the order in which they first appeared.

    Args:
        stored: blocks read back from the store, in rising index.
        has_older: whether the store holds blocks before these.
        told_from: set while events are told again that were folded before: from this index on, an
            index that no stored block has belongs to one that was not saved; see `told_again`.
    """

    def __init__(
        self, stored: Sequence[StoredBlock] = (), *, has_older: bool = False, told_from: int | None = None
    ) -> None:
        self._held = {entry.block.id: _Held(entry.index, entry.block) for entry in stored}
        self._next_index = stored[-1].index + 1 if stored else 0
        self._has_older = has_older
        taken = {entry.index for entry in stored}
        first = self._next_index if told_from is None else told_from
        self._gaps = deque(index for index in range(first, self._next_index) if index not in taken)
        self._open: dict[str, None] = {}
        self._unanswered: dict[str, str] = {}
        self._answers: dict[str, str] = {}
        self._answered_before: set[str] = set()
        self._subagents: dict[str, None] = {}
        for entry in stored:
            self._note(entry.block)
        # Answers that are told again are the agent's; what is left of these was ours, when a turn was ended.
        if told_from is not None:
            self._answered_before.update(self._answers)

    def __contains__(self, block_id: str) -> bool:
        return block_id in self._held

    def apply(self, event: Event) -> str | None:
        """Fold one event in. Returns the id of a block whose stored form is now out of date, or None.

        Deltas do not count: a block is stored when it is complete, and again when it is updated.
        Never raises: events about blocks that are not held, deltas for a block that is not open,
        updates that make no block and blocks that take another's id are ignored.
        """
        match event:
            case TextDelta():
                self._grow(event)
                return None
            case BlockStart():
                self._begin(event.block)
                return None
            case BlockComplete():
                return event.block.id if self._begin(event.block) else None
            case BlockUpdate():
                return self._update(event)
            case _:
                return None

    def blocks(self, limit: int) -> tuple[tuple[Block, ...], bool]:
        """The newest `limit` blocks in order, and whether there are older ones anywhere."""
        held = list(self._held.values())
        page = held[-limit:] if limit else []
        return tuple(entry.whole() for entry in page), self._has_older or len(held) > len(page)

    def subagents(self) -> tuple[Subagent, ...]:
        """All subagent blocks that are held, in order."""
        found = (self._held[block_id].block for block_id in self._subagents if block_id in self._held)
        return tuple(block for block in found if isinstance(block, Subagent))

    def stored(self, block_ids: Iterable[str]) -> tuple[StoredBlock, ...]:
        """These blocks as they are to be saved; ids that are not held are left out."""
        held = (self._held[block_id] for block_id in block_ids if block_id in self._held)
        return tuple(StoredBlock(entry.index, entry.whole()) for entry in held)

    def add(self, block: Block) -> StoredBlock:
        """Give a block its place ahead of the events that will tell of it."""
        self._begin(block)
        return self.stored((block.id,))[0]

    def close_open(self, *, at: datetime, turn_id: str | None, reason: str, everything: bool) -> list[Event]:
        """The events that leave nothing open: blocks aborted, tools answered, subagents cancelled.

        With `everything` false, subagents that run in the background (their tool call was answered)
        go on; only the main conversation and what it waits for is closed. Nothing is applied here.
        """
        going_on = set() if everything else self._background()
        ended: list[Event] = []
        for block_id in self._open:
            block = self._held[block_id].whole()
            if block.conversation_id not in going_on:
                ended.append(_completed(block.model_copy(update={"state": BlockState.ABORTED}), turn_id))
        for block_id in self._unanswered.values():
            block = self._held[block_id].whole()
            if isinstance(block, ToolUse) and block.conversation_id not in going_on:
                ended += _cancelled_tool(block, at, turn_id, reason)
        for block in self._cut_off():
            if block.conversation_id not in going_on:
                ended.append(_updated(block, {"status": ToolStatus.CANCELLED.value}, turn_id))
        for subagent in self.subagents():
            if subagent.status in _LIVE_SUBAGENT and subagent.subagent_id not in going_on:
                ended.append(_updated(subagent, {"status": SubagentStatus.CANCELLED.value}, turn_id))
        return ended

    def _cut_off(self) -> list[ToolUse]:
        """Tool calls that were told again as running, and that we had answered when their turn was ended."""
        if not self._answered_before:
            return []
        held = (entry.block for entry in self._held.values())
        calls = (block for block in held if isinstance(block, ToolUse))
        return [c for c in calls if c.tool_use_id in self._answered_before and c.status in _LIVE_TOOL]

    @property
    def next_index(self) -> int:
        """The index that the next new block gets."""
        return self._gaps[0] if self._gaps else self._next_index

    @property
    def live_index(self) -> int | None:
        """The index of the oldest block that something is still to come of; None where there is none."""
        living = (each.id for each in self.subagents() if each.status in _LIVE_SUBAGENT)
        waiting = (*self._open, *self._unanswered.values(), *living)
        return min((self._held[block_id].index for block_id in waiting), default=None)

    @property
    def is_open(self) -> bool:
        """Whether any block is in the making."""
        return bool(self._open)

    def told_again(self) -> None:
        """All that was folded before has been told again: blocks are in their order of appearance."""
        self._gaps.clear()
        self._held = dict(sorted(self._held.items(), key=lambda item: item[1].index))

    def trim(self, keep: int, *, unsaved: Collection[str]) -> None:
        """Let go of the oldest blocks beyond `keep` that are stored and that nothing waits for.

        Subagents stay: a snapshot names them all.
        """
        surplus = len(self._held) - keep
        if surplus <= 0:
            return
        waiting = self._open.keys() | set(self._unanswered.values()) | self._subagents.keys()
        for block_id in list(self._held)[:surplus]:
            if block_id not in waiting and block_id not in unsaved:
                self._forget(self._held.pop(block_id).block)
                self._has_older = True

    def _forget(self, block: Block) -> None:
        if isinstance(block, ToolResult) and self._answers.get(block.tool_use_id) == block.id:
            del self._answers[block.tool_use_id]

    def _begin(self, block: Block) -> bool:
        held = self._held.get(block.id)
        if held is None:
            self._held[block.id] = _Held(self._take_index(), block)
        elif not _is_same(held.block, block):
            return False
        else:
            held.block = block
            held.pieces.clear()
        self._note(block)
        return True

    def _take_index(self) -> int:
        """The next free place: first those that blocks had which were never saved, in their order."""
        if self._gaps:
            return self._gaps.popleft()
        self._next_index += 1
        return self._next_index - 1

    def _note(self, block: Block) -> None:
        if block.state is BlockState.STREAMING:
            self._open[block.id] = None
        else:
            self._open.pop(block.id, None)
        match block:
            case ToolUse():
                if block.tool_use_id not in self._answers:
                    self._unanswered[block.tool_use_id] = block.id
            case ToolResult():
                self._answers[block.tool_use_id] = block.id
                self._answered_before.discard(block.tool_use_id)
                self._unanswered.pop(block.tool_use_id, None)
            case Subagent():
                self._subagents[block.id] = None

    def _grow(self, event: TextDelta) -> None:
        held = self._held[event.block_id] if event.block_id in self._open else None
        if held is not None and isinstance(held.block, TextBlock):
            held.pieces.append(event.delta)

    def _update(self, event: BlockUpdate) -> str | None:
        held = self._held.get(event.block_id)
        if held is None:
            return None
        changes = {name: value for name, value in event.updates.items() if name not in _NEVER_UPDATED}
        try:
            held.block = BLOCK.validate_python({**held.whole().to_json(), **changes})
        except ValueError:
            return None
        self._note(held.block)
        return None if held.block.state is BlockState.STREAMING else event.block_id

    def _background(self) -> set[str]:
        """Conversations of living subagents whose tool call has its answer already, and below them."""
        found = {
            subagent.subagent_id
            for subagent in self.subagents()
            if subagent.status in _LIVE_SUBAGENT and subagent.tool_use_id not in self._unanswered
        }
        for subagent in self.subagents():  # children follow their parents in order
            if subagent.conversation_id in found:
                found.add(subagent.subagent_id)
        return found - {MAIN}


def _is_same(one: Block, other: Block) -> bool:
    """Whether a block can have become the other: its kind and its tool call never change."""
    if isinstance(one, ToolUse | ToolResult) and isinstance(other, ToolUse | ToolResult):
        return one.type == other.type and one.tool_use_id == other.tool_use_id
    return one.type == other.type


def merge_deltas(events: Sequence[Event]) -> list[Event]:
    """Join neighbouring text deltas of one block, so that what arrived at once is one event.

    Texts are joined once for all of them: piece by piece took time that grew with their square.
    """
    if len(events) <= 1:  # nearly always, where a model speaks no faster than it is heard
        return list(events)
    merged: list[Event] = []
    pieces: list[str] = []
    last: Event | None = None
    for event in events:
        if isinstance(event, TextDelta) and isinstance(last, TextDelta) and event.block_id == last.block_id:
            pieces.append(event.delta)
            continue
        if len(pieces) > 1 and isinstance(last, TextDelta):
            merged[-1] = last.saying("".join(pieces))
        merged.append(event)
        pieces, last = [event.delta] if isinstance(event, TextDelta) else [], event
    if len(pieces) > 1 and isinstance(last, TextDelta):
        merged[-1] = last.saying("".join(pieces))
    return merged


def _completed(block: Block, turn_id: str | None) -> BlockComplete:
    return BlockComplete(
        block_id=block.id, block=block, turn_id=turn_id, conversation_id=block.conversation_id
    )


def _updated(block: Block, updates: dict[str, Any], turn_id: str | None) -> BlockUpdate:
    return BlockUpdate(
        block_id=block.id, updates=updates, turn_id=turn_id, conversation_id=block.conversation_id
    )


def _cancelled_tool(block: ToolUse, at: datetime, turn_id: str | None, reason: str) -> list[Event]:
    """A tool call that will never be answered gets its one result now."""
    result = ToolResult(
        id=f"{block.tool_use_id}:result",
        conversation_id=block.conversation_id,
        turn_id=turn_id,
        timestamp=at,
        tool_use_id=block.tool_use_id,
        output=reason,
        is_error=True,
    )
    start = BlockStart(
        block=result.model_copy(update={"state": BlockState.STREAMING}),
        turn_id=turn_id,
        conversation_id=block.conversation_id,
    )
    return [
        _updated(block, {"status": ToolStatus.CANCELLED.value}, turn_id),
        start,
        _completed(result, turn_id),
    ]
