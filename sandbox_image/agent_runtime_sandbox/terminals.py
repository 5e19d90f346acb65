"""Terminals: a shell for a person, on a pseudo-terminal of its own, one per connection to the runner.

The shell works where the agent's tools do: same user, same environment, same workspace; it inherits
none of the runner's descriptors. Its kernel session, and whatever was started in it, ends with the
connection, and the connection with the shell. What leaves that session for good (a daemon that
detaches itself twice) belongs to the sandbox from then on, like what the agent leaves behind.

Nothing is read from the terminal that has not been taken by the other side: a flood stops itself.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import fcntl
import os
import shutil
import struct
import termios
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

from agent_runtime_sandbox import frames, process
from agent_runtime_sandbox.attachment import Detached
from agent_runtime_sandbox.drivers import Places
from agent_runtime_sandbox.leaving import gone

MAX_OPEN: Final = 8
PIECE_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 1024 * 1024
MAX_SIDE: Final = 1000
"""Rows or columns."""

_TAKE_TERMINAL: Final = 'terminal=$1; shift; exec "$@" <>"$terminal" >&0 2>&1'
"""A session's first process that opens a terminal makes it the session's own: no code between fork
and exec is needed, which a process with threads must not run."""
_SHELLS: Final = ("/bin/bash", "/bin/sh")
_BY_SIGNAL: Final = 128


class Terminals:
    """Serves connections that began with `terminal`."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._starting = 0
        self._shells: set[int] = set()

    def leaders(self) -> Collection[int]:
        """The shells, each the leader of a kernel session."""
        return tuple(self._shells)

    def busy_pids(self) -> Collection[int] | None:
        """Processes that are waited for here; None while they are not known."""
        return None if self._starting else self.leaders()

    async def serve(
        self, frame: frames.Frame, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Start a shell, answer, and pass on what is typed and shown. Raises `FrameError`, `Detached`."""
        rows, columns = _side(frame, "rows"), _side(frame, "cols")
        if len(self._shells) + self._starting >= MAX_OPEN:
            return await frames.refuse(writer, "too_many_terminals", f"{MAX_OPEN} are open already")
        try:
            terminal = await self._start(rows, columns)
        except OSError as error:
            return await frames.refuse(
                writer, "terminal_failed", f"no shell: {os.strerror(error.errno or 0)}"
            )
        try:
            writer.transport.set_write_buffer_limits(high=0)
            await _say(writer, {"k": "opened"})
            async with asyncio.TaskGroup() as both:
                others = [
                    both.create_task(_obey(reader, terminal), name="typed"),
                    both.create_task(_leave(writer), name="leaving"),
                ]
                ending = both.create_task(terminal.ended(), name="shell")
                while data := await terminal.read():
                    await _say(writer, {"k": "data", "data": base64.b64encode(data).decode("ascii")})
                for task in others:
                    task.cancel()
                await _say(writer, {"k": "exit", "code": await ending})
        finally:
            try:
                await terminal.close()
            finally:
                self._shells.discard(terminal.shell.pid)

    async def _start(self, rows: int, columns: int) -> _Terminal:
        self._starting += 1
        master, slave = os.openpty()
        try:
            _resize(slave, rows, columns)
            shell = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", _TAKE_TERMINAL, "sh", os.ttyname(slave), _shell()),
                env=_environment(self._places),
                cwd=self._places.workspace,
                user=self._places.user,
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            os.close(master)
            os.close(slave)
            raise
        finally:
            self._starting -= 1
        self._shells.add(shell.pid)
        os.set_blocking(master, False)
        return _Terminal(shell, master, slave)


@dataclass(slots=True)
class _Terminal:
    """A shell and both ends of its terminal. The inner end is held open until the shell is gone.

    Else the outer one would look closed before the shell has opened it.
    """

    shell: Process
    master: int
    slave: int | None
    _waits: set[asyncio.Event] = field(default_factory=set)

    async def read(self) -> bytes:
        """What is shown next; empty when the shell is gone and all it showed was read."""
        while True:
            try:
                return os.read(self.master, PIECE_BYTES)
            except BlockingIOError:
                if self.slave is None:
                    return b""
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_reader, loop.remove_reader)
            except OSError as error:
                if error.errno != errno.EIO:  # which is how a terminal says that nobody has it open
                    raise
                return b""

    async def write(self, data: bytes) -> None:
        """Type; waits while nothing takes it."""
        while data and self.slave is not None:
            try:
                data = data[os.write(self.master, data) :]
            except BlockingIOError:
                loop = asyncio.get_running_loop()
                await self._ready(loop.add_writer, loop.remove_writer)

    def resize(self, rows: int, columns: int) -> None:
        """Another size; what runs in it is told by the kernel."""
        _resize(self.master, rows, columns)

    async def ended(self) -> int:
        """Wait for the shell, end what is left of its session; returns the code as shells tell it."""
        code = await self.shell.wait()
        await asyncio.to_thread(process.end_session, self.shell.pid)
        self._let_go_inside()
        return code if code >= 0 else _BY_SIGNAL - code

    async def close(self) -> None:
        """End everything in it. Idempotent."""
        try:
            await asyncio.to_thread(process.end_session, self.shell.pid)
            await self.shell.wait()
        finally:
            self._let_go_inside()
            os.close(self.master)

    def _let_go_inside(self) -> None:
        if self.slave is not None:
            os.close(self.slave)
            self.slave = None
        for wait in self._waits:
            wait.set()

    async def _ready(self, watch: Callable[..., object], unwatch: Callable[[int], object]) -> None:
        """Wait until the terminal can be read or written, or the shell is gone."""
        ready = asyncio.Event()
        self._waits.add(ready)
        watch(self.master, ready.set)
        try:
            await ready.wait()
        finally:
            unwatch(self.master)
            self._waits.discard(ready)


async def _obey(reader: asyncio.StreamReader, terminal: _Terminal) -> None:
    """Do what the other side says. Raises `Detached` when it is gone, and `FrameError`."""
    splitter = frames.LineSplitter(MAX_LINE_BYTES)
    try:
        while data := await reader.read(PIECE_BYTES):
            for line in splitter.feed(data):
                await _perform(frames.decode(line), terminal)
    except OSError as error:
        raise Detached from error
    raise Detached


async def _leave(writer: asyncio.StreamWriter) -> None:
    """Raises `Detached` when the other side is gone, also while nothing takes what it typed."""
    await gone(writer)
    raise Detached


async def _perform(frame: frames.Frame, terminal: _Terminal) -> None:
    match frame["k"]:
        case "data":
            await terminal.write(_typed(frame))
        case "resize":
            terminal.resize(_side(frame, "rows"), _side(frame, "cols"))
        case _:
            raise frames.FrameError("a terminal knows nothing of this")


async def _say(writer: asyncio.StreamWriter, frame: frames.Frame) -> None:
    """Send a line, and wait until it has left. Raises `Detached`."""
    try:
        writer.write(frames.encode(frame))
        await writer.drain()
    except OSError as error:
        raise Detached from error


def _typed(frame: frames.Frame) -> bytes:
    data = frame.get("data")
    try:
        return base64.b64decode(data if isinstance(data, str) else "-", validate=True)
    except (binascii.Error, ValueError) as error:
        raise frames.FrameError("what was typed is not base64") from error


def _side(frame: frames.Frame, name: str) -> int:
    value: Any = frame.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
        raise frames.FrameError(f"a terminal without `{name}`")
    return value


def _resize(descriptor: int, rows: int, columns: int) -> None:
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _shell() -> str:
    return next((path for path in _SHELLS if shutil.which(path)), _SHELLS[-1])


def _environment(places: Places) -> dict[str, str]:
    """What the agent's tools have, in a terminal that can do more than theirs."""
    environment = {"HOME": str(places.home), **os.environ, **places.env}
    return environment | {"TERM": "xterm-256color", "SHELL": _shell(), "PWD": str(places.workspace)}
