"""A runner as a real process over a real unix socket, and a small client to drive it."""

import asyncio
import base64
import itertools
import os
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent_runtime_sandbox import frames

Frame = dict[str, Any]


class RunnerClient:
    """One connection. Kept frames gather in `kept`, in the order of arrival."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.kept: list[Frame] = []
        self.chunks: list[Frame] = []
        self.hello: Frame = {}
        self._reader = reader
        self._writer = writer
        self._splitter = frames.LineSplitter()
        self._replies: dict[object, Frame] = {}
        self._ids = itertools.count(1)

    def say(self, kind: str, **fields: Any) -> None:
        self._writer.write(frames.encode({"k": kind, **fields}))

    def say_raw(self, data: bytes) -> None:
        self._writer.write(data)

    async def command(self, kind: str, **fields: Any) -> Frame:
        """Send a command and read until its reply."""
        number = next(self._ids)
        self.say(kind, id=number, **fields)
        return await self.reply_to(number)

    async def reply_to(self, number: object) -> Frame:
        while number not in self._replies:
            await self._read()
        return self._replies.pop(number)

    async def result(self, kind: str, **fields: Any) -> Any:
        """As `command`, for one that is to succeed."""
        reply = await self.command(kind, **fields)
        assert reply["ok"], reply
        return reply["result"]

    async def refusal(self, kind: str, **fields: Any) -> str:
        """As `command`, for one that is to fail; returns the code."""
        reply = await self.command(kind, **fields)
        assert not reply["ok"], reply
        code: str = reply["error"]["code"]
        return code

    async def until(self, wanted: Callable[[Frame], object]) -> Frame:
        """Read until a kept frame is there that is wanted."""
        seen = 0
        while True:
            for frame in self.kept[seen:]:
                if wanted(frame):
                    return frame
            seen = len(self.kept)
            await self._read()

    async def until_kind(self, kind: str) -> Frame:
        return await self.until(lambda frame: frame["k"] == kind)

    async def until_file(self, path: str, change: str | None = None) -> Frame:
        return await self.until(
            lambda frame: frame["k"] == "file" and frame["path"] == path and change in (None, frame["change"])
        )

    async def until_result(self, uuid: str) -> Frame:
        """Read until the scripted driver has played a message."""
        return await self.until(lambda frame: frame["k"] == "agent" and frame["line"].get("message") == uuid)

    async def until_closed(self) -> None:
        """Read until the runner hangs up."""
        try:
            while True:
                await self._read()
        except (EOFError, ConnectionError):
            return

    async def put(self, path: str, data: bytes) -> Any:
        """Write a whole file in pieces."""
        result = None
        for at in range(0, len(data) or 1, frames.CHUNK_BYTES):
            piece = base64.b64encode(data[at : at + frames.CHUNK_BYTES]).decode()
            result = await self.result("write", path=path, data=piece, append=at > 0)
        return result

    async def get(self, path: str) -> bytes:
        """Read a whole file."""
        self.chunks.clear()
        await self.result("read", path=path)
        assert [chunk["last"] for chunk in self.chunks] == [False] * (len(self.chunks) - 1) + [True]
        return b"".join(base64.b64decode(chunk["data"]) for chunk in self.chunks)

    async def start_scripted(self, **options: Any) -> None:
        await self.result("start", driver="scripted", options=options)

    def of_kind(self, kind: str) -> list[Frame]:
        return [frame for frame in self.kept if frame["k"] == kind]

    def changes(self) -> list[tuple[str, str]]:
        """Path and change of each `file` frame."""
        return [(frame["path"], frame["change"]) for frame in self.of_kind("file")]

    def close(self) -> None:
        self._writer.transport.abort()

    async def closed(self) -> None:
        self.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        data = await self._reader.read(256 * 1024)
        if not data:
            raise EOFError
        for line in self._splitter.feed(data):
            frame = frames.decode(line)
            match frame["k"]:
                case "hello":
                    self.hello = frame
                case "reply":
                    self._replies[frame["id"]] = frame
                case "chunk":
                    self.chunks.append(frame)
                case _:
                    self.kept.append(frame)


@dataclass
class RunnerProcess:
    """A runner and the directories around it."""

    process: asyncio.subprocess.Process
    directory: Path
    clients: list[RunnerClient] = field(default_factory=list)

    @property
    def workspace(self) -> Path:
        return self.directory / "workspace"

    async def raw(self) -> RunnerClient:
        """A connection on which nothing has been said."""
        client = await _connected(self.directory)
        self.clients.append(client)
        return client

    async def attach(self, after: int = 0) -> RunnerClient:
        """A connection that has been greeted."""
        client = await self.raw()
        client.say("attach", after=after)
        while not client.hello:
            await client._read()
        return client

    def memory_bytes(self) -> int:
        """Resident memory of the runner's process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS"))


@asynccontextmanager
async def running(
    *,
    gateway: Path | None = None,
    orphan_timeout: float = 60.0,
    preload: str = "",
    ignore: tuple[str, ...] = (),
    max_file_bytes: int = 32 * 2**20,
    max_files: int = 100_000,
    options: tuple[str, ...] = (),
    first: tuple[Frame, ...] = (),
) -> AsyncIterator[RunnerProcess]:
    """A runner with an empty workspace; ended with everything of it. `options`: more of its command line.

    `first` is said by a client that is connected before there is a runner: the first of its clients.

    `gateway` is the socket to the model, relative to the runner's directory.
    """
    with tempfile.TemporaryDirectory(prefix="runner-") as name:
        directory = _prepared(name)
        with socket.socket(socket.AF_UNIX) as listener, (directory / "journal").open("w+b") as journal:
            listener.bind(str(directory / "runner.sock"))
            listener.listen()
            clients = [await _connected(directory)] if first else []
            for client, frame in itertools.product(clients, first):
                client.say_raw(frames.encode(frame))
            command = [sys.executable, "-P", "-m", "agent_runtime_sandbox"]
            command += ["--listen-fd", str(listener.fileno()), "--journal-fd", str(journal.fileno())]
            command += ["--orphan-timeout", str(orphan_timeout), "--preload", preload]
            command += [f"--ignore={name}" for name in ignore]
            command += ["--max-file-bytes", str(max_file_bytes), "--max-files", str(max_files), *options]
            process = await asyncio.create_subprocess_exec(
                *command,
                env=_environment(directory, gateway),
                pass_fds=(listener.fileno(), journal.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
            )
        runner = RunnerProcess(process, directory, clients)
        try:
            yield runner
        finally:
            for client in runner.clients:
                await client.closed()
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
            await process.wait()


async def _connected(directory: Path) -> RunnerClient:
    return RunnerClient(*await asyncio.open_unix_connection(directory / "runner.sock", limit=2**20))


def _prepared(name: str) -> Path:
    directory = Path(name).resolve()
    (directory / "workspace").mkdir()
    (directory / "home").mkdir()
    return directory


def _environment(directory: Path, gateway: Path | None) -> dict[str, str]:
    environment = {
        **{name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ},
        frames.WORKSPACE_ENV: str(directory / "workspace"),
        frames.HOME_ENV: str(directory / "home"),
    }
    return environment | ({frames.GATEWAY_ENV: str(directory / gateway)} if gateway else {})
