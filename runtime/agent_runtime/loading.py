"""Loading: from a stored record to an `AgentSession` in memory, once for all who ask; and back.

A session is loaded under a lock of its own, so that two callers never load it twice. The cost does
not depend on how long the session is: the newest blocks, the newest turns and the manifest are read.
Who may ask for a session is the manager's business; what a session does is its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final
from weakref import WeakValueDictionary

import structlog

from agent_runtime.config import RuntimeConfig
from agent_runtime.conversation import Conversation
from agent_runtime.errors import AgentFault, NotFound, PersistenceFault, RuntimeFault
from agent_runtime.gathering import Gathering
from agent_runtime.pool import SandboxPool
from agent_runtime.ports import Agent, BlockPage, PersistenceAdapter
from agent_runtime.profile import AgentProfile
from agent_runtime.recorder import Recorder
from agent_runtime.records import (
    ClientSession,
    Phase,
    RuntimeStatus,
    SessionRecord,
    TurnError,
)
from agent_runtime.session import AgentSession
from agent_runtime.tasks import Tasks
from agent_runtime.turns import Turns
from agent_runtime.wake import Surroundings

_log = structlog.get_logger(__name__)

_STOP_BOUND_S: Final = 30.0
"""For all sessions to sync and stop: longer than a slow sync, shorter than an orchestrator's patience."""
_DETACH_BOUND_S: Final = 3.0
"""For all sessions to save what they have, and then to let go."""
_SHORTEST_SWEEP_S: Final = 0.01
_TAKEN_UP_AT_ONCE: Final = 16
_FAILURES: Final = 3
"""A session that failed so often in a row, each time soon, loses its sandbox: something in it is wrong."""
_FORGIVEN_S: Final = 60.0
_AGAIN_S: Final = 0.2
_AGAIN_MOST_S: Final = 10.0
_BLOCKS: Final = 200


