"""Transcript: the agent's own record of a conversation, read as blocks.

Each entry is turned into the native line that was printed when it was written, and goes the way of
a live line through `translate`; that is why live equals rest. Only three things are found here and
not there: what the user said (live, the session knows that), where a child's thread belongs, and
when it ended. In which order entries are read is up to `threads`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from agent_runtime.blocks import MAIN, Block, Content, ImagePart, ImageSource, TextPart, UserMessage
from agent_runtime.conversation import Conversation
from agent_runtime.events import BlockComplete, BlockStart, BlockUpdate
from agent_runtime_adapters.agents.claude.lines import Json, ident, mapping, objects, text
from agent_runtime_adapters.agents.claude.notices import is_interruption, is_local_output
from agent_runtime_adapters.agents.claude.subagents import TOOL_NAMES
from agent_runtime_adapters.agents.claude.threads import Threads
from agent_runtime_adapters.agents.claude.tools import final_status
from agent_runtime_adapters.agents.claude.translate import ClaudeTranslator

_CHILD_KEY: Final = "subagents/agent-"
_NEVER_ANSWERED: Final = "The tool call was cut off."
_DEEPEST: Final = 16
"""Children of children beyond this are read as threads without a parent."""
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)
_STANDARD_CHILD: Final = "general-purpose"
"""The child that a call without a name gets."""
_COMMAND: Final = re.compile(
    r"\s*<command-name>(/[^<]{0,200})</command-name>.*?<command-args>(.*?)</command-args>", re.DOTALL
)
_TASK: Final = re.compile(
    r"<task-notification>\s*<task-id>([\w-]{1,100})</task-id>\s*<tool-use-id>.*?<status>(\w{1,20})</status>",
    re.DOTALL,
)
"""News of a child; a resumed agent tells itself of its forerunner's children, without their calls."""
_NOTE: Final = re.compile(r"<system-reminder>.*</system-reminder>", re.DOTALL)
"""What the runtime told the agent in front of the user's words, which are no part of it."""
_ENDS: Final = {"success": "completed", "error": "failed"}
"""A finished call's status to its child's; everything else stopped it."""


def read_transcript(transcript: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Block, ...]:
    """The blocks of a stored transcript (key to entries), in the order in which they were first shown.

    Entries that make no sense are passed over. Tool calls that were never answered are cancelled,
    as the runtime does it when a turn ends.
    """
    reader = _Reader(transcript)
    reader.read(MAIN)
    for agent_id in reader.unclaimed():
        reader.read(agent_id)
    return reader.blocks()


