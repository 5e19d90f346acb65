"""Translate: the Claude agent's native lines as events. Pure: no clock, no I/O, no chance.

A line is one JSON object of the agent's standard output, or the same thing made of a transcript
line by `transcript`; both take the same way, so that live equals rest. Here is which line goes
where; `streams` knows messages in the making, `tools`, `subagents` and `outcomes` their parts, and
`lines` reads values that may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from agent_runtime.blocks import (
    MAIN,
    AssistantText,
    BlockState,
    ErrorBlock,
    Thinking,
    UserMessage,
)
from agent_runtime.records import TurnStatus
from agent_runtime.reports import AgentIdentity, AgentTurnBegan, Translated
from agent_runtime_adapters.agents.claude import notices
from agent_runtime_adapters.agents.claude.lines import (
    Json,
    count,
    ident,
    mapping,
    moment,
    objects,
    text,
)
from agent_runtime_adapters.agents.claude.memory import (
    MAX_CONVERSATIONS,
    MAX_ERROR,
    CountMemory,
    Memory,
    read,
)
from agent_runtime_adapters.agents.claude.messages import Messages
from agent_runtime_adapters.agents.claude.outcomes import model_error, totals, turn_ended
from agent_runtime_adapters.agents.claude.streams import Streamed, Streams
from agent_runtime_adapters.agents.claude.subagents import Subagents
from agent_runtime_adapters.agents.claude.tools import tool_result, tool_use
from agent_runtime_adapters.agents.claude.writing import Writing


class ClaudeTranslator:
    """Reads one agent process's lines in order; see `ports.Translator` for the law it keeps."""

    def __init__(self, memory: Mapping[str, Any] | None = None) -> None:
        known = read(memory)
        self._streams = Streams(known)
        self._subagents = Subagents(known)
        self._messages = Messages(known)
        self.at_work = known.at_work
        self._session_id = known.session_id
        self._error = known.error
        self._counted = {kept.conversation_id: (kept.message_id, kept.blocks) for kept in known.counted}

    def memory(self) -> dict[str, Any]:
        """What is known between two blocks: plain JSON of some KiB, for another translator to go on with."""
        counted = [
            CountMemory(conversation_id=conversation_id, message_id=message_id, blocks=blocks)
            for conversation_id, (message_id, blocks) in self._counted.items()
        ]
        messages, in_turn = self._messages.memory()
        return Memory(
            messages=messages,
            in_turn=in_turn,
            at_work=self.at_work,
            session_id=self._session_id,
            error=self._error,
            model=self._streams.model,
            context_tokens=self._streams.context_tokens,
            message=self._streams.memory(),
            counted=counted,
            children=self._subagents.memory(),
        ).to_json()

    def translate(
        self, line: Mapping[str, Any], *, turn_id: str | None, at: datetime
    ) -> Sequence[Translated]:
        """What a native line means; nothing where it makes no sense. Never raises."""
        kind = line.get("type")
        event = line.get("event") if kind == "stream_event" else None
        if isinstance(event, dict) and event.get("type") == "content_block_delta":
            delta = self._streams.delta(line, event, turn_id)
            if delta is not None:
                return (delta,)
        writing = Writing(turn_id, moment(line.get("timestamp"), at))
        try:
            self._read(kind, line, writing)
        except (ValueError, RecursionError):  # pydantic refused what the careful readers let through
            return ()
        return writing.out

    def _read(self, kind: object, line: Json, writing: Writing) -> None:
        match kind:
            case "stream_event":
                self._streamed(line, mapping(line.get("event")), writing)
            case "assistant":
                self._assistant(line, writing)
            case "user":
                self._user(line, writing)
            case "system":
                self._system(line, writing)
            case "result":
                self._result(line, writing)
            case "command_lifecycle":
                self._messages.moved(line, writing)
            case "conversation_reset":
                self._streams.context_tokens = None
                notices.cleared(line, writing)

    def _streamed(self, line: Json, event: Json, writing: Writing) -> None:
        if line.get("parent_tool_use_id") is not None:
            return
        if event.get("type") == "content_block_delta":
            self._streams.resumed(line, event, writing)
            if delta := self._streams.delta(line, event, writing.turn_id):
                writing.out.append(delta)
        else:
            self._streams.event(event, writing)

    def _assistant(self, line: Json, writing: Writing) -> None:
        conversation_id, message = self._subagents.conversation(line), mapping(line.get("message"))
        if conversation_id is None:
            return
        contents = objects(message.get("content"))
        if line.get("error") is not None:
            self._failed(line, message, conversation_id, writing)
        elif "local_command_source" in line:
            notices.local_output(line, text(line.get("local_command_source")), writing)
        elif (message_id := ident(message.get("id"))) is not None:
            if conversation_id == MAIN and message.get("stop_reason") is not None:
                self._streams.used(mapping(message.get("usage")))
            for content in contents:
                self._content(line, content, message_id, conversation_id, writing)

    def _content(
        self, line: Json, content: Json, message_id: str, conversation_id: str, writing: Writing
    ) -> None:
        """One content block of a message, which is whole now."""
        index, opened = self._place(line, content, message_id, conversation_id)
        block = self._block(line, content, f"{message_id}:{index}", conversation_id, writing)
        if block is None:
            return
        if line.get("aborted") is True:
            block = block.model_copy(update={"state": BlockState.ABORTED})
        if isinstance(block, AssistantText):
            self._subagents.said(conversation_id, block.content)
        if opened is None:
            writing.whole(block)
        else:
            writing.complete(block.model_copy(update={"id": opened.id, "timestamp": opened.timestamp}))

    def _block(
        self, line: Json, content: Json, block_id: str, conversation_id: str, writing: Writing
    ) -> Streamed | None:
        match content.get("type"):
            case "text":
                return AssistantText(
                    id=block_id,
                    conversation_id=conversation_id,
                    turn_id=writing.turn_id,
                    timestamp=writing.at,
                    content=text(content.get("text")),
                    model=ident(mapping(line.get("message")).get("model")),
                )
            case "thinking":
                return Thinking(
                    id=block_id,
                    conversation_id=conversation_id,
                    turn_id=writing.turn_id,
                    timestamp=writing.at,
                    content=text(content.get("thinking")),
                    duration_ms=count(line.get("thinking_duration_ms")),
                )
            case "tool_use":
                return tool_use(line, content, conversation_id, writing)
        return None

    def _place(
        self, line: Json, content: Json, message_id: str, conversation_id: str
    ) -> tuple[int, Streamed | None]:
        """The block's index within its message, and its open block where it was streamed.

        A line holds one block of a message. Where nothing tells the index (a message that was not
        streamed), blocks are counted: they come in order and none is left out.
        """
        if conversation_id == MAIN and (taken := self._streams.take(message_id, content)) is not None:
            return taken
        told = count(line.get("api_block_index"))
        counted = self._counted.pop(conversation_id, ("", 0))
        index = counted[1] if counted[0] == message_id else 0
        while len(self._counted) >= MAX_CONVERSATIONS:
            del self._counted[next(iter(self._counted))]
        self._counted[conversation_id] = (message_id, index + 1)
        return (index if told is None else told), None

    def _user(self, line: Json, writing: Writing) -> None:
        conversation_id = self._subagents.conversation(line)
        content = mapping(line.get("message")).get("content")
        if conversation_id is None:
            return
        if isinstance(content, str):
            self._told(line, text(content), conversation_id, writing)
            return
        for part in objects(content):
            if part.get("type") == "tool_result":
                if self._subagents.is_closed(conversation_id):
                    continue
                tool_result(line, part, conversation_id, writing)
            elif part.get("type") == "text":
                self._told(line, text(part.get("text")), conversation_id, writing)

    def _told(self, line: Json, content: str, conversation_id: str, writing: Writing) -> None:
        """A text to the agent: the user's are known already, a child's prompt is not."""
        uuid = ident(line.get("uuid"))
        if uuid is None or not content or line.get("isSynthetic") is True:
            return
        if notices.is_interruption(content):
            notices.interrupted(line, conversation_id, writing)
        elif notices.is_local_output(content):
            notices.local_output(line, content, writing)
        elif conversation_id != MAIN and not self._subagents.is_prompt(conversation_id, content):
            writing.whole(
                UserMessage(
                    id=uuid,
                    conversation_id=conversation_id,
                    turn_id=writing.turn_id,
                    timestamp=writing.at,
                    content=content,
                    message_id=uuid,
                )
            )

    def _system(self, line: Json, writing: Writing) -> None:
        match line.get("subtype"):
            case "init":
                self._begun(line, writing)
            case "background_tasks_changed":
                self.at_work = len(objects(line.get("tasks")))
            case "task_started":
                self._subagents.started(line, writing)
            case "task_notification":
                self._subagents.ended(line, writing)
            case "compact_boundary":
                about = mapping(line.get("compact_metadata"))
                self._streams.context_tokens = count(about.get("post_tokens")) or self._streams.context_tokens
                notices.compacted(line, about, writing)
            case "informational":
                notices.informed(line, writing)
            case "api_retry":
                notices.retried(line, writing)

    def _begun(self, line: Json, writing: Writing) -> None:
        session_id = ident(line.get("session_id"))
        if session_id is not None and session_id != self._session_id:
            self._session_id = session_id
            writing.out.append(AgentIdentity(session_id))
        self._streams.model = ident(line.get("model")) or self._streams.model
        self._error = None
        self._messages.began()
        writing.out.append(AgentTurnBegan())

    def _failed(self, line: Json, message: Json, conversation_id: str, writing: Writing) -> None:
        """The agent speaks for the model's API: an error."""
        said = "\n".join(text(content.get("text")) for content in objects(message.get("content"))).strip()
        error = model_error(line, said[:MAX_ERROR], message.get("stop_reason"))
        if conversation_id == MAIN:
            self._error = error
        if (uuid := ident(line.get("uuid"))) is not None:
            writing.whole(
                ErrorBlock(
                    id=uuid,
                    conversation_id=conversation_id,
                    turn_id=writing.turn_id,
                    timestamp=writing.at,
                    message=error.message,
                    code=error.code,
                    retryable=error.retryable,
                )
            )

    def _result(self, line: Json, writing: Writing) -> None:
        self._streams.abandon(writing)
        model = self._streams.model
        metadata = totals(line, model=model, context_tokens=self._streams.context_tokens)
        writing.out.append(metadata.model_copy(update={"turn_id": writing.turn_id}))
        ended = turn_ended(line, model=model, error=self._error)
        writing.out.append(ended)
        self._messages.ended(ended.message_ids)
        self._error = None
        if ended.status is TurnStatus.CANCELLED:
            self._subagents.cancelled()
