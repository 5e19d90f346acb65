"""Memory: what a translator knows between two blocks, as a value that is stored and read again.

`translate` gives and takes it when a runtime attaches again to an agent that outlived the one
before. It comes back out of a store that others may have written to: `read` takes it whole and
valid or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, ConfigDict, Field

from agent_runtime.frozen import Frozen
from agent_runtime.records import TurnError
from agent_runtime_adapters.agents.claude.lines import ident

VERSION: Final = 1
"""Of the shape below; a memory of any other is none."""
MAX_CHILDREN: Final = 200
"""Children that are remembered; the oldest is forgotten first."""
MAX_CONVERSATIONS: Final = 64
"""Conversations whose newest message is known; what is asked is only whether a block goes on with it."""
MAX_MESSAGES: Final = 100
"""Messages that the agent was given and that no result has named yet."""
MAX_REPORT: Final = 1 << 14
"""Characters of what a child reports at its end."""
MAX_ERROR: Final = 1 << 12
"""Characters of what a model's API said."""


def _id(value: str) -> str:
    if ident(value) is None:
        raise ValueError("no id")
    return value


Id = Annotated[str, AfterValidator(_id)]
_Number = Annotated[int, Field(ge=0, lt=1 << 56)]


class _Kept(Frozen):
    model_config = ConfigDict(strict=True)


class MessageMemory(_Kept):
    """The message that is being streamed; `last` is the index of its newest block."""

    message_id: Id
    model: Id | None = None
    last: _Number


class CountMemory(_Kept):
    """How many blocks of a conversation's newest message there were."""

    conversation_id: Id
    message_id: Id
    blocks: _Number


class ChildMemory(_Kept):
    """A child agent; `prompt` is a digest, `said` its newest text while it runs."""

    agent_id: Id
    tool_use_id: Id | None = None
    parent: Id
    prompt: Id
    said: Annotated[str, Field(max_length=MAX_REPORT)] = ""
    stopped: bool = False
    closed: bool = False


class MessageWaiting(_Kept):
    """A user's message that no result has named yet; `started` when the agent took it up."""

    message_id: Id
    started: bool


class Memory(_Kept):
    """All that a translator knows while no block is open. Sequences are in order of age, oldest first."""

    version: int = VERSION
    session_id: Id | None = None
    error: TurnError | None = None
    model: Id | None = None
    context_tokens: _Number | None = None
    message: MessageMemory | None = None
    counted: Annotated[list[CountMemory], Field(default_factory=list, max_length=MAX_CONVERSATIONS)]
    messages: Annotated[list[MessageWaiting], Field(default_factory=list, max_length=MAX_MESSAGES)]
    in_turn: bool = False
    at_work: _Number = 0
    children: Annotated[list[ChildMemory], Field(default_factory=list, max_length=MAX_CHILDREN)]


def read(told: Mapping[str, Any] | None) -> Memory:
    """The memory that was stored; an empty one where there is none or it makes no sense. Never raises."""
    try:
        memory = Memory.model_validate(told or {})
        memory.to_json()  # nothing that could not be stored again
    except (ValueError, RecursionError):
        return Memory()
    return memory if memory.version == VERSION else Memory()
