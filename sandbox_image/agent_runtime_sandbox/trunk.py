"""The end of a trunk inside a sandbox: joins its streams to the runner's socket and the gateway's.

    python -P -s -m agent_runtime_sandbox.trunk --control FOLDER [--gateway PATH]

A provider that reaches into a sandbox by nothing but a process's standard input and output starts
this there, as root, and speaks `multiplex` with it. With `--gateway` it listens at that path for the
agent's requests to its model, in place of an earlier trunk that did so: that one is ended, its
provider may be gone. It ends by itself when its input ends, when nothing is heard, and when told.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from agent_runtime_sandbox import identity
from agent_runtime_sandbox.multiplex import (
    PIECE_BYTES,
    VERSION,
    Broken,
    Kind,
    Multiplex,
    Purpose,
    Stream,
    splice,
)

SOCKET: Final = "runner.sock"
PID: Final = identity.RUNNER_PID
"""Names in the folder of `--control`, which only root and trunks can enter."""
BEAT_S: Final = 10.0
SILENCE_S: Final = 60.0
"""With nothing heard for so long the provider is gone: the runner must see that it is alone."""
RUNNER_WITHIN_S: Final = 60.0
_LOCK: Final = "gateway.lock"
_ANCESTOR_WITHIN_S: Final = 5.0
_ASKED_FOR_S: Final = 1.0
"""How long an earlier trunk may take to say that it is replaced, before it is killed."""
_LAST_WORD_S: Final = 0.1
_PAUSE_S: Final = 0.02


def main() -> int:
    """Carry bytes until there is no more use for it. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="trunk", description="Joins a sandbox to its provider.")
    parser.add_argument("--control", type=Path, required=True, metavar="FOLDER", help="the runner's folder")
    parser.add_argument("--gateway", type=Path, metavar="PATH", help="listen here for the agent's requests")
    parser.add_argument(
        "--silence", type=float, default=SILENCE_S, metavar="S", help="how long without a word"
    )
    options = parser.parse_args()
    if os.geteuid() == 0:  # it may be here before the runner
        identity.own_folder(options.control, identity.RUNNER_UID, identity.RUNNER_UID, 0o700)
    lock = _take_over(options.control) if options.gateway is not None else None
    listener = _listen(options.gateway) if options.gateway is not None else None
    if os.geteuid() == 0:
        identity.be_nobody()
    with suppress(KeyboardInterrupt):
        asyncio.run(_Trunk(options.control, listener, options.silence).run())
    if lock is not None:
        os.close(lock)
    return 0


def _take_over(control: Path) -> int:
    """The one trunk that serves the gateway holds a lock, and its pid is in it. End that one; be it."""
    fd = os.open(control / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    began = time.monotonic()
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            asked = time.monotonic() - began < _ASKED_FOR_S
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            if holder.isdigit():
                with suppress(ProcessLookupError):
                    os.kill(int(holder), signal.SIGTERM if asked else signal.SIGKILL)
        if time.monotonic() - began > _ANCESTOR_WITHIN_S:
            sys.exit("trunk: an earlier one does not end")
        time.sleep(_PAUSE_S)
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def _listen(path: Path) -> socket.socket:
    """A socket in a folder that the agent can look into and not change; it replaces an earlier one."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(128)
    return listener


class _Done(Exception):
    """Raised inside the task group to end it."""


class _Trunk:
    """A multiplex over standard input and output."""

    def __init__(self, control: Path, listener: socket.socket | None, silence_s: float) -> None:
        self._control = control
        self._listener = listener
        self._silence_s = silence_s
        self._multiplex = Multiplex(outside=False, accept=self._accept)
        self._tasks: asyncio.TaskGroup | None = None
        self._replaced = asyncio.Event()

    async def run(self) -> None:
        """Until input ends, is nonsense or falls silent."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._replaced.set)
        try:
            async with asyncio.TaskGroup() as self._tasks, _standard_pipes() as (reader, writer):
                tasks = self._tasks
                tasks.create_task(self._multiplex.pump(lambda data: _write(writer, data)), name="pump")
                tasks.create_task(self._read(reader), name="read")
                tasks.create_task(self._beat(), name="beat")
                tasks.create_task(self._end_runner(), name="end runner")
                tasks.create_task(self._give_way(), name="give way")
                await self._until_the_runner_listens()
                self._multiplex.queue(Kind.READY, 0, VERSION)
                if self._listener is not None:
                    await self._serve_gateway(self._listener)
                await asyncio.Event().wait()
        except* (_Done, Broken, OSError):
            pass

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(PIECE_BYTES):
            self._multiplex.feed(data)
        raise _Done

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        heard, since = self._multiplex.beats, clock()
        while True:
            await asyncio.sleep(min(BEAT_S, self._silence_s / 4))
            self._multiplex.queue(Kind.BEAT, 0, 0)
            if self._multiplex.beats != heard:
                heard, since = self._multiplex.beats, clock()
            elif clock() - since > self._silence_s:
                raise _Done

    async def _end_runner(self) -> None:
        await self._multiplex.asked_to_end.wait()
        with suppress(OSError, ValueError):
            os.kill(int((self._control / PID).read_text(encoding="ascii")), signal.SIGTERM)

    async def _give_way(self) -> None:
        """Its provider is told, or it would open another trunk and take the gateway back."""
        await self._replaced.wait()
        # It is asked again until the lock is free; with the loop closed that would be its death, and no end.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        self._multiplex.queue(Kind.TAKEN_OVER, 0, 0)
        await asyncio.sleep(_LAST_WORD_S)
        raise _Done

    async def _until_the_runner_listens(self) -> None:
        async with asyncio.timeout(RUNNER_WITHIN_S):
            while not _is_listened_at(self._control / SOCKET):  # noqa: ASYNC110 - it tells nobody
                await asyncio.sleep(_PAUSE_S)

    def _accept(self, stream: Stream) -> None:
        if self._tasks is None or stream.purpose != Purpose.RUNNER:
            raise Broken
        self._tasks.create_task(self._join_runner(stream), name="to the runner")

    async def _join_runner(self, stream: Stream) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._control / SOCKET))
        except OSError:
            stream.reset()
            return
        stream.accept()
        await splice(stream, reader, writer)

    async def _serve_gateway(self, listener: socket.socket) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                stream = self._multiplex.open(Purpose.GATEWAY)
            except Broken:
                writer.transport.abort()
                return
            await splice(stream, reader, writer)

        await asyncio.start_unix_server(serve, sock=listener)


def _is_listened_at(path: Path) -> bool:
    """Whether somebody takes connections there; one that says nothing does no harm."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as attempt:
        try:
            attempt.connect(str(path))
        except OSError:
            return False
        return True


@asynccontextmanager
async def _standard_pipes() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=PIECE_BYTES)
    source, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    sink, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop), sys.stdout.buffer
    )
    try:
        yield reader, asyncio.StreamWriter(sink, protocol, None, loop)
    finally:
        source.close()
        sink.abort()


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


if __name__ == "__main__":
    sys.exit(main())
