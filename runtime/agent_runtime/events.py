"""Events: what happened in a session, one value each that nobody changes, one union; and places in the log.

An event is a bare fact. Appending it to the log gives it a position and a time, which makes it a
`LogEntry`. `conversation` folds events; `transport.wire` turns an entry into the envelope that
clients see.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, TypeAdapter

from agent_runtime.blocks import Block
from agent_runtime.frozen import Frozen, Light
from agent_runtime.records import QueuedMessage, RuntimeStatus, Turn, Usage, WorkspaceFile


class EventFields(Frozen):
    """What any event may carry: the turn and the conversation that it belongs to."""

    turn_id: str | None = None
    conversation_id: str | None = None


class SessionStatus(EventFields):
    """The phase or the sandbox changed."""

    type: Literal["session_status"] = "session_status"
    runtime: RuntimeStatus


class TurnStart(EventFields):
    """First event of a turn."""

    type: Literal["turn_start"] = "turn_start"
    turn: Turn


class TurnEnd(EventFields):
    """Exactly one per turn; the turn's blocks, files and transcript are persisted by then."""

    type: Literal["turn_end"] = "turn_end"
    turn: Turn


class BlockStart(EventFields):
    """A block begins; its content may be empty."""

    type: Literal["block_start"] = "block_start"
    block: Block


class Delta(Light, frozen=True, kw_only=True):
    """A piece of a block's content, with the fields of any event. Nearly all events are deltas."""

    type: str
    block_id: str
    delta: str
    turn_id: str | None = None
    conversation_id: str | None = None

    def saying(self, delta: str) -> Self:
        """The same piece with another text."""
        return type(self)(
            type=self.type,
            block_id=self.block_id,
            delta=delta,
            turn_id=self.turn_id,
            conversation_id=self.conversation_id,
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON object of this event, as of `Frozen`."""
        told = {"type": self.type, "blockId": self.block_id, "delta": self.delta}
        if self.turn_id is not None:
            told["turnId"] = self.turn_id
        if self.conversation_id is not None:
            told["conversationId"] = self.conversation_id
        return told


class TextDelta(Delta, frozen=True, kw_only=True):
    """Append `delta` to the block's content."""

    type: Literal["text_delta"] = "text_delta"


class InputDelta(Delta, frozen=True, kw_only=True):
    """A piece of a tool's input as JSON text, for display; `block_complete` has the input."""

    type: Literal["input_delta"] = "input_delta"


class BlockUpdate(EventFields):
    """Status or metadata of a block changed, never its content. `updates` has camelCase keys."""

    type: Literal["block_update"] = "block_update"
    block_id: str
    updates: dict[str, Any]


class BlockComplete(EventFields):
    """The whole, final block; it replaces what was accumulated."""

    type: Literal["block_complete"] = "block_complete"
    block_id: str
    block: Block


class MetadataUpdate(EventFields):
    """Running totals of the session."""

    type: Literal["metadata_update"] = "metadata_update"
    usage: Usage | None = None
    cost_usd: float | None = None
    model: str | None = None
    context_tokens: int | None = None


class FileChanged(EventFields):
    """A file of the workspace changed; text of 64 KiB or less is inline."""

    type: Literal["file_changed"] = "file_changed"
    change: Literal["created", "modified", "deleted"]
    file: WorkspaceFile


class WorkspaceRestored(EventFields):
    """The sandbox was replaced and the files were put back. Said to the agent too."""

    type: Literal["workspace_restored"] = "workspace_restored"
    from_sandbox_id: str | None = None
    restored_files: int
    lost_paths: tuple[str, ...] | None = None
    snapshot_age_ms: int | None = None


class QueueChanged(EventFields):
    """The messages that wait for their turn, in order."""

    type: Literal["queue_changed"] = "queue_changed"
    queue: tuple[QueuedMessage, ...]


class OptionsChanged(EventFields):
    """The session's options are now these."""

    type: Literal["options_changed"] = "options_changed"
    session_options: dict[str, Any]


Event = Annotated[
    SessionStatus
    | TurnStart
    | TurnEnd
    | BlockStart
    | TextDelta
    | InputDelta
    | BlockUpdate
    | BlockComplete
    | MetadataUpdate
    | FileChanged
    | WorkspaceRestored
    | QueueChanged
    | OptionsChanged,
    Field(discriminator="type"),
]

EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Event)
"""Reads any event from its JSON."""

_POSITION = re.compile(r"([A-Za-z0-9_-]{1,64}):(0|[1-9][0-9]{0,17})")


class Position(Light, frozen=True):
    """A place in a session's log: right after the event `seq` of `epoch`; `seq` 0 is the beginning.

    A new epoch means that the log was begun anew, so positions of another epoch say nothing.
    """

    epoch: str
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Position | None:
        """Read `epoch:seq`; None where the text is no position at all."""
        match = _POSITION.fullmatch(text)
        return cls(match[1], int(match[2])) if match else None


class LogEntry(Light, frozen=True):
    """An event in its place. `at` is when it was appended, in UTC."""

    position: Position
    at: datetime
    event: Event


@dataclass(frozen=True, slots=True)
class Replay:
    """All that came after the asked position, in order without holes, up to `head`."""

    entries: tuple[LogEntry, ...]
    head: Position


@dataclass(frozen=True, slots=True)
class Gap:
    """The log does not reach back to the asked position: take a snapshot. `head` is the newest place."""

    head: Position
