"""The seams on one page: what the runtime asks of the world, and what a stranger implements.

    PersistenceAdapter   durable records; a host application's own store, or SQLite, or memory
    EventLog             ordered, bounded events per session; what viewers follow
    SandboxProvider      makes, finds and ends sandboxes; `Sandbox` is one of them
    Agent, Translator    one agent kind: how it is started, and its native lines read as events
    ModelGateway         the only way out of a sandbox to a model
    Authenticator        request -> principal, or nothing

All methods are called from one event loop. An implementation raises only the errors of
`agent_runtime.errors`; a foreign exception that leaves an adapter is a defect of the adapter.
`agent_runtime.testing` ships a contract suite for each. Nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from agent_runtime.blocks import Block
from agent_runtime.errors import SandboxFault
from agent_runtime.events import Event, Gap, LogEntry, Position, Replay
from agent_runtime.needs import Egress, SandboxNeeds
from agent_runtime.profile import AgentProfile, FileRules
from agent_runtime.records import SandboxRef, SandboxSnapshot, SessionRecord, Turn, WorkspaceFile
from agent_runtime.reports import Translated


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A block with its place in the session: `index` counts from 0 in the order of first appearance."""

    index: int
    block: Block


@dataclass(frozen=True, slots=True)
class SessionPage:
    """Sessions, newest first; `next_cursor` is opaque and None on the last page."""

    sessions: tuple[SessionRecord, ...]
    next_cursor: str | None


@dataclass(frozen=True, slots=True)
class BlockPage:
    """Blocks in rising `index`; `has_more` tells whether older ones exist."""

    blocks: tuple[StoredBlock, ...]
    has_more: bool


class PersistenceAdapter(Protocol):
    """Durable records of sessions. Implement this to keep them in your own store.

    Rules for all methods: each call is atomic (all of it or nothing survives a crash); when it
    returns, the data is durable; saving is idempotent, because the runtime repeats what it is not
    sure of; reading what is absent gives None or an empty result, never an error; when the store
    cannot answer, raise `PersistenceFault`. Writes of one session come one at a time and in order
    from the runtime that holds the session; reads, and calls for different sessions, come at any time.
    """

    async def open(self) -> None:
        """Get ready: connect, create or migrate tables. Called once, before anything else."""

    async def close(self) -> None:
        """Release everything. Called once, after the last call; calling it twice is harmless."""

    async def check(self) -> None:
        """Write something that changes nothing, durably, or raise `PersistenceFault`.

        `/ready` stands on it: a store that can be read and not written (a full disk) is not ready.
        """

    async def create_session(self, record: SessionRecord) -> None:
        """Store a new session. Raises `Conflict` (code `already_exists`) where the id is taken."""

    async def load_session(self, session_id: str) -> SessionRecord | None:
        """Return the session, or None."""

    async def update_session(self, record: SessionRecord) -> None:
        """Replace the record of an existing session. Raises `NotFound` (`session_not_found`)."""

    async def delete_session(self, session_id: str) -> None:
        """Remove the session and all that belongs to it, for ever. Idempotent."""

    async def list_sessions(self, owner: str, *, limit: int, cursor: str | None = None) -> SessionPage:
        """The owner's sessions by `created_at`, newest first, ties by `session_id` downward.

        A session that is created or deleted between two pages neither hides nor doubles another.
        Raises `InvalidRequest` (code `invalid_cursor`) on a cursor that this adapter did not make.
        """
        ...

    async def unfinished_sessions(self) -> tuple[SessionRecord, ...]:
        """All sessions, of whatever owner, that a starting runtime has to take up again.

        Those whose record names a `sandbox`, and those with a turn that is queued or running; each
        once, in any order. Everything else sleeps and costs the start nothing, so this must be found
        without reading every session.
        """
        ...

    async def save_blocks(self, session_id: str, blocks: Sequence[StoredBlock]) -> None:
        """Upsert blocks by `block.id`. A block keeps the index that it was first saved with.

        Raises `NotFound` (`session_not_found`) for a session that does not exist; so do all `save_*`.
        """

    async def load_blocks(
        self, session_id: str, *, limit: int, before: int | None = None, conversation_id: str | None = None
    ) -> BlockPage:
        """The newest `limit` blocks with `index < before` (None: the newest of all), oldest first.

        `conversation_id` None means all conversations.
        """
        ...

    async def block_index(self, session_id: str, block_id: str) -> int | None:
        """The index of a saved block, or None. Paging backwards from a block stands on this."""

    async def save_turn(
        self,
        session_id: str,
        turn: Turn,
        blocks: Sequence[StoredBlock] = (),
        *,
        record: SessionRecord | None = None,
    ) -> None:
        """Upsert a turn by `turn_id`, together with blocks and the session's record, in one atomic step.

        `record` None leaves the session's record as it is; else it replaces it, as `update_session`
        does. The acknowledgement of a user's message stands on this call, and so does it that a turn
        ends once: the turn and the place up to which its agent was heard are never apart.
        """

    async def load_turns(self, session_id: str, *, limit: int, before: int | None = None) -> tuple[Turn, ...]:
        """The newest `limit` turns with `index < before` (None: the newest of all), in rising index."""
        ...

    async def unfinished_turns(self, session_id: str) -> tuple[Turn, ...]:
        """The turns that are queued or running, in rising index, however many others came after them."""
        ...

    async def find_turn(self, session_id: str, message_id: str) -> Turn | None:
        """The turn that a client's `message_id` began, or None. A repeated send is known by this."""

    async def append_transcript(
        self, session_id: str, key: str, offset: int, entries: Sequence[Mapping[str, Any]]
    ) -> None:
        """Append entries of the agent's own transcript; entry i gets the place `offset + i`.

        Opaque JSON objects. Places that exist already are left as they are, so repeating is harmless.
        `key` names a thread of the transcript (`main`, `subagents/agent-x`).
        Raises `NotFound` like `save_blocks`.
        """

    async def load_transcript(self, session_id: str) -> dict[str, list[dict[str, Any]]]:
        """All of the transcript: key to entries in order of place. Empty where there is none."""
        ...

    async def save_files(self, session_id: str, files: Sequence[WorkspaceFile]) -> None:
        """Upsert workspace files by path; each has its `content`, but those that are `omitted` have none.

        A content that was there before such a file is gone.
        """

    async def delete_files(self, session_id: str, paths: Sequence[str]) -> None:
        """Remove files by path. Unknown paths are ignored."""

    async def load_manifest(self, session_id: str) -> tuple[WorkspaceFile, ...]:
        """All files, sorted by path, without their content."""
        ...

    async def load_file(self, session_id: str, path: str) -> WorkspaceFile | None:
        """One file with its content (None where it is `omitted`), or None."""

    async def list_profiles(self) -> tuple[AgentProfile, ...]:
        """The profiles that the store holds, sorted by id. Empty where the host keeps none here."""
        ...

    async def load_profile(self, profile_id: str) -> AgentProfile | None:
        """One profile, or None."""


