"""SessionManager: all sessions of one runtime: made, found, admitted to, and ended in order.

Every call names a principal; a session of another owner looks absent. A session is in memory from
its first use on (`loading`). What a session does is in `session`; how it is spoken to from outside is
in `transport`.

Opening: what an earlier process of this runtime left is taken up: sessions with a sandbox, a turn under
way or turns that wait; sandboxes that no session knows are ended.

Closing: 1. no new session is loaded; 2. all sessions let go together, their sandboxes and turns going
on without us, within a bound; 3. sandboxes that wait for a session are ended; 4. provider, gateway, log
and store are closed. Who wants nothing to go on calls `stop_all` before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, suppress
from typing import Any, Final

import structlog

from agent_runtime.blocks import Block, Content
from agent_runtime.catalogue import Catalogue
from agent_runtime.changes import Changes, SessionChange, Viewers
from agent_runtime.config import RuntimeConfig
from agent_runtime.conversation import Snapshot
from agent_runtime.creation import NewSession, draft, first_message_id
from agent_runtime.errors import Conflict, InvalidRequest, NotFound
from agent_runtime.loading import Loaded
from agent_runtime.passages import Passage, Terminal
from agent_runtime.pool import SandboxPool
from agent_runtime.ports import Principal
from agent_runtime.profile import AgentProfile, FileRules
from agent_runtime.readiness import Readiness, ReadinessProbe
from agent_runtime.records import (
    ClientSession,
    Phase,
    RuntimeStatus,
    SessionRecord,
    Turn,
    TurnError,
    WorkspaceFile,
)
from agent_runtime.session import AgentSession, SendReceipt, WhenBusy
from agent_runtime.takeover import Takeover
from agent_runtime.wake import end_sandbox, forget_snapshot
from agent_runtime.workspace import safe_path

_log = structlog.get_logger(__name__)

_STOP_S: Final = 20.0
"""For a stop to be waited for: an agent's polite end, a look at all files, and a sandbox's end."""


class SessionManager:
    """See the module. `open` first; nothing after `close`."""

    def __init__(self, config: RuntimeConfig) -> None:
        self.log = config.log
        self._config = config
        self._persistence = config.persistence
        self._catalogue = Catalogue(config)
        self._changes = Changes()
        self._closed = False
        self._pool = SandboxPool(config, profile=self.profile)
        self._loaded = Loaded(config, profile=self.profile, pool=self._pool, on_change=self._changed)
        self._takeover = Takeover(config, self._loaded, self._pool)
        self._readiness = ReadinessProbe(config, self._loaded, self._pool)
        self._viewers = Viewers()

    async def open(self) -> None:
        """Open the store, begin to take up what an earlier process left, try a sandbox out.

        Trying out now spares the first message the time for it; without sandboxes the runtime still
        serves what is stored, and says so.
        """
        try:
            await self._persistence.open()
            await self._loaded.open()
            await self._takeover.begin()
            await self._pool.open()
            self._loaded.spawn(
                self._loaded.put_away_idle(self._config.session_idle_timeout_s, viewed=self._viewers.any)
            )
            found = await self._config.sandboxes.probe()
            if not found.available:
                _log.warning("no_sandboxes", provider=found.provider, reasons=found.reasons)
        except BaseException:
            await self.close()
            raise

    async def stop_all(self) -> None:
        """End all sandboxes, and turns under way with `runtime_stopped`; only `close` may follow."""
        await self._pool.close()
        await self._takeover.done()  # what was said while nobody listened is to be saved as well
        await self._loaded.stop_all(_STOPPED)
        await self._takeover.end_all()

    async def close(self) -> None:
        """See the module. Idempotent."""
        if self._closed:
            return
        self._closed = True
        async with AsyncExitStack() as last:  # each is closed, whatever becomes of the others
            last.push_async_callback(self._persistence.close)
            last.push_async_callback(self.log.close)
            last.push_async_callback(self._config.gateway.aclose)
            last.push_async_callback(self._config.sandboxes.close)
            last.push_async_callback(self._pool.close)
            await self._loaded.close()

    # Sessions.

    async def create_session(self, principal: Principal, new: NewSession) -> tuple[ClientSession, bool]:
        """Create a session, durably; no sandbox yet. The bool tells whether it was made just now.

        With an idempotency key the same call may be made again, after any failure: what is missing is
        done then. Raises `NotFound` (`profile_not_found`), `InvalidRequest`, `AgentFault`
        (`unsupported_architecture`).
        """
        self._loaded.check_open()
        profile = await self.profile(new.agent_profile_ref)
        agent = self._loaded.agent(new.architecture or profile.architecture)
        record, files = draft(principal, new, profile, agent)
        made = await self._create(record, files)
        session = await self._loaded.load(record.session_id, is_new=made)
        if made:
            created = SessionChange("created", session.session_id, session.shown())
            self._changes.tell(principal.owner, created)
        if new.message is not None:
            message_id = first_message_id(session.session_id)
            await session.send(new.message, message_id=message_id, when_busy="queue")
        return session.shown(), made

    async def list_sessions(
        self, principal: Principal, *, limit: int, cursor: str | None
    ) -> tuple[tuple[ClientSession, ...], str | None]:
        """The principal's own sessions, newest first, and the cursor of the next page."""
        page = await self._persistence.list_sessions(principal.owner, limit=limit, cursor=cursor)
        return tuple(self._shown(record) for record in page.sessions), page.next_cursor

    async def session(self, principal: Principal, session_id: str) -> ClientSession:
        """The session as it stands; loads nothing. Raises `NotFound`."""
        return self._shown(await self._record(principal, session_id))

    async def snapshot(self, principal: Principal, session_id: str) -> Snapshot:
        """The session with its newest blocks; loads it, starts no sandbox. Raises `NotFound`."""
        return (await self._own(principal, session_id)).snapshot(self._config.block_page)

    async def update_session(
        self,
        principal: Principal,
        session_id: str,
        *,
        name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> ClientSession:
        """Change what is given. Raises `NotFound`."""
        session = await self._own(principal, session_id)
        changes: dict[str, Any] = {}
        if name is not None:
            changes["name"] = name
        if metadata is not None:
            changes["metadata"] = dict(metadata)
        if changes:
            await session.update_record(**changes)
        return session.shown()

    async def update_options(
        self, principal: Principal, session_id: str, options: Mapping[str, Any]
    ) -> ClientSession:
        """Change session options; a running agent follows. Raises `NotFound`, `InvalidRequest`."""
        session = await self._own(principal, session_id)
        await session.update_options(dict(options))
        return session.shown()

    async def delete_session(self, principal: Principal, session_id: str) -> None:
        """End the sandbox and remove everything for ever. Raises `NotFound`, `PersistenceFault`."""
        async with self._loaded.lock(session_id):
            record = await self._record(principal, session_id)
            # First the store: when it does not answer, nothing has happened; nor is more to be saved.
            await self._persistence.delete_session(session_id)
            session = self._loaded.find(session_id)
            if session is not None:
                await self._loaded.unload(session, None)
            elif record.sandbox is not None:  # it is still to be taken up
                await end_sandbox(self._config.sandboxes, record.sandbox)
            last = session.recorder.record if session is not None else record
            if last.snapshot is not None:
                await forget_snapshot(self._config.sandboxes, last.snapshot)
            await self.log.drop(session_id)
        self._changes.tell(principal.owner, SessionChange("deleted", session_id, None))

    async def stop_session(self, principal: Principal, session_id: str) -> ClientSession:
        """End the sandbox, keep the session. Raises `NotFound`.

        Returns when it is gone or, where it holds what a store does not take, on the way (`stopping`).
        """
        session = await self._own(principal, session_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await session.stop()
        return session.shown()

    async def prewarm_session(self, principal: Principal, session_id: str) -> ClientSession:
        """Begin to start the sandbox. Raises `NotFound`."""
        self._loaded.check_open()
        session = await self._own(principal, session_id)
        session.prewarm()
        return session.shown()

    async def sync_session(self, principal: Principal, session_id: str) -> ClientSession:
        """Make everything durable now. Raises `NotFound`."""
        session = await self._own(principal, session_id)
        await session.sync()
        return session.shown()

    # Passages into the sandbox.

    async def sandbox_of_port(self, principal: Principal, session_id: str, port: int) -> str:
        """The sandbox in which this port may be opened.

        Raises `NotFound`, `InvalidRequest` (`port_not_allowed`), `Conflict` (`sandbox_not_running`).
        """
        session = await self._own(principal, session_id)
        profile = await self.profile(session.recorder.record.agent_profile_reference)
        if profile.sandbox.ports is not None and port not in profile.sandbox.ports:
            detail = "The session's profile does not allow that this port is opened."
            raise InvalidRequest(detail, code="port_not_allowed", session_id=session_id)
        return session.sandbox_id()

    async def open_port(self, principal: Principal, session_id: str, port: int, sandbox_id: str) -> Passage:
        """Connect to a port of that sandbox. Raises `NotFound`, as `AgentSession.open_port`."""
        session = await self._own(principal, session_id)
        return await session.open_port(port, sandbox_id=sandbox_id)

    async def open_terminal(self, principal: Principal, session_id: str, rows: int, columns: int) -> Terminal:
        """Start a shell in the sandbox; wakes it. Raises `NotFound`, as `AgentSession.open_terminal`."""
        self._loaded.check_open()
        return await (await self._own(principal, session_id)).open_terminal(rows, columns)

    # Turns.

    async def send(
        self,
        principal: Principal,
        session_id: str,
        content: Content,
        *,
        message_id: str | None,
        when_busy: WhenBusy,
    ) -> SendReceipt:
        """Accept a message; durable on return.

        Raises `NotFound`, `Conflict`, `RateLimited`, `PersistenceFault`.
        """
        self._loaded.check_open()
        session = await self._own(principal, session_id)
        return await session.send(content, message_id=message_id, when_busy=when_busy)

    async def interrupt(self, principal: Principal, session_id: str, turn_id: str | None) -> bool:
        """Ask a turn to end; whether there was one. Raises `NotFound`."""
        record = await self._record(principal, session_id)
        session = self._loaded.find(session_id)
        if session is None and (record.sandbox is not None or turn_id is not None):
            session = await self._loaded.load(session_id)  # it is still to be taken up
        return session is not None and await session.taken_up() and session.interrupt(turn_id)

    async def turns(
        self, principal: Principal, session_id: str, *, before: int | None, limit: int
    ) -> tuple[Turn, ...]:
        """The ledger: the newest turns below an index, in rising index. Raises `NotFound`."""
        await self._record(principal, session_id)
        return await self._persistence.load_turns(session_id, limit=limit, before=before)

    # What is kept.

    async def blocks(
        self,
        principal: Principal,
        session_id: str,
        *,
        before: str | None,
        limit: int,
        conversation_id: str | None,
    ) -> tuple[tuple[Block, ...], bool]:
        """A page of complete blocks before the named one, oldest first; and whether older ones exist.

        Raises `NotFound` (`session_not_found`, `block_not_found`).
        """
        await self._record(principal, session_id)
        index: int | None = None
        if before is not None:
            index = await self._persistence.block_index(session_id, before)
            if index is None:
                raise NotFound("There is no such block.", code="block_not_found", session_id=session_id)
        page = await self._persistence.load_blocks(
            session_id, limit=limit, before=index, conversation_id=conversation_id
        )
        return tuple(entry.block for entry in page.blocks), page.has_more

    async def manifest(self, principal: Principal, session_id: str) -> tuple[WorkspaceFile, ...]:
        """The workspace's files as they are known, sorted by path, without content. Raises `NotFound`."""
        return (await self._own(principal, session_id)).files()

    async def file_rules(self, principal: Principal, session_id: str) -> FileRules:
        """Which files of its workspace are kept. Raises `NotFound`."""
        record = await self._record(principal, session_id)
        try:
            profile = await self.profile(record.agent_profile_reference)
        except NotFound:  # the host let go of it; the session can still be looked at
            return self._config.file_rules
        return profile.rules(self._config.file_rules)

    async def file(self, principal: Principal, session_id: str, path: str) -> WorkspaceFile:
        """One file with its content.

        Raises `NotFound` (`file_not_found`), `InvalidRequest`, `Conflict` (`file_omitted`).
        """
        session = await self._own(principal, session_id)
        file = await session.file(safe_path(path))
        if file is None:
            raise NotFound("There is no such file.", code="file_not_found", session_id=session_id)
        if file.omitted is not None:
            why = "is too large to be kept" if file.omitted == "too_large" else "could not be read"
            raise Conflict(f"The file {why}.", code="file_omitted", session_id=session_id)
        return file

    async def profiles(self) -> tuple[AgentProfile, ...]:
        """All profiles by id: `default`, the store's, and over them the configuration's."""
        return await self._catalogue.all()

    async def profile(self, profile_id: str) -> AgentProfile:
        """One profile. Raises `NotFound` (`profile_not_found`)."""
        return await self._catalogue.one(profile_id)

    # The whole.

    def viewing(self, session_id: str) -> AbstractContextManager[None]:
        """While somebody follows a session's log, the session stays in memory and its log whole."""
        return self._viewers.viewing(session_id)

    def watch(self, principal: Principal, on_change: Callable[[SessionChange], None]) -> Callable[[], None]:
        """Be called at each change of the principal's session list; returns how to end that."""
        return self._changes.watch(principal.owner, on_change)

    async def readiness(self) -> Readiness:
        """Whether store and sandboxes work."""
        return await self._readiness.ask()

    async def _record(self, principal: Principal, session_id: str) -> SessionRecord:
        """The principal's own session, from memory where it is loaded. Raises `NotFound`."""
        loaded = self._loaded.find(session_id)
        record = loaded.recorder.record if loaded else await self._persistence.load_session(session_id)
        if record is None or record.owner != principal.owner:
            raise NotFound.session(session_id)
        return record

    async def _own(self, principal: Principal, session_id: str) -> AgentSession:
        """The principal's own session, loaded. Raises `NotFound`."""
        await self._record(principal, session_id)
        return await self._loaded.load(session_id)

    async def _create(self, record: SessionRecord, files: tuple[WorkspaceFile, ...]) -> bool:
        """Store a new session with its files; False where an idempotency key made it before."""
        async with self._loaded.lock(record.session_id):
            made = True
            try:
                await self._persistence.create_session(record)
            except Conflict:
                made = False
            if files and (made or not await self._persistence.load_manifest(record.session_id)):
                await self._persistence.save_files(record.session_id, files)
            return made

    def _shown(self, record: SessionRecord) -> ClientSession:
        loaded = self._loaded.find(record.session_id)
        if loaded is not None:
            return loaded.shown()
        return ClientSession.of(record, RuntimeStatus(is_loaded=False, phase=Phase.DORMANT))

    def _changed(self, session: ClientSession) -> None:
        self._changes.tell(session.owner or "", SessionChange("changed", session.session_id, session))


_STOPPED: Final = TurnError(code="runtime_stopped", message="The runtime was stopped.", retryable=True)
