"""Tools: tool calls and what they gave back, as blocks.

Results come in the order in which the tools finish, also before the message that called them is
whole; a result therefore stands for itself and only names its call. What the agent writes about
permissions (`tool_result_meta`) decides between a failed, a denied and a cancelled call.
"""

from __future__ import annotations

from typing import Any, Final

from agent_runtime.blocks import ToolResult, ToolStatus, ToolUse
from agent_runtime_adapters.agents.claude.lines import Json, ident, mapping, objects, plain, text
from agent_runtime_adapters.agents.claude.writing import Writing

_SAVED_ELSEWHERE: Final = "<persisted-output>"
"""How the agent begins an output of which it shows only a part."""
_MAX_DESCRIPTION: Final = 1000


def tool_use(line: Json, content: Json, conversation_id: str, writing: Writing) -> ToolUse | None:
    """The whole call; None where it has no id or no name. The tool runs from here on."""
    tool_use_id, name = ident(content.get("id")), ident(content.get("name"))
    if tool_use_id is None or name is None:
        return None
    asked: dict[str, Any] = plain(mapping(content.get("input")))
    return ToolUse(
        id=tool_use_id,
        conversation_id=conversation_id,
        turn_id=writing.turn_id,
        timestamp=writing.at,
        tool_name=name,
        tool_use_id=tool_use_id,
        input=asked,
        status=ToolStatus.RUNNING,
        display_name=ident(_about(line.get("tool_use_meta"), tool_use_id).get("display_name")),
        description=text(asked.get("description"))[:_MAX_DESCRIPTION] or None,
    )


def tool_result(line: Json, part: Json, conversation_id: str, writing: Writing) -> ToolStatus | None:
    """Write the result and the call's final status, and return the status; None for a nameless result."""
    tool_use_id = ident(part.get("tool_use_id"))
    if tool_use_id is None:
        return None
    status = final_status(line, part, tool_use_id)
    output = _output(part.get("content"))
    writing.update(tool_use_id, conversation_id, {"status": status.value})
    writing.whole(
        ToolResult(
            id=f"{tool_use_id}:result",
            conversation_id=conversation_id,
            turn_id=writing.turn_id,
            timestamp=writing.at,
            tool_use_id=tool_use_id,
            output=output,
            is_error=status is not ToolStatus.SUCCESS,
            truncated=_is_cut(output, part.get("content")) or None,
        )
    )
    return status


def final_status(line: Json, part: Json, tool_use_id: str) -> ToolStatus:
    """What became of a call, by its result (`part` of a `user` line)."""
    about = _about(line.get("tool_result_meta"), tool_use_id)
    refused = about.get("non_execution_kind")
    if refused == "user-rejected" or line.get("tool_use_result") == "User rejected tool use":
        return ToolStatus.CANCELLED
    if refused or mapping(about.get("permission_decision")).get("decision") == "reject":
        return ToolStatus.DENIED
    return ToolStatus.ERROR if part.get("is_error") is True else ToolStatus.SUCCESS


def _output(content: object) -> str | list[dict[str, Any]]:
    if isinstance(content, list):
        return [plain(part) for part in objects(content)]
    return text(content)


def _is_cut(output: str | list[dict[str, Any]], content: object) -> bool:
    if isinstance(output, str) and output.startswith(_SAVED_ELSEWHERE):
        return True
    return isinstance(content, str | list) and len(output) < len(content)


def _about(entries: object, tool_use_id: str) -> Json:
    """The entry of a list that speaks of this call, or an empty one."""
    for entry in objects(entries):
        if entry.get("id") == tool_use_id:
            return entry
    return mapping(None)
