"""RunnerLink: one session's connection to the runner in its sandbox.

It speaks `frames`: sends commands and matches their replies, reads kept frames in batches, and
connects again from the last offset when the stream breaks while the sandbox lives. It checks the
shape of what comes in, because all of it is hostile; what frames mean is the business of
`runner_feed` and `wake`.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from agent_runtime.errors import RuntimeFault, SandboxFault
from agent_runtime.frozen import text_of
from agent_runtime.incoming import loads_for
from agent_runtime.ports import Channel, Sandbox
from agent_runtime.workspace import raw_path
from agent_runtime_sandbox.frames import CHUNK_BYTES, Frame, FrameError, FrameReader, decode, encode

_RECONNECTS: Final = 3
"""A runner that drops us so often in a row without one frame between is not worth more tries."""
_REPEATABLE: Final = frozenset({"message", "interrupt", "options", "list", "read", "sync", "close"})
"""Commands that do no harm when done twice (a message by its uuid): sent again after a break."""
NO_AGENT: Final = "agent_not_running"
"""The runner's word, and ours, for a command to an agent that has ended, or is to be started."""
REFUSED: Final = "runner_refused"
"""For a command that the runner did not carry out, whatever it says of the reason."""
COMMAND_TIMEOUT_S: Final = 30.0
_STOOD_STILL: Final = 1.1
"""So many times as long as meant: this process was stopped, and an answer may lie there unread."""
"""How long a reply may take. Commands are answered at once; only `start` and `sync` do real work."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """How a runner stands when we attach: its newest offset; its agent: none, running or exited."""

    head: int
    agent: str


class RunnerLink:
    """Commands in, frames out. Somebody must call `next_batch` again and again for replies to arrive.

    A reply is given out when the frames before it have been dealt with: at the next `next_batch`.
    `seen` is the newest offset that was read, `received` the bytes so far; `silent` is true from a
    command without a reply in time until the runner says anything again. `greeting` is what the runner
    said first. `take`, where it is set, is given kept frames as they arrive while `next_batch` waits;
    unless it returns None they are dealt with, as of `ports.ByteTaker`; the others come from there.
    """

    def __init__(self, sandbox: Sandbox, channel: Channel, *, max_file_bytes: int, after: int = 0) -> None:
        self.sandbox = sandbox
        self.greeting = Greeting(head=after, agent="none")
        self.seen = after
        self.received = 0
        self.silent = False
        self._channel = channel
        self._max_file_bytes = max_file_bytes
        self._loop = asyncio.get_running_loop()  # to ask for it takes a system call each time
        self._ids = itertools.count(1)
        self._replies: dict[str, asyncio.Future[Any]] = {}
        self._chunks: dict[str, bytearray] = {}
        self._late: list[Frame] = []
        self._early = b""
        self._reader = FrameReader(loads_for)
        self._connected = asyncio.Event()
        self._connected.set()
        self._closed = False
        self._mishap: SandboxFault | None = None
        self._given_up: SandboxFault | None = None
        self._idle_reconnects = 0
        self._waiting_since: float | None = None
        self.take: Callable[[list[Frame]], float | None] | None = None
        # Of bytes that `take` left: they come from the channel once more, and are not read twice.
        self._looked_at: list[Frame] | Exception | None = None

    @classmethod
    async def connect(cls, sandbox: Sandbox, *, max_file_bytes: int) -> RunnerLink:
        """Attach to the runner from the beginning of what it kept. Raises `SandboxFault`."""
        channel = await _attached(sandbox, after=0)
        return cls(sandbox, channel, max_file_bytes=max_file_bytes)

    @classmethod
    async def resume(cls, sandbox: Sandbox, *, after: int, max_file_bytes: int) -> RunnerLink:
        """Attach again where an earlier process was; returns when the runner has said how it stands.

        Raises `SandboxFault`: `sandbox_lost` when the runner is gone or another one, `sandbox_timeout`.
        """
        channel = await _attached(sandbox, after=after)
        link = cls(sandbox, channel, max_file_bytes=max_file_bytes, after=after)
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await link._take_greeting(after)
        except BaseException as error:
            await link.close()
            if isinstance(error, TimeoutError):
                raise SandboxFault("The sandbox does not answer.", code="sandbox_timeout") from error
            raise
        return link

    async def _take_greeting(self, after: int) -> None:
        """Read the first line; the rest stays for `next_batch`."""
        first, rest = b"", b""
        while b"\n" not in first:
            data = await self._channel.receive()
            if not data or len(first) > CHUNK_BYTES:
                raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
            first += data
        first, _, rest = first.partition(b"\n")
        try:
            self.greeting = _greeting(decode(first))
        except FrameError as error:
            raise SandboxFault("Another runner answers.", code="sandbox_lost") from error
        if self.greeting.head < after:
            raise SandboxFault("Another runner answers.", code="sandbox_lost")
        self._early = rest

    async def next_batch(self) -> list[Frame]:
        """The kept frames that arrived together, in order of offset, none twice.

        Raises `SandboxFault` (`sandbox_lost`) when the sandbox is gone or sends garbage.
        """
        try:
            while True:
                late, self._late = self._late, []
                for frame in late:
                    self._passing(frame)
                if frames := await self._receive():
                    self._idle_reconnects = 0
                    return frames
        except FrameError as error:
            self._end()
            detail = "The sandbox sent something that is no frame."
            raise SandboxFault(detail, code="sandbox_lost") from error

    async def command(self, kind: str, *, timeout_s: float = COMMAND_TIMEOUT_S, **fields: Any) -> Any:
        """Send a command and return its reply's result.

        Raises `SandboxFault`: `sandbox_timeout` without a reply in time, `sandbox_lost` when the
        connection breaks first and the command cannot be repeated or the sandbox is gone,
        `runner_refused` with the runner's own words when it says no.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    await self._connected.wait()
                    if self._closed:
                        raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
                    channel = self._channel
                    try:
                        return await self._ask(channel, kind, fields)
                    except _Broken:
                        if kind not in _REPEATABLE:
                            raise
                    if self._channel is channel and not self._closed:
                        self._connected.clear()  # the reader is about to find out, and connects again
        except TimeoutError as error:
            self.silent = True
            detail = f"The sandbox did not answer '{kind}' within {timeout_s:g} s."
            raise SandboxFault(detail, code="sandbox_timeout") from error

    async def _ask(self, channel: Channel, kind: str, fields: dict[str, Any]) -> Any:
        command_id = str(next(self._ids))
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._replies[command_id] = reply
        try:
            try:
                await channel.send(encode({"k": kind, "id": command_id, **fields}))
            except SandboxFault as fault:
                raise _Broken from fault
            return await reply
        finally:
            self._replies.pop(command_id, None)
            self._chunks.pop(command_id, None)

    async def read_file(self, path: str) -> bytes:
        """The bytes of a workspace file. Raises `SandboxFault`; `file_too_large` over the bound."""
        data = await self.command("read", path=raw_path(path))
        return data if isinstance(data, bytes) else b""  # an empty file comes in no chunk at all

    async def write_file(self, path: str, content: bytes) -> None:
        """Put a file into the workspace, in pieces that fit a frame."""
        pieces = [content[at : at + CHUNK_BYTES] for at in range(0, len(content), CHUNK_BYTES)] or [b""]
        for number, piece in enumerate(pieces):
            data = base64.b64encode(piece).decode("ascii")
            await self.command("write", path=raw_path(path), data=data, append=number > 0)

    async def watch(self, silence_s: float, *, wanted: Callable[[], bool]) -> None:
        """Give the runner up when it is wanted and says nothing for so long, asked or not.

        Whoever reads then gets `SandboxFault` (`sandbox_timeout`). Ends with the link. What we have not
        read yet is no silence: a slow store costs no sandbox, nor does a machine that stood still.
        """
        loop, pause_s = asyncio.get_running_loop(), silence_s / 3
        while not self._closed:
            await asyncio.sleep(pause_s)
            since = self._waiting_since
            if since is None or not wanted() or loop.time() - since < pause_s:
                continue
            asked = loop.time()
            with suppress(SandboxFault, TimeoutError):  # the reader finds out by itself
                async with asyncio.timeout(pause_s):
                    await self._channel.send(encode({"k": "ping", "id": "ping"}))
                    await asyncio.sleep(pause_s)
            if loop.time() - asked > pause_s * _STOOD_STILL:
                continue
            if self._waiting_since == since and not self._closed:
                self.silent = True
                detail = f"The sandbox said nothing for {silence_s:g} s."
                self._given_up = SandboxFault(detail, code="sandbox_timeout")
                await self.close()

    async def acknowledge(self, offset: int) -> None:
        """Let the runner forget what is durable here. Harmless when the connection is broken."""
        if offset and not self._closed:
            with suppress(SandboxFault):  # the reader finds out by itself
                await self._channel.send(encode({"k": "ack", "o": offset}))

    async def close(self) -> None:
        """Leave the sandbox; it goes on. Idempotent."""
        self._end()
        await self._channel.close()

    async def _receive(self) -> list[Frame]:
        """The next kept frames, from a new connection if need be. Raises `SandboxFault` (`sandbox_lost`)."""
        early, self._early = self._early, b""
        if early:
            return self._frames(early)
        while True:
            self._waiting_since = self._loop.time()
            try:
                data = await self._channel.receive(self._offered)
            except SandboxFault:
                data = b""
            finally:
                self._waiting_since = None
            looked_at, self._looked_at = self._looked_at, None
            if isinstance(looked_at, Exception):
                raise looked_at
            if looked_at is not None:
                return looked_at
            if data:
                self._note(data)
                return self._frames(data)
            await self._reconnect()

    def _offered(self, data: bytes) -> float | None:
        """Bytes that arrive while somebody waits for them; a `ports.ByteTaker`."""
        if self.take is None or self._late:
            return None
        self._note(data)
        try:
            frames, pause_s = self._frames(data), None
            if not self._late:
                pause_s = self.take(frames) if frames else 0.0
        except Exception as error:  # it is for whoever waits, and not for the loop
            self._looked_at = error
            return None
        if pause_s is None:
            self._looked_at = frames
            return None
        if frames:
            self._idle_reconnects = 0
        self._waiting_since = self._loop.time()
        return pause_s

    def _note(self, data: bytes) -> None:
        self.received += len(data)
        self.silent = False

    def _frames(self, data: bytes) -> list[Frame]:
        frames: list[Frame] = []
        for frame in self._reader.feed(data):
            if "o" in frame:
                if self._is_new(frame["o"]):
                    frames.append(frame)
            elif frames:
                self._late.append(frame)
            else:
                self._passing(frame)
        return frames

    def _is_new(self, offset: object) -> bool:
        if not isinstance(offset, int) or isinstance(offset, bool) or offset > self.seen + 1:
            raise FrameError("offset out of order")
        if offset <= self.seen:
            return False
        self.seen = offset
        return True

    def _passing(self, frame: Frame) -> None:
        """What is for us alone: the greeting, replies, and pieces of files."""
        if frame["k"] == "hello":
            if _greeting(frame).head < self.seen:
                raise FrameError("another runner answers")
            return
        command_id = frame.get("id")
        reply = self._replies.get(command_id) if isinstance(command_id, str) else None
        if reply is None or reply.done():
            return
        if frame["k"] == "chunk":
            self._collect(str(command_id), reply, frame.get("data"))
        elif frame["k"] == "reply" and frame.get("ok") is True:
            data = self._chunks.pop(str(command_id), None)
            reply.set_result(frame.get("result") if data is None else bytes(data))
        elif frame["k"] == "reply":
            self._fail(reply, _refusal(frame.get("error")))

    def _collect(self, command_id: str, reply: asyncio.Future[Any], data: object) -> None:
        try:
            piece = base64.b64decode(data if isinstance(data, str) else "", validate=True)
        except ValueError as error:
            raise FrameError("chunk is not base64") from error
        held = self._chunks.setdefault(command_id, bytearray())
        held += piece
        if len(held) > self._max_file_bytes:
            self._fail(reply, SandboxFault("The file is over the size that is kept.", code="file_too_large"))
            held.clear()

    async def _reconnect(self) -> None:
        """Connect again from where we are. Raises `SandboxFault` (`sandbox_lost`, or its mishap)."""
        self._connected.clear()
        self._fail_replies()
        await self._channel.close()
        self._reader = FrameReader(loads_for)
        while not self._closed and self._idle_reconnects < _RECONNECTS and await self.sandbox.alive():
            self._idle_reconnects += 1
            with suppress(SandboxFault):
                self._channel = await _attached(self.sandbox, after=self.seen)
                if await self._goes_on():
                    return
        self._end()
        gone = SandboxFault("The sandbox is gone.", code="sandbox_lost")
        raise self._given_up or await self.mishap() or gone

    async def mishap(self) -> SandboxFault | None:
        """What ended the sandbox or its agent, where the provider knows; the same to all who ask."""
        with suppress(SandboxFault):
            self._mishap = await self.sandbox.mishap() or self._mishap
        return self._mishap

    async def _goes_on(self) -> bool:
        """Open the way for commands, unless we were closed while we connected."""
        if self._closed:
            await self._channel.close()
            return False
        self._connected.set()
        return True

    def _end(self) -> None:
        """No more commands; whoever waits for one is told."""
        self._closed = True
        self._connected.set()
        self._fail_replies()

    def _fail_replies(self) -> None:
        for reply in self._replies.values():
            self._fail(reply, _Broken())

    @staticmethod
    def _fail(reply: asyncio.Future[Any], fault: RuntimeFault) -> None:
        if not reply.done():
            reply.set_exception(fault)
            reply.exception()  # its waiter may have given up: then nobody else asks