class Loaded:
    """The sessions in memory, each with the task that runs it."""

    def __init__(
        self,
        config: RuntimeConfig,
        *,
        profile: Callable[[str], Awaitable[AgentProfile]],
        pool: SandboxPool,
        on_change: Callable[[ClientSession], None],
    ) -> None:
        self.closing = False
        self._pool = pool
        self._gathering = Gathering(config.coalesce_within_s)
        self._config = config
        self._agents: dict[str, Agent] = {agent.architecture: agent for agent in config.agents}
        self._profile = profile
        self._on_change = on_change
        self._sessions: dict[str, AgentSession] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks = Tasks()
        self._running: set[asyncio.Task[None]] = set()
        self._failures: dict[str, int] = {}
        self._taking_up = asyncio.Semaphore(_TAKEN_UP_AT_ONCE)

    async def open(self) -> None:
        """Begin; nothing can be loaded before."""
        await self._tasks.open()

    async def close(self) -> None:
        """Let all sessions go, their sandboxes left alive, within `_DETACH_BOUND_S`.

        What a store does not take in time is not lost while its sandbox lives: the runner keeps it.
        """
        self.closing = True
        leaving = [self._tasks.spawn(self._detach(session)) for session in self._sessions.values()]
        if leaving:
            await asyncio.wait(leaving, timeout=_DETACH_BOUND_S)
        for session in tuple(self._sessions.values()):
            session.close(detach=True)
        if self._running:
            await asyncio.wait(self._running, timeout=_DETACH_BOUND_S)
        await self._tasks.close()

    async def stop_all(self, why: TurnError) -> None:
        """Stop all sessions together, within `_STOP_BOUND_S`; nothing can be loaded afterwards."""
        self.closing = True
        stops = [self._tasks.spawn(self.unload(session, why)) for session in self._sessions.values()]
        if stops:
            await asyncio.wait(stops, timeout=_STOP_BOUND_S)

    async def put_away_idle(self, idle_s: float, *, viewed: Callable[[str], bool]) -> None:
        """Let sessions go that nobody used for so long; runs until cancelled."""
        while True:
            await asyncio.sleep(max(idle_s / 4, _SHORTEST_SWEEP_S))
            for session in tuple(self._sessions.values()):
                if session.quiet_s() >= idle_s and not viewed(session.session_id):
                    try:
                        await self._put_away(session, idle_s)
                    except Exception:  # a log that breaks for one session must not keep all others in memory
                        _log.exception("not_put_away", session_id=session.session_id)

    async def _put_away(self, session: AgentSession, idle_s: float) -> None:
        async with self.lock(session.session_id):
            if self._sessions.get(session.session_id) is not session or session.quiet_s() < idle_s:
                return  # somebody came for it while we waited
            session.close(detach=True)
            self._forget(session)
            await self._config.log.drop(session.session_id)
        record = session.recorder.record
        self._on_change(ClientSession.of(record, RuntimeStatus(is_loaded=False, phase=Phase.DORMANT)))

    @staticmethod
    async def _detach(session: AgentSession) -> None:
        try:
            if not session.recorder.calls.is_hopeless:
                await session.recorder.flush()
        finally:
            session.close(detach=True)

    def check_open(self) -> None:
        """Raises `RuntimeFault` (`runtime_stopped`) once `close` began."""
        if self.closing:
            raise RuntimeFault("The runtime is stopping.", code="runtime_stopped", retryable=True)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something in the background until `close`."""
        return self._tasks.spawn(work)

    def find(self, session_id: str) -> AgentSession | None:
        """The session, if it is in memory."""
        return self._sessions.get(session_id)

    def holds(self, sandbox_id: str) -> bool:
        """Whether a session in memory has this sandbox."""
        held = (session.shown().runtime.sandbox for session in self._sessions.values())
        return any(sandbox is not None and sandbox.sandbox_id == sandbox_id for sandbox in held)

    def fault(self) -> PersistenceFault | None:
        """Why the store does not take what some session has to save; None while it does."""
        faults = (session.recorder.calls.fault for session in self._sessions.values())
        return next((fault for fault in faults if fault is not None), None)

    def try_again(self) -> None:
        """The store answers: whoever waits to repeat a write need not wait longer."""
        for session in self._sessions.values():
            session.recorder.calls.try_again()

    def lock(self, session_id: str) -> asyncio.Lock:
        """Whoever holds it decides whether the session exists and is in memory."""
        return self._locks.setdefault(session_id, asyncio.Lock())

    def agent(self, architecture: str) -> Agent:
        """The agent kind of this name. Raises `AgentFault` (`unsupported_architecture`)."""
        agent = self._agents.get(architecture)
        if agent is None:
            known = ", ".join(sorted(self._agents))
            raise AgentFault(
                f"There is no agent '{architecture[:100]}' here; there is: {known}.",
                code="unsupported_architecture",
            )
        return agent

    async def load(self, session_id: str, *, is_new: bool = False) -> AgentSession:
        """The session in memory; whoever comes first loads it for all. Raises `NotFound`.

        `is_new`: it was created just now, and by the caller.
        """
        async with self.lock(session_id):
            session = self._sessions.get(session_id) or await self._begin(session_id, is_new)
            session.used_at = asyncio.get_running_loop().time()
            if not await session.taken_up():  # whoever loaded it may have been cancelled meanwhile
                self.check_open()
                raise PersistenceFault("The session could not be taken up; try again.")
            return session

    async def _begin(self, session_id: str, is_new: bool) -> AgentSession:
        self.check_open()
        record = await self._config.persistence.load_session(session_id)
        if record is None:
            raise NotFound.session(session_id)
        agent = self.agent(record.architecture)
        session = await load(
            record,
            self._config,
            agent,
            profile=self._profile,
            pool=self._pool,
            gathering=self._gathering,
            on_change=self._on_change,
            is_new=is_new,
        )
        self.check_open()  # nobody would end a session that `close` did not see
        self._sessions[session_id] = session
        running = self._tasks.spawn(self._run(session))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return session

    async def unload(self, session: AgentSession, why: TurnError | None) -> None:
        """Stop a session, save what it has, and let it go; at once where the store is damaged."""
        try:
            if not session.recorder.calls.is_hopeless and await session.taken_up():
                await session.stop(why)
                await session.recorder.flush()
        finally:
            session.close()
            self._forget(session)

    async def _run(self, session: AgentSession) -> None:
        """Run a session; one that fails is taken up again in its sandbox, a few times."""
        session_id = session.session_id
        failures = self._failures.get(session_id, 0)
        if failures < _FAILURES:
            session.survive()
        began = asyncio.get_running_loop().time()
        try:
            await session.run()
        except Exception as error:
            if asyncio.get_running_loop().time() - began > _FORGIVEN_S:
                failures = 0
            if not _is_of_the_store(error):
                self._failures[session_id] = failures + 1
            if not self.closing:
                self._tasks.spawn(self.load_again(session_id, min(_AGAIN_S * 2**failures, _AGAIN_MOST_S)))
            # What is said until it is taken up is told to nobody: viewers need a snapshot.
            await self._config.log.drop(session_id)
            raise
        else:
            self._failures.pop(session_id, None)
        finally:
            self._forget(session)

    async def load_again(self, session_id: str, delay_s: float = 0.0) -> None:
        """Take a session up without anybody asking; tries until it can be, or is no more."""
        while True:
            await asyncio.sleep(delay_s)
            try:
                async with self._taking_up:
                    await self.load(session_id)
            except (NotFound, AgentFault):
                self._failures.pop(session_id, None)
                return
            except RuntimeFault as fault:
                if self.closing:
                    return
                _log.warning("session_not_taken_up", session_id=session_id, code=fault.code)
                delay_s = min(max(delay_s * 2, _AGAIN_S), _AGAIN_MOST_S)
            else:
                return

    def _forget(self, session: AgentSession) -> None:
        if self._sessions.get(session.session_id) is session:
            del self._sessions[session.session_id]


def _is_of_the_store(error: Exception) -> bool:
    """Whether nothing is wrong but that the store did not answer."""
    return isinstance(error, ExceptionGroup) and error.split(PersistenceFault)[1] is None


async def load(
    record: SessionRecord,
    config: RuntimeConfig,
    agent: Agent,
    *,
    profile: Callable[[str], Awaitable[AgentProfile]],
    pool: SandboxPool,
    gathering: Gathering,
    on_change: Callable[[ClientSession], None],
    is_new: bool,
) -> AgentSession:
    """Build the session. Raises `PersistenceFault`."""
    store = config.persistence
    page = await _newest_blocks(store, record)
    newest = await store.load_turns(record.session_id, limit=1)
    conversation = Conversation(
        page.blocks,
        has_older=page.has_more,
        told_from=record.checkpoint.next_index if record.sandbox and record.checkpoint else None,
    )
    if record.sandbox is None:  # nothing can be told again
        conversation.trim(config.block_page, unsaved=())
    recorder = Recorder(
        record,
        conversation,
        files=await store.load_manifest(record.session_id),
        position=await config.log.head(record.session_id),
        log=config.log,
        persistence=store,
        sync_interval_s=config.sync_interval_s,
        page=config.block_page,
    )
    return AgentSession(
        recorder,
        Turns(recorder, store, next_index=newest[-1].index + 1 if newest else 0, is_new=is_new),
        _surroundings(config, agent, pool, gathering),
        profile=profile,
        unfinished=await store.unfinished_turns(record.session_id),
        on_change=on_change,
    )


async def _newest_blocks(store: PersistenceAdapter, record: SessionRecord) -> BlockPage:
    """The newest blocks: a page of them, or all that may be told again or still change, if that is more."""
    page = await store.load_blocks(record.session_id, limit=_BLOCKS)
    place = record.checkpoint
    first = None
    if place is not None:
        first = min(index for index in (place.next_index, place.live_index) if index is not None)
    while first is not None and page.has_more and page.blocks[0].index > first:
        older = await store.load_blocks(record.session_id, limit=_BLOCKS, before=page.blocks[0].index)
        page = BlockPage(older.blocks + page.blocks, older.has_more)
    return page


def _surroundings(
    config: RuntimeConfig, agent: Agent, pool: SandboxPool, gathering: Gathering
) -> Surroundings:
    return Surroundings(
        persistence=config.persistence,
        sandboxes=config.sandboxes,
        gateway=config.gateway,
        agent=agent,
        runtime_id=config.runtime_id,
        orphan_timeout_s=config.orphan_timeout_s,
        wake_timeout_s=config.wake_timeout_s,
        file_rules=config.file_rules,
        resources=config.resources,
        secrets=config.secrets,
        pool=pool,
        gathering=gathering,
        runner_silence_s=config.runner_silence_s,
        interrupt_grace_s=config.interrupt_grace_s,
        agent_idle_s=config.agent_idle_timeout_s,
        sandbox_idle_s=config.sandbox_idle_timeout_s,
    )