Taker: TypeAlias = Callable[[tuple[LogEntry, ...]], bool]
"""Given what an append added, in its own call; True: it has seen them. Never waits, never raises."""


class EventLog(Protocol):
    """Ordered, bounded events of each session. Publishing is appending; subscribing is following.

    Within an epoch `seq` counts from 1 without holes. What falls out of the bound is answered by a
    `Gap`; a log that was lost begins a new epoch, so that an old position can never be mistaken.
    """

    async def append(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...]:
        """Give each event its position and time, atomically and in order; wake all followers."""
        ...

    def append_at_once(self, session_id: str, events: Sequence[Event]) -> tuple[LogEntry, ...] | None:
        """The same where nothing has to be waited for; None: nothing was done, use `append`."""
        ...

    async def head(self, session_id: str) -> Position:
        """The newest position; `seq` 0 in a log that holds nothing yet."""
        ...

    async def since(self, session_id: str, after: Position) -> Replay | Gap:
        """All entries after a position. A position ahead of the head, or of another epoch, is a `Gap`."""
        ...

    async def wait(self, session_id: str, after: Position, take: Taker | None = None) -> None:
        """Return as soon as the head differs from `after`; at once where it does already.

        A log may offer what is appended meanwhile to `take`. What that takes counts as seen by this
        follower, who waits on from there.
        """

    async def drop(self, session_id: str) -> None:
        """Forget a session's events. Whoever asks later finds a new epoch. Idempotent."""

    async def close(self) -> None:
        """Release everything."""


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """What a session asks of a provider.

    `gateway_socket` is a listening unix socket of the host; the provider makes it reachable inside
    and tells the runner where, by the environment variable `frames.GATEWAY_ENV`.
    `orphan_timeout_s`: with no runtime attached for so long, the runner ends itself.
    `file_rules`: which files the runner tells of; they are options of its command line.
    `needs`: resources, egress, dependencies, variables; `secrets` are the values of those that it names.
    `labels`: shown to whoever looks at the provider's own list; nothing secret.
    `lane`: as `SandboxRef.lane`. `snapshot`: begin with these files, where the provider offers it.
    """

    session_id: str
    runtime_id: str
    gateway_socket: Path
    orphan_timeout_s: float
    file_rules: FileRules = field(default_factory=FileRules)
    needs: SandboxNeeds = field(default_factory=SandboxNeeds)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    labels: Mapping[str, str] = field(default_factory=dict)
    lane: str | None = None
    snapshot: SandboxSnapshot | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a provider can do here, found by running a real sandbox, not by asking versions.

    `isolation` is the tier in a few words (`bubblewrap+seccomp+netns+cgroup`, `none`); `reasons` says in
    sentences what is missing and how to get it. `available` False: `create` will refuse.
    `enforces` names the fields of `Resources` that are really bounded. `snapshots`: `Sandbox.snapshot`
    is offered.
    """

    provider: str
    available: bool
    isolation: str
    reasons: tuple[str, ...] = ()
    enforces: tuple[str, ...] = ()
    snapshots: bool = False


ByteTaker: TypeAlias = Callable[[bytes], float | None]
"""Given bytes as they arrive. None: it does not take them; else they are dealt with, and the answer is for
how many seconds nothing more should be brought. Never waits, never raises."""


class Channel(Protocol):
    """A duplex byte stream to the runner of one sandbox."""

    async def receive(self, take: ByteTaker | None = None) -> bytes:
        """The next bytes, at most 256 KiB; empty at the end. Raises `SandboxFault` when it breaks.

        A channel may offer what arrives meanwhile to `take`, in the loop's own callback. What that takes
        is not returned; what it does not take comes next and by itself, for it may have looked at it.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Write all of it, waiting while the other side is slow. Raises `SandboxFault` when broken."""

    async def close(self) -> None:
        """Close both directions. Idempotent; never raises. The sandbox goes on."""


class Sandbox(Protocol):
    """One isolated place with a runner in it. Files, agent and answers all go through the runner."""

    @property
    def ref(self) -> SandboxRef:
        """How to find it again after a restart of the runtime."""
        ...

    @property
    def expires_at(self) -> datetime | None:
        """When the provider ends it by itself, where it does."""
        ...

    async def connect(self) -> Channel:
        """Open a stream to the runner. Raises `SandboxFault` (`sandbox_lost`) when it is gone.

        The first line says what it is for: the session's frames, a port inside, a terminal (`frames`).
        Any number may be open at a time.
        """
        ...

    async def alive(self) -> bool:
        """Whether the runner's process still runs, as the provider sees it."""
        ...

    async def mishap(self) -> SandboxFault | None:
        """What the provider saw happen to it since this was asked last, where that explains an end.

        `sandbox_out_of_memory`, `sandbox_expired`; None where nothing is known. Asked when the agent was
        killed or the sandbox is gone. Raises `SandboxFault`.
        """
        ...

    async def assign(self, session_id: str) -> None:
        """It was made before its session was known, and is this session's from now on.

        Only what people see of it changes. Raises `SandboxFault`.
        """

    async def snapshot(self) -> SandboxSnapshot:
        """Keep its files as they are now, for `SandboxSpec.snapshot`.

        Raises `SandboxFault`: `unsupported` where the provider has none.
        """
        ...

    async def stop(self, grace_s: float = 0.0) -> None:
        """End it with all its processes and remove its files. Idempotent; returns when it is gone.

        With a grace the runner is told first, and ends its agent; what runs afterwards is killed.
        """