def _greeting(frame: Frame) -> Greeting:
    """Raises `FrameError`."""
    head, agent = frame.get("head"), frame.get("agent")
    if frame["k"] != "hello" or not isinstance(head, int) or isinstance(head, bool):
        raise FrameError("no greeting")
    return Greeting(head=head, agent=agent if isinstance(agent, str) else "none")


class _Broken(SandboxFault):
    """The connection broke before the reply."""

    def __init__(self) -> None:
        super().__init__("The connection to the sandbox broke.", code="sandbox_lost")


async def _attached(sandbox: Sandbox, *, after: int) -> Channel:
    """A connection to the runner on which frames after this offset flow. Raises `SandboxFault`."""
    channel = await sandbox.connect()
    try:
        await channel.send(encode({"k": "attach", "after": after}))
    except BaseException:
        await channel.close()
        raise
    return channel


def _refusal(error: object) -> SandboxFault:
    """The runner's own words, bounded."""
    said, code = (error.get("message"), error.get("code")) if isinstance(error, dict) else (error, None)
    detail = text_of(said[:500]) if isinstance(said, str) and said else "The runner refused."
    if code == NO_AGENT:
        return SandboxFault(detail, code=NO_AGENT)
    return SandboxFault(detail, code=REFUSED, retryable=False)
