"""Subagents: child agents, each a block in its parent's conversation and a conversation of its own.

A child is told of by task lines (`task_started`, `task_notification`); its conversation's id is the
agent's id. The block is complete as soon as the child runs, because a child in the background
outlives the turn; how it ended comes as an update. Its own blocks are `translate`'s business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent_runtime.blocks import MAIN, Subagent, SubagentStatus, UserMessage
from agent_runtime_adapters.agents.claude.lines import Json, count, ident, mapping, text
from agent_runtime_adapters.agents.claude.writing import Writing

TOOL_NAMES: Final = frozenset({"Agent", "Task"})
"""The tools that start a child."""
_MAX_CHILDREN: Final = 200
"""Children that are remembered; the oldest is forgotten first."""
_MAX_REPORT: Final = 1 << 16
"""Characters of what a child reports at its end."""
_MAX_COMPARED: Final = 4096
"""Characters by which a prompt is known again."""
_ENDS: Final[Mapping[object, SubagentStatus]] = {
    "completed": SubagentStatus.SUCCESS,
    "failed": SubagentStatus.ERROR,
    "stopped": SubagentStatus.CANCELLED,
    "killed": SubagentStatus.CANCELLED,
}


@dataclass(slots=True)
class _Child:
    """`said` is the last text of the child, its report when it ends; `prompt` how its prompt begins."""

    block_id: str
    parent: str
    prompt: str
    said: str = ""


class Subagents:
    """The children that this process told of."""

    def __init__(self) -> None:
        self._children: dict[str, _Child] = {}
        self._by_tool: dict[str, str] = {}

    def conversation(self, line: Json) -> str | None:
        """The conversation that a line belongs to; None for a line that names none that can be."""
        parent = line.get("parent_tool_use_id")
        if parent is None:
            return MAIN
        tool_use_id = ident(parent)
        agent_id = ident(line.get("agent_id")) or self._by_tool.get(tool_use_id or "")
        return agent_id if agent_id != MAIN else None

    def started(self, line: Json, writing: Writing) -> None:
        """A child begins, or one that had ended goes on with a new message."""
        agent_id, tool_use_id = ident(line.get("task_id")), ident(line.get("tool_use_id"))
        if agent_id is None or agent_id == MAIN or line.get("task_type") != "local_agent":
            return
        if (known := self._children.get(agent_id)) is not None:
            writing.update(known.block_id, known.parent, {"status": SubagentStatus.RUNNING.value})
            return
        prompt = text(line.get("prompt"))
        child = _Child(
            block_id=f"{tool_use_id or agent_id}:subagent",
            parent=ident(line.get("parent_task_id")) or MAIN,
            prompt=prompt[:_MAX_COMPARED],
        )
        self._remember(agent_id, tool_use_id, child)
        writing.whole(_block(agent_id, tool_use_id, child, line, writing))
        if prompt:
            writing.whole(_prompt(agent_id, prompt, writing))

    def said(self, conversation_id: str, content: str) -> None:
        """Remember the newest text of a child; it is the report when the child ends."""
        if (child := self._children.get(conversation_id)) is not None:
            child.said = content[:_MAX_REPORT]

    def is_prompt(self, conversation_id: str, content: str) -> bool:
        """Whether a text that was sent to the child is the prompt that is shown already."""
        child = self._children.get(conversation_id)
        return child is not None and child.prompt == content[:_MAX_COMPARED]

    def ended(self, line: Json, writing: Writing) -> None:
        """A child rests: what became of it, and its report."""
        child = self._children.get(ident(line.get("task_id")) or "")
        status = _ENDS.get(line.get("status")) if isinstance(line.get("status"), str) else None
        if child is None or status is None:
            return
        updates: dict[str, Any] = {"status": status.value}
        report = child.said or text(line.get("summary"))[:_MAX_REPORT]
        if status is SubagentStatus.SUCCESS and report:
            updates["output"] = report
        if (spent := count(mapping(line.get("usage")).get("duration_ms"))) is not None:
            updates["durationMs"] = spent
        writing.update(child.block_id, child.parent, updates)

    def _remember(self, agent_id: str, tool_use_id: str | None, child: _Child) -> None:
        while len(self._children) >= _MAX_CHILDREN:
            del self._children[next(iter(self._children))]
        while len(self._by_tool) >= _MAX_CHILDREN:
            del self._by_tool[next(iter(self._by_tool))]
        self._children[agent_id] = child
        if tool_use_id is not None:
            self._by_tool[tool_use_id] = agent_id


def _block(agent_id: str, tool_use_id: str | None, child: _Child, line: Json, writing: Writing) -> Subagent:
    asked = {"description": text(line.get("description")), "prompt": text(line.get("prompt"))}
    return Subagent(
        id=child.block_id,
        conversation_id=child.parent,
        turn_id=writing.turn_id,
        timestamp=writing.at,
        subagent_id=agent_id,
        name=ident(line.get("subagent_type")),
        input={name: value for name, value in asked.items() if value},
        status=SubagentStatus.RUNNING,
        tool_use_id=tool_use_id,
    )


def _prompt(agent_id: str, content: str, writing: Writing) -> UserMessage:
    """The child's prompt. A background child's prompt has no line of its own, so the id is made up."""
    return UserMessage(
        id=f"{agent_id}:prompt",
        conversation_id=agent_id,
        turn_id=writing.turn_id,
        timestamp=writing.at,
        content=content,
        message_id=f"{agent_id}:prompt",
    )
