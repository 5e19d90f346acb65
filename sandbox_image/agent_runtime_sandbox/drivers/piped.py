"""Piped: the lines of a pipe that somebody else's program writes to, handed on where they arrive.

Knows no agent and no dialect: what a line means is its reader's business. Next door `scripted` follows a
named pipe with it; a driver whose agent is read by a library of its own has no use for it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

from agent_runtime_sandbox.drivers import Output
from agent_runtime_sandbox.frames import LineSplitter


class PipedLines(asyncio.Protocol):
    """Gives `output` a pipe's lines in the loop's own callback.

    The last read is one whose last line begins with `last`. With a task in between the loop came round twice
    for a line that comes alone, and a runner took a quarter more for it. What finds no room waits in `run`,
    and the pipe is not read meanwhile.
    """

    def __init__(self, output: Output, last: bytes) -> None:
        self._output = output
        self._last = last
        self._splitter = LineSplitter()
        self._pipe: asyncio.ReadTransport
        self._held: list[dict[str, Any]] = []
        self._failure: Exception | None = None
        self._is_over = False
        self._woken = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The pipe is there."""
        self._pipe = cast("asyncio.ReadTransport", transport)

    def data_received(self, data: bytes) -> None:
        """More of it. Raises nothing: a failure is `run`'s to raise."""
        try:
            lines = self._splitter.feed(data)
            # As text: in bytes `json` looks for their encoding first, a fifth of its time. It reads both.
            said = [json.loads(line.decode("utf-8", "surrogatepass")) for line in lines]
            if not said or self._output.take(said):
                said = []
        except Exception as error:
            self._failure = error
            self._stop()
            return
        self._held = said
        self._is_over = bool(lines) and lines[-1].startswith(self._last)
        if self._held or self._is_over:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody writes to it any more, or it cannot be read."""
        self._failure = self._failure or exc
        self._is_over = True
        self._woken.set()

    async def run(self) -> None:
        """Return when the last line, or the pipe's end, has been handed on. Raises what went wrong."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            if self._failure is not None:
                raise self._failure
            held, self._held = self._held, []
            if held:
                await self._output.lines(held)
            if self._is_over:
                return
            self._pipe.resume_reading()

    def _stop(self) -> None:
        self._pipe.pause_reading()
        self._woken.set()
