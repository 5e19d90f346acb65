"""Subagents: child agents, each a block in its parent's conversation and a conversation of its own.

A child is told of by task lines (`task_started`, `task_notification`); its conversation's id is the
agent's id. The block is complete as soon as the child runs, because a child in the background
outlives the turn; how it ended comes as an update. Its own blocks are `translate`'s business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from agent_runtime.blocks import MAIN, Subagent, SubagentStatus, UserMessage
from agent_runtime_adapters.agents.claude.lines import Json, count, ident, mapping, text
from agent_runtime_adapters.agents.claude.memory import MAX_CHILDREN, MAX_REPORT, ChildMemory, Memory
from agent_runtime_adapters.agents.claude.writing import Writing

TOOL_NAMES: Final = frozenset({"Agent", "Task"})
"""The tools that start a child."""
_MAX_SAID: Final = 1 << 15
"""Characters of all that running children said last; whoever spoke longest ago is forgotten first."""
_ENDS: Final[Mapping[object, SubagentStatus]] = {
    "completed": SubagentStatus.SUCCESS,
    "failed": SubagentStatus.ERROR,
    "stopped": SubagentStatus.CANCELLED,
    "killed": SubagentStatus.CANCELLED,
}


@dataclass(slots=True)
class _Child:
    """`said` is the last text of the child, its report when it ends; `prompt` is a digest.

    `stopped` it is with the turn or by name; `closed` when that turn is over, and all of it was answered.
    """

    agent_id: str
    tool_use_id: str | None
    parent: str
    prompt: str
    said: str = ""
    stopped: bool = False
    closed: bool = False

    @property
    def block_id(self) -> str:
        return f"{self.tool_use_id or self.agent_id}:subagent"


class Subagents:
    """The children that this process told of; those that spoke last come last."""

    def __init__(self, memory: Memory) -> None:
        self._children: dict[str, _Child] = {}
        self._by_tool: dict[str, str] = {}
        for kept in memory.children:
            self._remember(_Child(**kept.model_dump()))

    def memory(self) -> list[ChildMemory]:
        """All that is known of them."""
        return [ChildMemory(**asdict(child)) for child in self._children.values()]

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
            known.stopped = known.closed = False
            writing.update(known.block_id, known.parent, {"status": SubagentStatus.RUNNING.value})
            return
        prompt = text(line.get("prompt"))
        parent = ident(line.get("parent_task_id")) or MAIN
        child = _Child(agent_id, tool_use_id, parent, prompt=_digest(prompt))
        self._remember(child)
        writing.whole(_block(child, line, writing))
        if prompt:
            writing.whole(_prompt(agent_id, prompt, writing))

    def said(self, conversation_id: str, content: str) -> None:
        """Remember the newest text of a child; it is the report when the child ends."""
        if (child := self._children.pop(conversation_id, None)) is None:
            return
        child.said = content[:MAX_REPORT]
        self._children[conversation_id] = child
        kept = 0
        for child in reversed(self._children.values()):
            kept += len(child.said)
            if kept > _MAX_SAID:
                child.said = ""

    def is_prompt(self, conversation_id: str, content: str) -> bool:
        """Whether a text that was sent to the child is the prompt that is shown already."""
        child = self._children.get(conversation_id)
        return child is not None and child.prompt == _digest(content)

    def ended(self, line: Json, writing: Writing) -> None:
        """A child rests: what became of it, and its report."""
        child = self._children.get(ident(line.get("task_id")) or "")
        status = _ENDS.get(line.get("status")) if isinstance(line.get("status"), str) else None
        if child is None or status is None:
            return
        child.stopped = status is SubagentStatus.CANCELLED
        updates: dict[str, Any] = {"status": status.value}
        report = child.said or text(line.get("summary"))[:MAX_REPORT]
        child.said = ""
        if status is SubagentStatus.SUCCESS and report:
            updates["output"] = report
        if (spent := count(mapping(line.get("usage")).get("duration_ms"))) is not None:
            updates["durationMs"] = spent
        writing.update(child.block_id, child.parent, updates)

    def cancelled(self) -> None:
        """The turn was interrupted: whoever closes it answers the calls of the children that it stopped."""
        for child in self._children.values():
            child.closed = child.stopped

    def is_closed(self, conversation_id: str) -> bool:
        """Whether all calls of a child were answered at the end of its turn: results come too late."""
        child = self._children.get(conversation_id)
        return child is not None and child.closed

    def _remember(self, child: _Child) -> None:
        while len(self._children) >= MAX_CHILDREN:
            forgotten = self._children.pop(next(iter(self._children)))
            if self._by_tool.get(forgotten.tool_use_id or "") == forgotten.agent_id:
                del self._by_tool[forgotten.tool_use_id or ""]
        self._children[child.agent_id] = child
        if child.tool_use_id is not None:
            self._by_tool[child.tool_use_id] = child.agent_id


def _digest(prompt: str) -> str:
    return hashlib.sha256(prompt.encode()).hexdigest()[:32]


def _block(child: _Child, line: Json, writing: Writing) -> Subagent:
    asked = {"description": text(line.get("description")), "prompt": text(line.get("prompt"))}
    return Subagent(
        id=child.block_id,
        conversation_id=child.parent,
        turn_id=writing.turn_id,
        timestamp=writing.at,
        subagent_id=child.agent_id,
        name=ident(line.get("subagent_type")),
        input={name: value for name, value in asked.items() if value},
        status=SubagentStatus.RUNNING,
        tool_use_id=child.tool_use_id,
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
