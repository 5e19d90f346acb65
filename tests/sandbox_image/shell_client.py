"""Connections to a runner beside the session's own: to a port inside, to a terminal."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from agent_runtime_sandbox import frames
from tests.sandbox_image.runner_client import RunnerProcess

_KEPT = 10_000


class Stranger:
    """One connection, and the answer to its first line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def line(self) -> dict[str, Any]:
        return frames.decode(await self.reader.readline())

    def say(self, kind: str, **fields: Any) -> None:
        self.writer.write(frames.encode({"k": kind, **fields}))

    async def closed(self) -> bool:
        """Read to the end; fails where there is none within the test's time."""
        try:
            while await self.reader.read(2**20):
                pass
        except ConnectionError:
            pass
        return True


@asynccontextmanager
async def connected(runner: RunnerProcess, kind: str, **fields: Any) -> AsyncIterator[Stranger]:
    reader, writer = await asyncio.open_unix_connection(runner.directory / "runner.sock", limit=2**20)
    stranger = Stranger(reader, writer)
    stranger.say(kind, **fields)
    try:
        yield stranger
    finally:
        writer.transport.abort()


class Terminal(Stranger):
    """A terminal as a person has it. `shown` is all that came so far."""

    shown = b""
    code: int | None = None

    def type(self, data: bytes | str) -> None:
        raw = data.encode() if isinstance(data, str) else data
        self.say("data", data=base64.b64encode(raw).decode())

    async def until(self, wanted: str) -> re.Match[bytes]:
        """Read until what was shown has the pattern; that and the text before it are forgotten."""
        while not (found := re.search(wanted.encode(), self.shown)):
            frame = await self.line()
            assert frame["k"] == "data", frame
            self.shown = self.shown[-_KEPT:] + base64.b64decode(frame["data"])
        self.shown = self.shown[found.end() :]
        return found

    async def ask(self, command: str, wanted: str) -> re.Match[bytes]:
        self.type(command + "\n")
        return await self.until(wanted)

    async def exit(self) -> int:
        """Read to the end; returns the code of the last line."""
        while (frame := await self.line())["k"] == "data":
            self.shown += base64.b64decode(frame["data"])
        assert frame["k"] == "exit"
        assert await self.reader.read() == b""
        code: int = frame["code"]
        return code


@asynccontextmanager
async def terminal(runner: RunnerProcess, rows: int = 24, cols: int = 80) -> AsyncIterator[Terminal]:
    async with connected(runner, "terminal", rows=rows, cols=cols) as stranger:
        assert await stranger.line() == {"k": "opened"}
        yield Terminal(stranger.reader, stranger.writer)
