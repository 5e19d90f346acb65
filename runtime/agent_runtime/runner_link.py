"""RunnerLink: one session's connection to the runner in its sandbox.

It speaks `frames`: sends commands and matches their replies, reads kept frames in batches, and
connects again from the last offset when the stream breaks while the sandbox lives. It checks the
shape of what comes in, because all of it is hostile; what frames mean is the business of `session`
and `wake`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from typing import Any, Final

from agent_runtime.errors import RuntimeFault, SandboxFault
from agent_runtime.ports import Channel, Sandbox
from agent_runtime_sandbox.frames import CHUNK_BYTES, Frame, FrameError, LineSplitter, decode, encode

_RECONNECTS: Final = 3
"""A runner that drops us so often in a row without one frame between is not worth more tries."""
COMMAND_TIMEOUT_S: Final = 30.0
"""How long a reply may take. Commands are answered at once; only `start` and `sync` do real work."""


class RunnerLink:
    """Commands in, frames out. `batches` must be consumed for replies to arrive."""

    def __init__(self, sandbox: Sandbox, channel: Channel, *, max_file_bytes: int) -> None:
        self.sandbox = sandbox
        self.seen = 0
        self._channel = channel
        self._max_file_bytes = max_file_bytes
        self._ids = itertools.count(1)
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._chunks: dict[str, bytearray] = {}
        self._splitter = LineSplitter()
        self._closed = False
        self._idle_reconnects = 0

    @classmethod
    async def connect(cls, sandbox: Sandbox, *, max_file_bytes: int) -> RunnerLink:
        """Attach to the runner from the beginning of what it kept. Raises `SandboxFault`."""
        link = cls(sandbox, await sandbox.connect(), max_file_bytes=max_file_bytes)
        await link._channel.send(encode({"k": "attach", "after": 0}))
        return link

    async def next_batch(self) -> list[Frame]:
        """The kept frames that arrived together, in order of offset, none twice.

        Raises `SandboxFault` (`sandbox_lost`) when the sandbox is gone or sends garbage.
        """
        while True:
            try:
                data = await self._channel.receive()
            except SandboxFault:
                data = b""
            if not data:
                await self._reconnect()
                continue
            try:
                frames = [frame for line in self._splitter.feed(data) if (frame := self._take(decode(line)))]
            except FrameError as error:
                raise SandboxFault(
                    "The sandbox sent something that is no frame.", code="sandbox_lost"
                ) from error
            if frames:
                self._idle_reconnects = 0
                return frames

    async def command(self, kind: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **fields: Any) -> Any:
        """Send a command and return its reply's result.

        Raises `SandboxFault`: `sandbox_timeout` without a reply in time, `sandbox_lost` when the
        connection breaks first, `runner_refused` with the runner's own words when it says no.
        """
        if self._closed:
            raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
        command_id = str(next(self._ids))
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies[command_id] = reply
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.send(encode({"k": kind, "id": command_id, **fields}))
                return await reply
        except TimeoutError as error:
            detail = f"The sandbox did not answer '{kind}' within {timeout_s:g} s."
            raise SandboxFault(detail, code="sandbox_timeout") from error
        finally:
            self._replies.pop(command_id, None)
            self._chunks.pop(command_id, None)

    async def read_file(self, path: str) -> bytes:
        """The bytes of a workspace file. Raises `SandboxFault`; `file_too_large` over the bound."""
        data = await self.command("read", path=path)
        return data if isinstance(data, bytes) else b""  # an empty file comes in no chunk at all

    async def write_file(self, path: str, content: bytes) -> None:
        """Put a file into the workspace, in pieces that fit a frame."""
        pieces = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)] or [b""]
        for number, piece in enumerate(pieces):
            data = base64.b64encode(piece).decode("ascii")
            await self.command("write", path=path, data=data, append=number > 0)

    async def acknowledge(self, offset: int) -> None:
        """Let the runner forget what is durable here. Harmless when the connection is broken."""
        if offset and not self._closed:
            try:
                await self._channel.send(encode({"k": "ack", "o": offset}))
            except SandboxFault:
                return  # the reader finds out by itself

    async def close(self) -> None:
        """Leave the sandbox; it goes on."""
        self._closed = True
        self._fail_replies()
        await self._channel.close()

    def _take(self, frame: Frame) -> Frame | None:
        """Keep what is for us alone; give back a kept frame that was not seen yet."""
        offset = frame.get("o")
        if offset is None:
            self._passing(frame)
            return None
        if not isinstance(offset, int) or offset > self.seen + 1:
            raise FrameError("offset out of order")
        if offset <= self.seen:
            return None
        self.seen = offset
        return frame

    def _passing(self, frame: Frame) -> None:
        command_id = frame.get("id")
        if frame["k"] == "chunk" and command_id in self._replies:
            self._collect(str(command_id), frame.get("data"))
        elif frame["k"] == "reply" and isinstance(command_id, str):
            reply = self._replies.get(command_id)
            if reply is None or reply.done():
                return
            if frame.get("ok") is True:
                data = self._chunks.pop(command_id, None)
                reply.set_result(frame.get("result") if data is None else bytes(data))
            else:
                detail = str(frame.get("error"))[:500]
                reply.set_exception(SandboxFault(detail, code="runner_refused", retryable=False))

    def _collect(self, command_id: str, data: object) -> None:
        try:
            piece = base64.b64decode(data if isinstance(data, str) else "", validate=True)
        except ValueError as error:
            raise FrameError("chunk is not base64") from error
        held = self._chunks.setdefault(command_id, bytearray())
        held += piece
        if len(held) > self._max_file_bytes:
            fault = SandboxFault("The file is over the size that is kept.", code="file_too_large")
            self._fail(self._replies[command_id], fault)
            held.clear()

    async def _reconnect(self) -> None:
        """Connect again from where we are. Raises `SandboxFault` (`sandbox_lost`)."""
        self._fail_replies()
        await self._channel.close()
        self._idle_reconnects += 1
        if self._closed or self._idle_reconnects > _RECONNECTS or not await self.sandbox.alive():
            self._closed = True
            raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
        self._splitter = LineSplitter()
        self._channel = await self.sandbox.connect()
        await self._channel.send(encode({"k": "attach", "after": self.seen}))

    def _fail_replies(self) -> None:
        for reply in self._replies.values():
            self._fail(reply, SandboxFault("The connection to the sandbox broke.", code="sandbox_lost"))

    @staticmethod
    def _fail(reply: asyncio.Future[Any], fault: RuntimeFault) -> None:
        if not reply.done():
            reply.set_exception(fault)
            reply.exception()  # its waiter may have given up: then nobody else asks