class SandboxProvider(Protocol):
    """Creates, finds and ends sandboxes; knows nothing of agents."""

    @property
    def name(self) -> str:
        """`local`, `modal`, `unsafe-subprocess`."""
        ...

    async def probe(self) -> Capabilities:
        """Find out what can be had here. The first call runs a real sandbox; later ones may remember."""
        ...

    async def create(self, spec: SandboxSpec) -> Sandbox:
        """Make a sandbox whose runner accepts connections. Either it returns, or nothing is left.

        Raises `SandboxFault`: `sandbox_unavailable` where the tier cannot be had (the detail says
        how to get it), `sandbox_failed` otherwise.
        """
        ...

    async def attach(self, ref: SandboxRef, *, gateway_socket: Path | None = None) -> Sandbox:
        """Find a living sandbox again. Raises `SandboxFault` when it is gone: `sandbox_lost`, or its mishap.

        `gateway_socket` as in `SandboxSpec`, of this process; None by whoever only looks at it or ends it.
        """
        ...

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:
        """All living sandboxes that carry this label, including those of an earlier process."""
        ...

    async def forget(self, snapshot: SandboxSnapshot) -> None:
        """Remove a snapshot. Idempotent. Raises `SandboxFault`: `unsupported` where there are none."""

    async def close(self) -> None:
        """Release what the provider holds in this process; sandboxes go on."""