class _Reader:
    """Walks the threads of one transcript; `conversation` is what they fold to."""

    def __init__(self, transcript: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        self._threads = {
            thread_id: list(entries)
            for key, entries in transcript.items()
            if (thread_id := _thread_id(key)) is not None
        }
        self._order = Threads(self._threads)
        self._agents = {**dict(_told_agents(self._threads.values())), **self._order.children}
        self._prompted = _prompted(self._threads)
        self._depths = {MAIN: 0}
        self._late: dict[str, list[Json]] = {}
        self._calls: dict[str, str] = {}
        self._translator = ClaudeTranslator()
        self._conversation = Conversation()
        self._at = _BEGINNING

    def blocks(self) -> tuple[Block, ...]:
        """All blocks in order, with nothing left open."""
        for child, status in self._order.ends.items():
            self._ended(child, status)
        self._settle(everything=True)
        return self._conversation.blocks(sys.maxsize)[0]

    def unclaimed(self) -> Iterator[str]:
        """Children that no call led to, while there are any."""
        for agent_id in self._threads:
            if agent_id not in self._depths:
                yield agent_id

    def read(self, agent_id: str) -> None:
        """Read one conversation, and from each call on that started a child, the child's with it."""
        self._depths[agent_id] = 0
        self._order.join(agent_id, 0)
        for thread_id, entry, at, names in self._order:
            self._at = at
            self._entry(entry, thread_id)
            for line in [line for name in names for line in self._late.pop(name, ())]:
                self._start_child(line)

    def _entry(self, entry: Json, agent_id: str) -> None:
        match entry.get("type"):
            case "assistant" if not _is_filler(entry):
                self._feed(_assistant_line(entry, agent_id))
                self._start_children(entry, agent_id)
            case "user":
                self._user(entry, agent_id)
            case "system":
                self._feed(_system_line(entry))
            case "attachment":
                self._steered(mapping(entry.get("attachment")), agent_id)
            case "queue-operation" if entry.get("operation") == "enqueue":
                self._notified(text(entry.get("content")))

    def _user(self, entry: Json, agent_id: str) -> None:
        content = mapping(entry.get("message")).get("content")
        line = _user_line(entry, agent_id)
        said = content if isinstance(content, str) else _only_text(content)
        if said is None:
            self._feed(line)
            self._end_children(line, content)
        elif _is_meta(entry) or said.lstrip().startswith("<task-notification>"):
            return
        elif agent_id != MAIN and self._depths[agent_id] == 0 and entry.get("parentUuid") is None:
            self._say(f"{agent_id}:prompt", said, agent_id)
        elif agent_id != MAIN or is_interruption(said) or is_local_output(said):
            self._feed(line)
        else:
            self._settle(everything=False)
            self._say(ident(entry.get("uuid")), _asked(said, content))

    def _start_children(self, entry: Json, agent_id: str) -> None:
        for call in objects(mapping(entry.get("message")).get("content")):
            tool_use_id, asked = ident(call.get("id")), mapping(call.get("input"))
            called = call.get("type") == "tool_use" and ident(call.get("name")) in TOOL_NAMES
            if not called or tool_use_id is None:
                continue
            child = self._agents.get(tool_use_id) or self._by_prompt(text(asked.get("prompt")))
            depth = self._depths[agent_id] + 1
            if child is None or child in self._depths or depth > _DEEPEST:
                continue
            self._calls[tool_use_id], self._depths[child] = child, depth
            line = _task_line(child, tool_use_id, agent_id, asked)
            if (later := self._order.waits_for(child)) is not None:
                self._late.setdefault(later, []).append(line)
            else:
                self._start_child(line)

    def _start_child(self, task: Json) -> None:
        self._feed(task)
        self._order.join(task["task_id"], self._depths[task["task_id"]])

    def _end_children(self, line: Json, content: object) -> None:
        for part in objects(content):
            tool_use_id = ident(part.get("tool_use_id"))
            child = self._calls.get(tool_use_id or "")
            if tool_use_id is None or child is None or _goes_on(line, part):
                continue
            status = _ENDS.get(final_status(line, part, tool_use_id).value, "stopped")
            self._ended(child, status)

    def _ended(self, child: str, status: str) -> None:
        self._feed({"type": "system", "subtype": "task_notification", "task_id": child, "status": status})

    def _notified(self, content: str) -> None:
        if told := _TASK.match(content):
            self._ended(told[1], told[2])

    def _steered(self, attachment: Json, agent_id: str) -> None:
        """What the user said while the agent worked is not an entry of its own."""
        if attachment.get("type") == "queued_command" and attachment.get("commandMode") == "prompt":
            said = text(attachment.get("prompt"))
            if said and agent_id == MAIN:
                self._say(ident(attachment.get("source_uuid")), said)

    def _by_prompt(self, prompt: str) -> str | None:
        """The first child that nothing claimed yet and that began with these words."""
        waiting = self._prompted.get(prompt, [])
        while waiting and waiting[0] in self._depths:
            waiting.pop(0)
        return waiting[0] if waiting else None

    def _say(self, uuid: str | None, content: Content, agent_id: str = MAIN) -> None:
        if uuid is not None and content:
            block = UserMessage(
                id=uuid, conversation_id=agent_id, timestamp=self._at, content=content, message_id=uuid
            )
            self._conversation.apply(BlockComplete(block_id=uuid, block=block))

    def _settle(self, *, everything: bool) -> None:
        ended = self._conversation.close_open(
            at=self._at, turn_id=None, reason=_NEVER_ANSWERED, everything=everything
        )
        for event in ended:
            self._conversation.apply(event)

    def _feed(self, line: Json) -> None:
        for fact in self._translator.translate(line, turn_id=None, at=self._at):
            if isinstance(fact, BlockStart | BlockComplete | BlockUpdate):
                self._conversation.apply(fact)


def _thread_id(key: str) -> str | None:
    """The conversation whose entries are under this key; None for what is no conversation."""
    agent_id = ident(key.removeprefix(_CHILD_KEY)) if key.startswith(_CHILD_KEY) else None
    return MAIN if key == MAIN else agent_id if agent_id != MAIN else None


def _prompted(threads: Mapping[str, Sequence[Json]]) -> dict[str, list[str]]:
    """Which children began with which words, for calls whose result does not name the child."""
    found: dict[str, list[str]] = {}
    for agent_id, entries in threads.items():
        first = next((entry for entry in entries if entry.get("type") == "user"), mapping(None))
        content = mapping(first.get("message")).get("content")
        prompt = text(content) if isinstance(content, str) else _only_text(content)
        if prompt and agent_id != MAIN:
            found.setdefault(prompt, []).append(agent_id)
    return found


def _told_agents(threads: Any) -> Iterator[tuple[str, str]]:
    """Which child each call started, where the call's result says so."""
    for entries in threads:
        for entry in entries:
            agent_id = ident(mapping(entry.get("toolUseResult")).get("agentId"))
            if agent_id is not None:
                for part in objects(mapping(entry.get("message")).get("content")):
                    if (tool_use_id := ident(part.get("tool_use_id"))) is not None:
                        yield tool_use_id, agent_id


def _shared(entry: Json, agent_id: str) -> dict[str, Any]:
    line = {"type": entry.get("type"), "uuid": entry.get("uuid"), "timestamp": entry.get("timestamp")}
    if agent_id != MAIN:
        line |= {"agent_id": agent_id, "parent_tool_use_id": agent_id}
    return line | {"message": entry.get("message")}


def _assistant_line(entry: Json, agent_id: str) -> Json:
    return _shared(entry, agent_id) | {
        "error": entry.get("error") or ("unknown" if entry.get("isApiErrorMessage") else None),
        "api_error_status": entry.get("apiErrorStatus"),
        "api_error_type": entry.get("apiErrorType"),
        "aborted": entry.get("isAbortedMidStream"),
        "thinking_duration_ms": entry.get("thinkingDurationMs"),
        "api_block_index": entry.get("apiBlockIndex"),
    }


def _user_line(entry: Json, agent_id: str) -> Json:
    refused = {"non_execution_kind": entry.get("toolDenialKind")}
    decision = {"permission_decision": entry.get("permissionDecision")}
    parts = objects(mapping(entry.get("message")).get("content"))
    return _shared(entry, agent_id) | {
        "isSynthetic": _is_meta(entry),
        "tool_use_result": entry.get("toolUseResult"),
        "tool_result_meta": [{"id": part.get("tool_use_id"), **refused, **decision} for part in parts],
    }


def _system_line(entry: Json) -> Json:
    line = {**_shared(entry, MAIN), "subtype": entry.get("subtype"), "content": entry.get("content")}
    about = mapping(entry.get("compactMetadata"))
    match entry.get("subtype"):
        case "compact_boundary":
            tokens = {"pre_tokens": about.get("preTokens"), "post_tokens": about.get("postTokens")}
            return line | {"compact_metadata": {"trigger": about.get("trigger"), **tokens}}
        case "local_command" if mapping(entry.get("commandRun")).get("command") == "clear":
            return {"type": "conversation_reset", "user_message_uuid": entry.get("parentUuid")}
        case "local_command":
            return line | {"type": "user", "message": {"content": entry.get("content")}}
        case "informational":
            return line
    return {}


def _task_line(child: str, tool_use_id: str, parent: str, asked: Json) -> Json:
    return {
        "type": "system",
        "subtype": "task_started",
        "task_type": "local_agent",
        "task_id": child,
        "tool_use_id": tool_use_id,
        "parent_task_id": None if parent == MAIN else parent,
        "description": asked.get("description"),
        "prompt": asked.get("prompt"),
        "subagent_type": asked.get("subagent_type") or _STANDARD_CHILD,
    }


def _goes_on(line: Json, part: Json) -> bool:
    """Whether a call's result only says that the child runs in the background now."""
    result = line.get("tool_use_result")
    if isinstance(result, Mapping):
        return result.get("isAsync") is True
    said = _only_text(part.get("content"))
    return said is not None and said.startswith("Async agent launched")


def _is_filler(entry: Json) -> bool:
    """Whether the agent wrote this where an interrupted turn had no answer, without showing it."""
    said = mapping(entry.get("message")).get("model") == "<synthetic>"
    return said and not entry.get("isApiErrorMessage") and not entry.get("error")


def _is_meta(entry: Json) -> bool:
    """Whether the agent told itself this in the user's name."""
    return entry.get("isMeta") is True or entry.get("isCompactSummary") is True


def _only_text(content: object) -> str | None:
    """The text of a list of parts; None where a tool's result is among them."""
    parts = objects(content)
    if any(part.get("type") == "tool_result" for part in parts):
        return None
    return "\n".join(text(part.get("text")) for part in parts if part.get("type") == "text")


def _asked(said: str, content: object) -> Content:
    """What the user sent, as they sent it: a slash command is stored in a frame of tags."""
    if command := _COMMAND.match(said):
        return f"{command[1]} {command[2]}".strip()
    if isinstance(content, str):
        return text(content)
    found = (_part(part) for part in objects(content))
    parts = tuple(part for part in found if part is not None)
    if len(parts) > 1 and isinstance(parts[0], TextPart) and _NOTE.fullmatch(parts[0].text):
        parts = parts[1:]
        if len(parts) == 1 and isinstance(parts[0], TextPart):
            return parts[0].text
    return parts


def _part(part: Json) -> TextPart | ImagePart | None:
    source = mapping(part.get("source"))
    if part.get("type") == "text":
        return TextPart(text=text(part.get("text")))
    data, media_type = source.get("data"), ident(source.get("media_type"))
    if part.get("type") != "image" or not isinstance(data, str) or media_type is None:
        return None
    return ImagePart(source=ImageSource(media_type=media_type[:100], data=data))
