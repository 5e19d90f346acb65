"""answers: the shapes of what REST answers beside the objects themselves; the OpenAPI's other half.

Records, blocks and events have their own modules; these wrap them in pages. What clients send is in
`payloads`.
"""

from __future__ import annotations

from typing import Any, Literal

from agent_runtime.blocks import Block, Subagent
from agent_runtime.conversation import Snapshot
from agent_runtime.errors import Category
from agent_runtime.frozen import Frozen, Moment
from agent_runtime.profile import AgentProfile, FileRules
from agent_runtime.records import ClientSession, QueuedMessage, Turn, WorkspaceFile
from agent_runtime.session import Outcome, SendReceipt


class SessionSnapshot(Frozen):
    """A session as of `position`: the same for a join, a GET, and a stream that cannot resume."""

    session: ClientSession
    position: str
    blocks: tuple[Block, ...]
    has_more: bool
    subagents: tuple[Subagent, ...]
    queue: tuple[QueuedMessage, ...]
    files: tuple[WorkspaceFile, ...]

    @classmethod
    def of(cls, snapshot: Snapshot) -> SessionSnapshot:
        """Show a snapshot; nothing is checked again."""
        return cls.model_construct(
            session=snapshot.session,
            position=str(snapshot.position),
            blocks=snapshot.blocks,
            has_more=snapshot.has_more,
            subagents=snapshot.subagents,
            queue=snapshot.queue,
            files=snapshot.files,
        )


class SessionList(Frozen):
    """A page of sessions, newest first."""

    sessions: tuple[ClientSession, ...]
    next_cursor: str | None = None


class BlockList(Frozen):
    """A page of blocks, oldest first."""

    blocks: tuple[Block, ...]
    has_more: bool


class TurnList(Frozen):
    """A page of the ledger, in rising index."""

    turns: tuple[Turn, ...]


class FileList(Frozen):
    """The workspace's files by path, without content; and the rules by which they are kept.

    `at_limit`: as many are kept as the rules allow; there may be further ones.
    """

    files: tuple[WorkspaceFile, ...]
    rules: FileRules
    at_limit: bool


class ProfileList(Frozen):
    """All profiles by id."""

    profiles: tuple[AgentProfile, ...]


class Preview(Frozen):
    """Where a port is shown, and until when: an address of its own, or a path of this origin."""

    url: str
    expires_at: Moment


class Accepted(Frozen):
    """A message is durable; `duplicate` tells that it was so before, `outcome` what a new one led to."""

    turn_id: str
    duplicate: bool
    outcome: Outcome | None = None

    @classmethod
    def of(cls, receipt: SendReceipt) -> Accepted:
        """Tell what a sender is told."""
        return cls(turn_id=receipt.turn_id, duplicate=receipt.duplicate, outcome=receipt.outcome)


class Interrupted(Frozen):
    """Whether there was a turn to interrupt."""

    interrupted: bool


class Ready(Frozen):
    """Each part's own word on its state."""

    ok: bool
    parts: dict[str, dict[str, Any]]


class Health(Frozen):
    """The process answers. `warnings` are sentences for an operator."""

    status: Literal["ok"] = "ok"
    isolation: str | None = None
    warnings: tuple[str, ...] | None = None


class Problem(Frozen):
    """Every error (RFC 9457). `code` is stable; `detail` is a sentence for a person."""

    type: str
    title: str
    status: int
    code: str
    category: Category
    detail: str
    retryable: bool
    session_id: str | None = None
    retry_after_ms: int | None = None