@dataclass(frozen=True, slots=True)
class AgentStart:
    """What the runner needs to start an agent: the driver's name and its options (plain JSON)."""

    driver: str
    options: dict[str, Any]


class Translator(Protocol):
    """Reads one agent process's native lines, in order. Pure: no clock, no I/O, no randomness.

    It keeps only what is needed to know which block a line belongs to. Lines are hostile input: an
    unknown or malformed line yields nothing, never an exception. Law: the blocks that its events
    fold to equal the blocks of `Agent.read_transcript` for the same run, ids and order included.
    """

    @property
    def at_work(self) -> int:
        """How many things the agent has at work beside its turns: subagents, commands in the background."""
        ...

    def translate(
        self, line: Mapping[str, Any], *, turn_id: str | None, at: datetime
    ) -> Sequence[Translated]:
        """What a native line means. `at` serves as the timestamp where the agent gives none."""
        ...

    def memory(self) -> dict[str, Any]:
        """What it knows from the lines so far, as plain JSON; asked for only while no block is open.

        Law: `agent.translator(memory)` goes on exactly as this one would have. Small: tens of KiB.
        """
        ...


class Agent(Protocol):
    """One agent kind."""

    @property
    def architecture(self) -> str:
        """The name that clients and profiles use (`claude-agent-sdk`)."""
        ...

    def check_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Validate session options; return them as they are to be kept. Raises `InvalidRequest`."""
        ...

    def start(
        self,
        profile: AgentProfile,
        options: Mapping[str, Any],
        *,
        agent_session_id: str | None,
        gateway_token: str,
    ) -> AgentStart:
        """What the runner is told. `agent_session_id` given: the conversation is resumed."""
        ...

    @property
    def steers(self) -> bool:
        """Whether a message that arrives in mid-turn is taken into that turn."""
        ...

    def translator(self, memory: Mapping[str, Any] | None = None) -> Translator:
        """A translator for a new agent process, or with its `memory` for one that is attached to again.

        A memory that it cannot read counts as none; never an exception.
        """
        ...

    def read_transcript(self, transcript: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Block, ...]:
        """The blocks of a stored transcript (key to entries), in order. Pure; tolerant of bad lines."""
        ...

    def remembers(self, transcript: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
        """Whether a conversation can be resumed from this transcript; an agent that died early left none.

        Pure; tolerant of bad lines.
        """
        ...


@dataclass(frozen=True, slots=True)
class GatewayEndpoint:
    """A session's own way to its model: a unix socket on the host and a dummy credential for it."""

    socket: Path
    token: str


class ModelGateway(Protocol):
    """Opens one way out per session; adds the real key outside of the sandbox."""

    async def open(
        self, session_id: str, *, egress: Egress | None = None, lane: str | None = None
    ) -> GatewayEndpoint:
        """Serve the session until `close`. Opening it again gives the same endpoint, with the new `egress`.

        `egress` None: the model's API and nothing else. `lane` None: the session's own endpoint; else the
        endpoint of that name, which a sandbox was made with (`SandboxRef.lane`).
        """
        ...

    async def close(self, session_id: str) -> None:
        """Stop serving the session; running requests are cut. Idempotent."""

    async def aclose(self) -> None:
        """Stop serving anybody and release everything. Idempotent."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling. Sessions belong to an `owner` and are invisible to all others."""

    owner: str


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a caller showed: the bearer token, and the headers and address for a host's own scheme."""

    token: str | None
    headers: Mapping[str, str] = field(default_factory=dict)
    remote: str | None = None


class Authenticator(Protocol):
    """A host's own idea of who may call."""

    async def authenticate(self, credentials: Credentials) -> Principal | None:
        """The caller, or None when the credentials are missing or wrong. Must compare in constant time."""
