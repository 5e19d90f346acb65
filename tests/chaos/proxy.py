"""A TCP proxy between clients and the server that does to connections what networks do.

`weather` decides for each connection, by number: see `Fair` and `Foul`. The server behind it may change
its port, or have none for a while: then connections are refused.
"""

import asyncio
import random
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Literal

PIECE = 64 * 1024


@dataclass
class Fate:
    """What happens to one connection once so many bytes have come from the server."""

    after_bytes: int
    how: Literal["cut", "reset", "half-close", "stall", "lag"]
    for_s: float = 0.0


Weather = Callable[[int], Fate | None]


def fair(_: int) -> Fate | None:
    return None


def foul(name: str, rate: float, most_bytes: int) -> Weather:
    """Each connection has dice of its own, so that its fate does not depend on what others do."""

    def fate(number: int) -> Fate | None:
        dice = random.Random(f"{name}/{number}")
        if dice.random() >= rate:
            return None
        how = dice.choice(["cut", "cut", "reset", "half-close", "stall", "lag"])
        return Fate(dice.randrange(most_bytes), how, dice.random() * 0.5)

    return fate


class Proxy:
    """`cuts` counts the connections that were ended by it; `refused` those that were not even begun."""

    def __init__(self, weather: Weather) -> None:
        self.weather = weather
        self.target: int | None = None
        self.port = 0
        self.cuts = 0
        self.refused = 0
        self._count = 0
        self._writers: set[StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut_all(self) -> None:
        """End every connection now, wherever it is."""
        for writer in tuple(self._writers):
            self.cuts += 1
            writer.transport.abort()

    async def serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        number, self._count = self._count, self._count + 1
        server: StreamWriter | None = None
        self._writers.add(writer)
        try:
            if self.target is None:
                self.refused += 1
                return
            back, server = await asyncio.open_connection("127.0.0.1", self.target)
            async with asyncio.TaskGroup() as both:
                up = both.create_task(_pour(reader, server))
                await self._down(back, writer, self.weather(number))
                up.cancel()
        except* OSError:
            pass
        finally:
            self._writers.discard(writer)
            for end in (writer, server):
                if end is not None:
                    end.transport.abort()

    async def _down(self, reader: StreamReader, writer: StreamWriter, fate: Fate | None) -> None:
        if fate is None:
            await _pour(reader, writer)
            return
        left = fate.after_bytes
        while left > 0 and (data := await reader.read(min(PIECE, left))):
            left -= len(data)
            writer.write(data)
            await writer.drain()
        match fate.how:
            case "stall":
                await asyncio.sleep(fate.for_s)
                await _pour(reader, writer)
            case "lag":
                await _pour(reader, writer, lag_s=fate.for_s / 50)
            case "half-close":
                self.cuts += 1
                writer.write_eof()
                await asyncio.sleep(fate.for_s)
            case "reset":
                self.cuts += 1
                linger = b"\x01\0\0\0\0\0\0\0"
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            case "cut":
                self.cuts += 1


async def _pour(reader: StreamReader, writer: StreamWriter, *, lag_s: float = 0.0) -> None:
    while data := await reader.read(PIECE):
        if lag_s:
            await asyncio.sleep(lag_s)
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        with suppress(OSError):
            writer.write_eof()


@asynccontextmanager
async def proxy(weather: Weather = fair) -> AsyncIterator[Proxy]:
    made = Proxy(weather)
    async with asyncio.TaskGroup() as tasks:
        serving: set[asyncio.Task[None]] = set()

        def accept(reader: StreamReader, writer: StreamWriter) -> None:
            task = tasks.create_task(made.serve(reader, writer))
            serving.add(task)
            task.add_done_callback(serving.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        made.port = server.sockets[0].getsockname()[1]
        try:
            yield made
        finally:
            server.close()
            for task in serving:
                task.cancel()
