"""Records: the durable things around blocks: session, turn, file; and how a session stands now.

These are values that a host stores and a client reads. What happens to them is in `events`, the
rules are in `lifecycle`, and where they are kept is behind `ports.PersistenceAdapter`.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from agent_runtime.blocks import Content
from agent_runtime.frozen import Frozen, Moment


class Phase(StrEnum):
    """The one state of a session. The legal moves are the table in `lifecycle`."""

    DORMANT = "dormant"
    WAKING = "waking"
    READY = "ready"
    RUNNING = "running"
    HIBERNATED = "hibernated"
    STOPPING = "stopping"
    FAILED = "failed"


class SandboxStatus(Frozen):
    """The sandbox of a session as clients see it. `isolation` is the tier that a probe found."""

    sandbox_id: str
    provider: str
    isolation: str
    status: Literal["starting", "ready", "unhealthy", "terminated"]
    restart_count: int = 0
    started_at: Moment
    expires_at: Moment | None = None


class RuntimeStatus(Frozen):
    """How a session stands at this moment; never stored."""

    is_loaded: bool
    phase: Phase
    status_message: str | None = None
    active_turn_id: str | None = None
    queue_length: int = 0
    pending_requests: int = 0
    sandbox: SandboxStatus | None = None


class SandboxRef(Frozen):
    """Where a sandbox is found again. `data` belongs to the provider and is opaque to all others.

    `lane` is the gateway's way that it was made with, where that is not its session's own: a sandbox
    that was made before anybody knew for whom.
    """

    sandbox_id: str
    provider: str
    isolation: str
    started_at: Moment
    lane: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)


class SandboxSnapshot(Frozen):
    """The files of a sandbox as its provider keeps them. `data` is opaque to all but the provider."""

    snapshot_id: str
    provider: str
    taken_at: Moment
    data: dict[str, Any] = Field(default_factory=dict)


class Usage(Frozen):
    """Tokens that the agent reported. Absent is not zero."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None


class Checkpoint(Frozen):
    """How far a session has dealt with what its runner said: all before it is durable.

    Whoever attaches again goes on after `offset`, with what was known there: `transcript` is how many
    entries each key had, `next_index` the index of the next new block, `live_index` that of the oldest
    block that may still change (a subagent in the background), `translator` the translator's memory
    (opaque).
    """

    offset: int
    transcript: dict[str, int] = Field(default_factory=dict)
    next_index: int
    live_index: int | None = None
    translator: dict[str, Any] = Field(default_factory=dict)


class SessionRecord(Frozen):
    """A session as it is stored. `session_id` is ours; `agent_session_id` is the agent's own.

    `usage` and `cost_usd` are running totals as the agent last reported them. `sandbox` is there
    while one lives, with the `checkpoint` to go on from; `last_sandbox_id` and `restart_count` remember
    those that went before. `snapshot` keeps the files of the last one until the next is there; what
    the store should hold is never in it alone. `untold` is what the agent is still to be told with the
    next message, `agent_options` are the session options that its process has been given.
    """

    session_id: str
    owner: str
    name: str | None = None
    architecture: str
    agent_profile_reference: str
    session_options: dict[str, Any] = Field(default_factory=dict)
    metadata: dict[str, Any] = Field(default_factory=dict)
    parent_session_id: str | None = None
    created_at: Moment
    last_activity: Moment
    agent_session_id: str | None = None
    sandbox: SandboxRef | None = None
    checkpoint: Checkpoint | None = None
    snapshot: SandboxSnapshot | None = None
    untold: str | None = None
    agent_options: dict[str, Any] | None = None
    last_sandbox_id: str | None = None
    restart_count: int = 0
    usage: Usage | None = None
    cost_usd: float | None = None
    model: str | None = None
    context_tokens: int | None = None


class TurnStatus(StrEnum):
    """Where a turn stands. Everything after `running` is final."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TurnError(Frozen):
    """Why a turn failed, in the wire's terms."""

    code: str
    message: str
    retryable: bool = False


class Turn(Frozen):
    """From one user message until the agent rests. `index` counts from 0 within the session.

    A turn that the agent began by itself (a background task came back) has no `message_id`.
    `content` is there only while the turn is queued: what is going to be said.
    """

    turn_id: str
    index: int
    message_id: str | None = None
    status: TurnStatus
    stop_reason: str | None = None
    error: TurnError | None = None
    content: Content | None = None
    started_at: Moment
    ended_at: Moment | None = None
    usage: Usage | None = None
    cost_usd: float | None = None
    model: str | None = None


class QueuedMessage(Frozen):
    """A message that waits for its turn; `preview` is its first 200 characters."""

    message_id: str
    preview: str


class WorkspaceFile(Frozen):
    """A file of the workspace. `path` is relative with `/`; `sha256` is of the raw bytes, in hex.

    `content` is text when `encoding` is utf-8 and base64 otherwise; it is absent in manifests.
    `omitted`: why the content is not kept; `sha256` is empty then.
    """

    path: str
    size_bytes: int
    sha256: str
    modified_at: Moment
    mime_type: str | None = None
    encoding: Literal["utf-8", "base64"] = "utf-8"
    content: str | None = None
    omitted: Literal["too_large", "unreadable"] | None = None


class ClientSession(Frozen):
    """A session as clients see it (`wire.md` section 3)."""

    session_id: str
    name: str | None = None
    architecture: str
    agent_profile_reference: str
    session_options: dict[str, Any]
    metadata: dict[str, Any]
    owner: str | None = None
    parent_session_id: str | None = None
    created_at: Moment
    last_activity: Moment
    usage: Usage | None = None
    cost_usd: float | None = None
    model: str | None = None
    runtime: RuntimeStatus

    @classmethod
    def of(cls, record: SessionRecord, runtime: RuntimeStatus) -> ClientSession:
        """Show a stored session together with how it stands now; nothing of the sandbox ref leaks."""
        shared = cls.model_fields.keys() - {"runtime"}
        return cls(runtime=runtime, **{name: getattr(record, name) for name in shared})
