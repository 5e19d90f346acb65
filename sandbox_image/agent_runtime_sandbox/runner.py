"""The runner: owns the agent, the journal and the watcher, and serves whoever connects.

A connection's first line says what it is for. Exactly one attachment is live; a newer one replaces
it; ports and terminals stand beside it. What a connection sends is parsed defensively: a bad line
ends that connection and nothing else. Commands belong to the runner, not
to the connection they came by: a start goes on when the runtime that asked for it is gone. With
nobody attached for too long the runner ends itself and the agent.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from agent_runtime_sandbox import drivers, frames, process
from agent_runtime_sandbox.agent import AgentPlace
from agent_runtime_sandbox.attachment import READ_BYTES, Attachment, Detached
from agent_runtime_sandbox.beneath import Root
from agent_runtime_sandbox.commands import Commands
from agent_runtime_sandbox.files import WorkspaceFiles
from agent_runtime_sandbox.journal import Journal
from agent_runtime_sandbox.manifest import Rules
from agent_runtime_sandbox.outbox import Outbox
from agent_runtime_sandbox.ports import Ports
from agent_runtime_sandbox.relay import Relay
from agent_runtime_sandbox.terminals import Terminals
from agent_runtime_sandbox.usage import until_over
from agent_runtime_sandbox.watching import Watching

HANDSHAKE_S: Final = 10.0
TELL_WITHIN_S: Final = 2.0
"""For the last frame of a runner that ends itself to reach whoever listens."""
MAX_STRANGERS: Final = 4
"""Connections that have not said yet what they are for."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a runner is to work. `preload` names a driver to import in the background, or is empty.

    `lifetime_s` is when it ends itself, `disk_bytes` what workspace and home may take together; None:
    that is not its business.
    `relay` None: what runs inside reaches the gateway by its unix socket alone.
    """

    places: drivers.Places
    orphan_timeout_s: float
    rules: Rules
    preload: str
    lifetime_s: float | None = None
    disk_bytes: int | None = None
    relay: Relay | None = None


class _Stop(Exception):
    """Raised inside the task group to end it."""


class Runner:
    """One runner over a listening socket and a journal's descriptor.

    `caller` is a connection that was accepted already.
    """

    def __init__(
        self,
        listener: socket.socket,
        journal_fd: int,
        settings: Settings,
        *,
        caller: socket.socket | None = None,
    ) -> None:
        self._listener = listener
        self._caller = caller
        self._settings = settings
        self._outbox = Outbox(Journal(journal_fd))
        self._outbox.changed = self._wake
        self._root = Root(settings.places.workspace)
        self._files = WorkspaceFiles(self._root, self._outbox, settings.rules)
        self._ports = Ports()
        self._terminals = Terminals(settings.places)
        self._live: Attachment | None = None
        self._alone_since = 0.0
        self._strangers = asyncio.Semaphore(MAX_STRANGERS)
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until a signal or until orphaned; then end the agent and return."""
        loop = asyncio.get_running_loop()
        self._alone_since = loop.time()
        self._listener.setblocking(False)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end_by_signal)
        try:
            async with asyncio.TaskGroup() as tasks:
                agent = AgentPlace(self._outbox, self._settings.places, tasks, spared=self._terminals.leaders)
                commands = Commands(agent, self._files, tasks)
                loop.add_signal_handler(signal.SIGCHLD, _reap, agent, self._terminals)
                tasks.create_task(self._accept(tasks, agent, commands), name="accept")
                tasks.create_task(self._watch(), name="files")
                tasks.create_task(self._end_when_orphaned(), name="orphan")
                if self._settings.lifetime_s is not None:
                    loop.call_later(self._settings.lifetime_s, self._stopping.set)
                if self._settings.disk_bytes is not None:
                    tasks.create_task(self._watch_disk(self._settings.disk_bytes), name="disk")
                if self._settings.preload:
                    tasks.create_task(self._preload(self._settings.preload), name="preload")
                if self._settings.relay is not None:
                    tasks.create_task(self._settings.relay.run(), name="relay")
                await self._stopping.wait()
                await agent.close()
                raise _Stop
        except* _Stop:
            pass
        finally:
            self._root.close()

    def _end_by_signal(self) -> None:
        """Say so first: a tool can send signals too.

        What the agent says when it is interrupted would be taken for what the runtime had asked for. A
        runtime that wanted this has left before it.
        """
        self._outbox.emit("fault", code=frames.SIGNALLED, message="told to end by a signal")
        self._stopping.set()

    def _wake(self) -> None:
        if self._live is not None:
            self._live.wake()

    async def _accept(self, tasks: asyncio.TaskGroup, agent: AgentPlace, commands: Commands) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._strangers.acquire()
            if self._caller is not None:
                tasks.create_task(self._serve_caller(self._caller, agent, commands), name="connection")
                self._caller = None
                continue
            connection, _ = await loop.sock_accept(self._listener)
            tasks.create_task(self._serve(connection, agent, commands), name="connection")

    async def _serve_caller(self, caller: socket.socket, agent: AgentPlace, commands: Commands) -> None:
        """The one for whom an agent may have been started early."""
        await self._serve(caller, agent, commands)
        await agent.nobody_starts()

    async def _serve(self, connection: socket.socket, agent: AgentPlace, commands: Commands) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=READ_BYTES)
        try:
            frame = await self._first_line(reader)
            match frame["k"]:
                case "attach":
                    await self._serve_session(
                        frame, Attachment(reader, writer, self._outbox), agent, commands
                    )
                case "port":
                    await self._ports.serve(frame, reader, writer)
                case "terminal":
                    await self._terminals.serve(frame, reader, writer)
                case _:
                    raise frames.FrameError("the first line says nothing that is known")
        except* (Detached, TimeoutError):
            pass
        except* Exception as errors:
            _log.warning("a connection was cut: %r", errors.exceptions[0])
        finally:
            writer.transport.abort()

    async def _first_line(self, reader: asyncio.StreamReader) -> frames.Frame:
        """What a connection is for; what came with it stays in the reader."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                return frames.decode(await reader.readuntil())
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Detached from error
        except asyncio.LimitOverrunError as error:
            raise frames.FrameError("a first line without end") from error
        finally:
            self._strangers.release()

    async def _serve_session(
        self, frame: frames.Frame, attachment: Attachment, agent: AgentPlace, commands: Commands
    ) -> None:
        try:
            self._attach(attachment, frame, agent)
            async with asyncio.TaskGroup() as both:
                both.create_task(attachment.pump(), name="pump")
                both.create_task(self._obey(attachment, commands), name="obey")
        finally:
            attachment.close()
            if self._live is attachment:
                self._live = None
                self._alone_since = asyncio.get_running_loop().time()

    def _attach(self, attachment: Attachment, frame: frames.Frame, agent: AgentPlace) -> None:
        after = frame.get("after")
        if not isinstance(after, int) or isinstance(after, bool) or after < 0:
            raise frames.FrameError("an attach without an offset")
        if self._live is not None:
            self._live.close()
        self._live = attachment
        hello = {
            "k": "hello",
            "v": frames.PROTOCOL_VERSION,
            "head": self._outbox.head,
            "oldest": self._outbox.oldest,
            "agent": agent.state,
        }
        attachment.follow(after, hello)

    async def _obey(self, attachment: Attachment, commands: Commands) -> None:
        while True:
            for line in await attachment.receive():
                if attachment.closed:
                    raise Detached
                frame = frames.decode(line)
                if frame["k"] == "ack":
                    self._acknowledge(frame.get("o"))
                else:
                    await commands.begin(frame, attachment)

    def _acknowledge(self, offset: object) -> None:
        if not isinstance(offset, int) or isinstance(offset, bool):
            raise frames.FrameError("an ack without an offset")
        self._outbox.ack(offset)

    async def _watch(self) -> None:
        await Watching(self._settings.places.workspace, self._files, self._outbox).run()

    async def _watch_disk(self, bound: int) -> None:
        """Say so and end when the files take more than they may; at once, because more is being written."""
        places = self._settings.places
        taken = await until_over(bound, (places.workspace, places.home))
        self._outbox.emit("fault", code=frames.OUT_OF_DISK, message=f"{taken} of {bound} bytes")
        if self._live is not None:
            with suppress(TimeoutError):  # then they will read it in the journal, or not at all
                async with asyncio.timeout(TELL_WITHIN_S):
                    await self._live.told()
        raise _Stop

    async def _preload(self, name: str) -> None:
        with suppress(drivers.DriverError, ImportError):
            await asyncio.to_thread(drivers.load, name)

    async def _end_when_orphaned(self) -> None:
        loop, bound = asyncio.get_running_loop(), self._settings.orphan_timeout_s
        while True:
            alone = 0.0 if self._live is not None else loop.time() - self._alone_since
            if alone >= bound:
                _log.warning("nobody attached for %.0f s: ending", alone)
                self._stopping.set()
                return
            await asyncio.sleep(max(bound - alone, 0.01))


def _reap(agent: AgentPlace, terminals: Terminals) -> None:
    """A child ended, or was stopped."""
    agent.end_if_stopped()
    agents, shells = agent.busy_pids(), terminals.busy_pids()
    if agents is not None and shells is not None:
        process.reap({*agents, *shells})
