"""RuntimeConfig: every choice a host makes, each with its unit; nothing here that nobody reads.

It names the parts (store, log, sandboxes, agents, gateway, authentication) and the bounds. It does
nothing itself: the session and the manager read one half, the transport the other. Where values
come from (a file, the command line, a host's code) is the composition root's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from agent_runtime.needs import DEFAULT_RESOURCES, Resources
from agent_runtime.pool import PoolSettings
from agent_runtime.ports import (
    Agent,
    Authenticator,
    EventLog,
    ModelGateway,
    PersistenceAdapter,
    SandboxProvider,
)
from agent_runtime.profile import AgentProfile, FileRules

Profiles = Sequence[AgentProfile] | Callable[[], Awaitable[Sequence[AgentProfile]]]
"""Profiles as given, or a call that finds them anew each time."""

_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeConfig:
    """What a runtime is made of.

    Parts:
        persistence, sandboxes, agents, gateway, log: see `ports`.
        runtime_id: labels this runtime's sandboxes; the same after a restart, another for another runtime.
        authenticator: who may call; None makes a random token at start and prints it.
        open_access: no authentication at all; the server then answers to loopback names only.
        profiles: beside those that `persistence` holds.

    Bounds of what clients send and hold:
        max_message_bytes: a message's content. max_file_bytes: a request with files.
        block_page: blocks in a snapshot or a page. viewer_backlog_bytes: live events that may wait
        for one connection before it is closed as `slow_consumer`. max_joined_sessions: per connection.
        connect_timeout_s: from a connection's first byte to its credentials.
        heartbeat_s: silence after which an event stream gets a sign of life. body_timeout_s: for
        reading one request. cors_origins: foreign origins whose pages may call (`https://host`).
        preview_origin: where ports of sandboxes are shown, each at an origin of its own
        (`https://*.preview.host`, which all lead here); None: at this one, without its rights.

    Sessions:
        file_rules: which files of a workspace are kept; for sandboxes that are begun from now on.
        resources: what a sandbox gets whose profile does not say, and the most that a profile can ask for.
        secrets: name to value of what profiles may ask to have inside; nothing else ever is.
        coalesce_within_s: while the loop is busy, what a session says may wait so long, to be read with what
        comes next; 0: never. A loop that has time makes nobody wait.
        sync_interval_s: files and transcript are stored so often while they change.
        runner_silence_s: while a turn is under way, a runner that says nothing for so long, not even that
        it is there, is given up with its sandbox.
        interrupt_grace_s: from the interrupt to the end of an agent that does not stop.
        wake_timeout_s: for a sandbox with a ready agent. orphan_timeout_s: a runner without a
        runtime ends itself.
        agent_idle_timeout_s: an agent that rests so long is ended, and goes on natively at the next
        message. sandbox_idle_timeout_s: so is a sandbox, after its files are stored.
        session_idle_timeout_s: a session without sandbox and viewers then leaves memory.
        pool: how many sandboxes wait for sessions, of which profiles, for how long.
        reap_interval_s: so often the provider's own list is compared with the sessions, and what nobody
        has is ended.
    """

    persistence: PersistenceAdapter
    sandboxes: SandboxProvider
    agents: Sequence[Agent]
    gateway: ModelGateway
    log: EventLog
    runtime_id: str = "agent-runtime"
    authenticator: Authenticator | None = None
    open_access: bool = False
    profiles: Profiles = ()

    max_message_bytes: int = 1 * _MIB
    max_file_bytes: int = 32 * _MIB
    block_page: int = 50
    viewer_backlog_bytes: int = 8 * _MIB
    max_joined_sessions: int = 256
    connect_timeout_s: float = 45.0
    heartbeat_s: float = 15.0
    body_timeout_s: float = 30.0
    cors_origins: tuple[str, ...] = ()
    preview_origin: str | None = None

    file_rules: FileRules = field(default_factory=FileRules)
    resources: Resources = DEFAULT_RESOURCES
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    coalesce_within_s: float = 0.05
    sync_interval_s: float = 1.0
    runner_silence_s: float = 45.0
    interrupt_grace_s: float = 10.0
    wake_timeout_s: float = 60.0
    orphan_timeout_s: float = 600.0
    agent_idle_timeout_s: float = 300.0
    sandbox_idle_timeout_s: float = 1200.0
    session_idle_timeout_s: float = 600.0
    pool: PoolSettings = field(default_factory=PoolSettings)
    reap_interval_s: float = 60.0
