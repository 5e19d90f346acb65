"""Blocks: what a reader of a conversation sees, one frozen model per kind, one tagged union.

A block belongs to one conversation of a session: `main`, or a subagent's id. Its id comes from the
agent's own ids, so the same block has the same id live, after a reload, and when the agent's
transcript is parsed again. Blocks are facts; how they change over time is told by `events`, and
`conversation` folds the one into the other.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from pydantic import Field, TypeAdapter

from agent_runtime.frozen import Frozen, Moment

MAIN: Final = "main"
"""The id of a session's main conversation."""


class BlockState(StrEnum):
    """Whether a block is still being written, whole, or was cut off for good."""

    STREAMING = "streaming"
    COMPLETE = "complete"
    ABORTED = "aborted"


class ToolStatus(StrEnum):
    """Where a tool call stands. Everything after `running` is final."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    DENIED = "denied"
    CANCELLED = "cancelled"


class SubagentStatus(StrEnum):
    """Where a subagent stands. Everything after `running` is final."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"


class TextPart(Frozen):
    """A piece of text in what the user sent."""

    type: Literal["text"] = "text"
    text: str


class ImageSource(Frozen):
    """An image's bytes as base64, with their media type (`image/png`, ...)."""

    type: Literal["base64"] = "base64"
    media_type: str = Field(max_length=100)
    data: str


class ImagePart(Frozen):
    """A picture in what the user sent."""

    type: Literal["image"] = "image"
    source: ImageSource


ContentPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
Content = str | tuple[ContentPart, ...]
"""What a user sends: plain text, or parts in order."""


class BlockFields(Frozen):
    """What every block has. `timestamp` is the agent's own where it gives one, else ours (UTC)."""

    id: str
    conversation_id: str = MAIN
    turn_id: str | None = None
    timestamp: Moment
    state: BlockState = BlockState.COMPLETE


class UserMessage(BlockFields):
    """What the user sent. The block's id is its turn's id; `message_id` is the client's own."""

    type: Literal["user_message"] = "user_message"
    content: Content
    message_id: str


class AssistantText(BlockFields):
    """Text of the agent, as Markdown."""

    type: Literal["assistant_text"] = "assistant_text"
    content: str = ""
    model: str | None = None


class Thinking(BlockFields):
    """The agent's reasoning as far as its model shows it."""

    type: Literal["thinking"] = "thinking"
    content: str = ""
    summary: str | None = None
    duration_ms: int | None = None


class ToolUse(BlockFields):
    """A tool call. It always gets exactly one `ToolResult` with its `tool_use_id`."""

    type: Literal["tool_use"] = "tool_use"
    tool_name: str
    tool_use_id: str
    input: dict[str, Any] = Field(default_factory=dict)
    status: ToolStatus = ToolStatus.PENDING
    display_name: str | None = None
    description: str | None = None


class ToolResult(BlockFields):
    """What a tool call gave back: text, or the agent's own list of content parts."""

    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    output: str | list[dict[str, Any]]
    is_error: bool = False
    duration_ms: int | None = None
    truncated: bool | None = None


class Subagent(BlockFields):
    """A child agent as its parent's conversation shows it; its own blocks are in `subagent_id`."""

    type: Literal["subagent"] = "subagent"
    subagent_id: str
    name: str | None = None
    input: dict[str, Any] = Field(default_factory=dict)
    status: SubagentStatus = SubagentStatus.PENDING
    output: str | None = None
    duration_ms: int | None = None
    tool_use_id: str | None = None


class System(BlockFields):
    """Something that happened to the conversation (compaction, a retry, a restored workspace)."""

    type: Literal["system"] = "system"
    subtype: str
    message: str
    metadata: dict[str, Any] | None = None


class ErrorBlock(BlockFields):
    """An error that the reader should see; `code` is one of the wire's stable codes."""

    type: Literal["error"] = "error"
    message: str
    code: str
    retryable: bool = False


Block = Annotated[
    UserMessage | AssistantText | Thinking | ToolUse | ToolResult | Subagent | System | ErrorBlock,
    Field(discriminator="type"),
]

BLOCK: Final[TypeAdapter[Block]] = TypeAdapter(Block)
"""Reads any block from its JSON: `BLOCK.validate_python(obj)`, `BLOCK.validate_json(data)`."""

TextBlock = AssistantText | Thinking
"""The kinds whose content grows by `text_delta`."""
