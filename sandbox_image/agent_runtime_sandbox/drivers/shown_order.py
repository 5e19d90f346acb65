"""What the Claude agent shows and does not write down: in which order blocks began, and about children.

The agent writes a block down when it is whole, but shows it from its beginning on: what came in
between stands before it in the transcript and after it on every screen. Its transcript does not tell
when a text began, nor which child a call started, nor always how that ended. So this is noted from the
lines, as entries among the agent's own; they are left out when the conversation is given back to it.
Only bookkeeping; whoever reads a transcript as blocks needs it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, Final

NOTE: Final = "shown-order"
"""The `type` of such an entry: `{type, sessionId, later, than, call?}`.

`later` is the uuid of an entry or the id of a child, `than` what was shown before it: a block
(`message id:index`) or the uuid of an entry, null where it is not known; `call` is the child's tool call.
Or `{type, sessionId, child, status}` when a child ended.
"""
_MAIN: Final = ""
_MAX_CONVERSATIONS: Final = 200


class ShownOrder:
    """Follows the lines of one agent process."""

    def __init__(self) -> None:
        self._message: object = None
        self._open: str | None = None
        self._newest: dict[str, str] = {}
        # A resumed agent tells of all children of its forerunners once more, as stopped.
        self._ours: deque[object] = deque(maxlen=_MAX_CONVERSATIONS)

    def note(self, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """Read a native line; an entry for the transcript where that would not tell enough."""
        match line.get("type"):
            case "stream_event" if line.get("parent_tool_use_id") is None:
                self._streamed(_mapping(line.get("event")))
            case "assistant" | "user":
                return self._whole(line)
            case "system" if line.get("task_type") == "local_agent" and line.get("subtype") == "task_started":
                return self._child(line)
            case "system" if line.get("subtype") == "task_notification" and line.get("task_id") in self._ours:
                return _note(line, child=line.get("task_id"), status=line.get("status"))
            case "result":
                self._open = None
        return None

    def _streamed(self, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "message_start":
                self._message, self._open = _mapping(event.get("message")).get("id"), None
            case "content_block_start":
                self._open = f"{self._message}:{event.get('index')}"
                self._newest[_MAIN] = self._open
            case "message_stop":
                self._open = None

    def _whole(self, line: Mapping[str, Any]) -> dict[str, Any] | None:
        message, uuid = _mapping(line.get("message")), line.get("uuid")
        in_main = line.get("parent_tool_use_id") is None
        if in_main and self._open is not None and message.get("id") == self._message:
            self._open = None
            return None
        conversation = _MAIN if in_main else line.get("agent_id")
        if isinstance(uuid, str) and isinstance(conversation, str):
            self._remember(conversation, uuid)
        return None if self._open is None else _note(line, later=uuid, than=self._open)

    def _child(self, line: Mapping[str, Any]) -> dict[str, Any]:
        newest = self._newest.get(line.get("parent_task_id") or _MAIN)
        self._ours.append(line.get("task_id"))
        return _note(line, later=line.get("task_id"), than=newest, call=line.get("tool_use_id"))

    def _remember(self, conversation: str, uuid: str) -> None:
        self._newest.pop(conversation, None)
        while len(self._newest) >= _MAX_CONVERSATIONS:
            del self._newest[next(iter(self._newest))]
        self._newest[conversation] = uuid


def _note(line: Mapping[str, Any], **told: object) -> dict[str, Any]:
    return {"type": NOTE, "sessionId": line.get("session_id"), **told}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
