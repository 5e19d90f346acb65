"""Streams: the messages that are being written at this moment, token by token.

A streamed block is provisional. The agent's whole `assistant` frame is the truth and completes it;
what is still open when its message stops was abandoned (the request failed and is tried again, or
the user interrupted) and is completed as aborted, with the text that was seen. Which native frames
exist beside the streamed ones is in `translate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from agent_runtime.blocks import MAIN, AssistantText, BlockState, Thinking, ToolStatus, ToolUse
from agent_runtime.events import InputDelta, TextDelta
from agent_runtime.frozen import text_of
from agent_runtime.reports import Translated
from agent_runtime_adapters.agents.claude.lines import MAX_TEXT, Json, count, ident, mapping
from agent_runtime_adapters.agents.claude.memory import Memory, MessageMemory
from agent_runtime_adapters.agents.claude.writing import Writing

_MAX_OPEN: Final = 20
"""Open blocks of one message. A real one has one."""

Streamed = AssistantText | Thinking | ToolUse

_PIECES: Final[dict[str, tuple[str, str, type[TextDelta | InputDelta]]]] = {
    "assistant_text": ("text_delta", "text", TextDelta),
    "thinking": ("thinking_delta", "thinking", TextDelta),
    "tool_use": ("input_json_delta", "partial_json", InputDelta),
}
"""Kind of block to that of the deltas which grow it, the field with their text, and what they become;
signatures are nobody's business."""


class _Open:
    """A block that began and is not whole; `pieces` is its text so far, at most `MAX_TEXT`."""

    __slots__ = ("block", "kind", "name", "piece_type", "pieces", "size")

    def __init__(self, block: Streamed) -> None:
        self.block = block
        self.kind, self.name, self.piece_type = _PIECES[block.type]
        self.pieces: list[str] = []
        self.size = 0


@dataclass(slots=True)
class _Message:
    """A message that is being streamed; `last` is the index of the block that began last."""

    message_id: str
    model: str | None
    open: dict[int, _Open] = field(default_factory=dict)
    last: int = 0


class Streams:
    """Reads `stream_event` lines of the main conversation; subagents are never streamed.

    `model` and `context_tokens` are what the newest message told; None before there was one.
    """

    def __init__(self, memory: Memory) -> None:
        self.model = memory.model
        self.context_tokens = memory.context_tokens
        self._message: _Message | None = None
        if (kept := memory.message) is not None:
            self._message = _Message(kept.message_id, kept.model, last=kept.last)

    def memory(self) -> MessageMemory | None:
        """The message that is being streamed, between two of its blocks; None where there is none.

        One with an open block is not told of: whoever goes on takes it up as far as it shows itself.
        """
        message = self._message
        if message is None or message.open:
            return None
        return MessageMemory(message_id=message.message_id, model=message.model, last=message.last)

    def delta(self, line: Json, event: Json, turn_id: str | None) -> Translated | None:
        """A piece of a block: the hot path, some hundred times for every other line."""
        message, index, delta = self._message, event.get("index"), event.get("delta")
        if message is None or not isinstance(index, int) or not isinstance(delta, dict):
            return None
        opened = message.open.get(index)
        if opened is None or line.get("parent_tool_use_id") is not None:
            return None
        piece = delta.get(opened.name)
        if delta.get("type") != opened.kind or not isinstance(piece, str) or not piece:
            return None
        opened.size += len(piece)
        if opened.size > MAX_TEXT:
            return None
        piece = text_of(piece)
        if opened.piece_type is TextDelta:
            opened.pieces.append(piece)
        return opened.piece_type(turn_id=turn_id, conversation_id=MAIN, block_id=opened.block.id, delta=piece)

    def resumed(self, line: Json, event: Json, writing: Writing) -> None:
        """Take up a message whose beginning was read by an earlier translator, as far as it shows itself."""
        message_id, index = ident(line.get("api_message_id")), count(event.get("index"))
        if self._message is not None or message_id is None or index is None:
            return
        self._message = _Message(message_id, self.model, last=index)
        match mapping(event.get("delta")).get("type"):
            case "text_delta":
                self._begin(index, {"type": "text"}, writing)
            case "thinking_delta":
                self._begin(index, {"type": "thinking"}, writing)

    def event(self, event: Json, writing: Writing) -> None:
        """A message or a block begins, ends or tells its usage."""
        match event.get("type"):
            case "message_start":
                self._start(mapping(event.get("message")), writing)
            case "content_block_start":
                if (index := count(event.get("index"))) is not None:
                    self._begin(index, mapping(event.get("content_block")), writing)
            case "message_delta":
                self.used(mapping(event.get("usage")))
            case "message_stop":
                self.abandon(writing)

    def take(self, message_id: str, content: Json) -> tuple[int, Streamed | None] | None:
        """Where a whole block of the streamed message belongs, and its open block if there is one.

        None: this message is not being streamed.
        """
        message = self._message
        if message is None or message.message_id != message_id:
            return None
        for index, opened in message.open.items():
            if _same(opened.block, content):
                del message.open[index]
                return index, opened.block
        return message.last, None

    def used(self, usage: Json) -> None:
        """Remember how full the context is: what was read plus what was written."""
        names = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens")
        tokens = [count(usage.get(name)) for name in names]
        if tokens[0] is not None:
            self.context_tokens = sum(number or 0 for number in tokens)

    def abandon(self, writing: Writing) -> None:
        """The message is over: what is still open never became whole."""
        message, self._message = self._message, None
        for opened in message.open.values() if message else ():
            changes: dict[str, Any] = {"state": BlockState.ABORTED}
            if isinstance(opened.block, ToolUse):
                changes["status"] = ToolStatus.CANCELLED
            else:
                changes["content"] = "".join(opened.pieces)
            writing.complete(opened.block.model_copy(update=changes))

    def _start(self, message: Json, writing: Writing) -> None:
        self.abandon(writing)
        message_id, model = ident(message.get("id")), ident(message.get("model"))
        if message_id is not None:
            self.model = model or self.model
            self._message = _Message(message_id, model)

    def _begin(self, index: int, content: Json, writing: Writing) -> None:
        message = self._message
        if message is None or index in message.open or len(message.open) >= _MAX_OPEN:
            return
        message.last = index
        block = _first(message, index, content, writing)
        if block is not None:
            message.open[index] = _Open(block)
            writing.start(block)


def _first(message: _Message, index: int, content: Json, writing: Writing) -> Streamed | None:
    """The empty block that a content block begins with; None for kinds that no reader sees."""
    block_id = f"{message.message_id}:{index}"
    match content.get("type"):
        case "text":
            return AssistantText(
                id=block_id, turn_id=writing.turn_id, timestamp=writing.at, model=message.model
            )
        case "thinking":
            return Thinking(id=block_id, turn_id=writing.turn_id, timestamp=writing.at)
        case "tool_use":
            tool_use_id, name = ident(content.get("id")), ident(content.get("name"))
            if tool_use_id is None or name is None:
                return None
            return ToolUse(
                id=tool_use_id,
                tool_use_id=tool_use_id,
                tool_name=name,
                turn_id=writing.turn_id,
                timestamp=writing.at,
            )
    return None


def _same(block: Streamed, content: Json) -> bool:
    """Whether a whole content block is what this open block was to become."""
    match block:
        case AssistantText():
            return content.get("type") == "text"
        case Thinking():
            return content.get("type") == "thinking"
        case ToolUse():
            return content.get("type") == "tool_use" and content.get("id") == block.tool_use_id
