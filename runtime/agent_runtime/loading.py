"""Loading: from a stored record to an `AgentSession` in memory. Reads the store, changes nothing.

The cost does not depend on how long the session is: the newest blocks, the newest turns and the
manifest are read. `manager` calls it once per session; what the session then does is its own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from agent_runtime.config import RuntimeConfig
from agent_runtime.conversation import Conversation
from agent_runtime.ports import Agent
from agent_runtime.profile import AgentProfile
from agent_runtime.recorder import Recorder
from agent_runtime.records import ClientSession, SessionRecord, TurnStatus
from agent_runtime.session import AgentSession
from agent_runtime.turns import Turns
from agent_runtime.wake import Surroundings

_BLOCKS: Final = 200
_TURNS: Final = 100
"""How far back unfinished turns are looked for; a queue is far shorter."""
_UNFINISHED: Final = frozenset({TurnStatus.QUEUED, TurnStatus.RUNNING})


async def load(
    record: SessionRecord,
    config: RuntimeConfig,
    agent: Agent,
    *,
    profile: Callable[[str], Awaitable[AgentProfile]],
    on_change: Callable[[ClientSession], None],
) -> AgentSession:
    """Build the session. Raises `PersistenceFault`."""
    store = config.persistence
    page = await store.load_blocks(record.session_id, limit=_BLOCKS)
    turns = await store.load_turns(record.session_id, limit=_TURNS)
    recorder = Recorder(
        record,
        Conversation(page.blocks, has_older=page.has_more),
        files=await store.load_manifest(record.session_id),
        position=await config.log.head(record.session_id),
        log=config.log,
        persistence=store,
        sync_interval_s=config.sync_interval_s,
    )
    return AgentSession(
        recorder,
        Turns(recorder, store, next_index=turns[-1].index + 1 if turns else 0),
        _surroundings(config, agent),
        profile=profile,
        unfinished=tuple(turn for turn in turns if turn.status in _UNFINISHED),
        interrupt_grace_s=config.interrupt_grace_s,
        on_change=on_change,
    )


def _surroundings(config: RuntimeConfig, agent: Agent) -> Surroundings:
    return Surroundings(
        persistence=config.persistence,
        sandboxes=config.sandboxes,
        gateway=config.gateway,
        agent=agent,
        runtime_id=config.runtime_id,
        orphan_timeout_s=config.orphan_timeout_s,
        wake_timeout_s=config.wake_timeout_s,
        max_file_bytes=config.max_file_bytes,
    )
