"""Passages: connections into a session's sandbox beside the session's own: to ports, to terminals.

Each is a connection to the runner of its own, with its own first line (`agent_runtime_sandbox.frames`);
so every provider has them that can `connect`. They are part of the living sandbox and end with it.
What goes through them is nobody's business here. Who may open one is the manager's business, what
becomes of it that of the transport.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections import deque
from typing import Final

from agent_runtime.errors import RateLimited, RuntimeFault, SandboxFault
from agent_runtime.frozen import text_of
from agent_runtime.ports import Channel, Sandbox
from agent_runtime_sandbox.frames import Frame, FrameError, LineSplitter, decode, encode

OPEN_WITHIN_S: Final = 20.0
"""For a connection to the runner, and one to what listens inside; a provider far away takes a second."""
IN_USE_S: Final = 3600.0
"""What is open counts as used for so long after the last byte went through: tabs are forgotten."""
TERMINALS_A_MINUTE: Final = 30
_MINUTE_S: Final = 60.0
_ANSWER_BYTES: Final = 64 * 1024
_LINE_BYTES: Final = 1024 * 1024
_SAID_CHARS: Final = 200


class Passage:
    """A plain stream of bytes to a port inside. `early` are bytes that were read already."""

    def __init__(self, passages: Passages, channel: Channel, early: bytes) -> None:
        self._passages = passages
        self._channel = channel
        self._early = early
        self.moved_at = asyncio.get_running_loop().time()

    async def receive(self) -> bytes:
        """The next bytes; empty at the end. Raises `SandboxFault` when it breaks."""
        early, self._early = self._early, b""
        data = early or await self._channel.receive()
        self.moved_at = asyncio.get_running_loop().time()
        return data

    async def send(self, data: bytes) -> None:
        """Write all of it, waiting while the other side is slow. Raises `SandboxFault` when broken."""
        await self._channel.send(data)
        self.moved_at = asyncio.get_running_loop().time()

    async def close(self) -> None:
        """End it. Idempotent; never raises."""
        self._passages.forget(self)
        await self._channel.close()


class Terminal:
    """A shell inside, and its terminal. `code` is the shell's, once it ended by itself."""

    def __init__(self, passage: Passage) -> None:
        self.code: int | None = None
        self._passage = passage
        self._splitter = LineSplitter(_LINE_BYTES)
        self._lines: deque[bytes] = deque()

    async def receive(self) -> bytes:
        """What is shown next; empty at the end. Raises `SandboxFault` when it breaks."""
        try:
            while True:
                while self._lines:
                    frame = decode(self._lines.popleft())
                    if frame["k"] == "data" and (data := _shown(frame)):
                        return data
                    if frame["k"] == "exit":
                        self.code = _code(frame)
                        return b""
                data = await self._passage.receive()
                if not data:
                    return b""
                self._lines.extend(self._splitter.feed(data))
        except FrameError as error:
            raise _nonsense() from error

    async def write(self, data: bytes) -> None:
        """Type. Waits while nothing inside takes it. Raises `SandboxFault`."""
        await self._passage.send(encode({"k": "data", "data": base64.b64encode(data).decode("ascii")}))

    async def resize(self, rows: int, columns: int) -> None:
        """Another size. Raises `SandboxFault`."""
        await self._passage.send(encode({"k": "resize", "rows": rows, "cols": columns}))

    async def close(self) -> None:
        """End the shell and all that runs in it. Idempotent; never raises."""
        await self._passage.close()


class Passages:
    """All that are open into one sandbox."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._open: set[Passage] = set()
        self._used_at = asyncio.get_running_loop().time()
        self._terminals: deque[float] = deque(maxlen=TERMINALS_A_MINUTE)
        self._cut = False

    def quiet_s(self) -> float:
        """For how long nobody used any; 0 while one is open and in use."""
        present = asyncio.get_running_loop().time()
        used_until = max((passage.moved_at + IN_USE_S for passage in self._open), default=self._used_at)
        return max(0.0, present - max(used_until, self._used_at))

    async def port(self, port: int) -> Passage:
        """Connect to what listens at this port inside.

        Raises `SandboxFault` (`port_closed`, `unsupported`, `sandbox_lost`), `RateLimited`.
        """
        return await self._begin({"k": "port", "port": port})

    async def terminal(self, rows: int, columns: int) -> Terminal:
        """Start a shell on a terminal of this size.

        Raises `SandboxFault` (`terminal_failed`, `unsupported`, `sandbox_lost`), `RateLimited`.
        """
        present = asyncio.get_running_loop().time()
        if len(self._terminals) == TERMINALS_A_MINUTE and present - self._terminals[0] < _MINUTE_S:
            wait_ms = round((_MINUTE_S - (present - self._terminals[0])) * 1000)
            raise RateLimited("Too many terminals were opened just now.", retry_after_ms=wait_ms)
        self._terminals.append(present)
        return Terminal(await self._begin({"k": "terminal", "rows": rows, "cols": columns}))

    async def cut(self) -> None:
        """End all of them, for good. Idempotent."""
        self._cut = True
        async with asyncio.TaskGroup() as closing:
            for passage in tuple(self._open):
                closing.create_task(passage.close())

    def forget(self, passage: Passage) -> None:
        """One is over."""
        if passage in self._open:
            self._open.discard(passage)
            self._used_at = max(self._used_at, passage.moved_at)

    async def _begin(self, first: Frame) -> Passage:
        """Say the first line; return what is open once the runner has agreed."""
        try:
            async with asyncio.timeout(OPEN_WITHIN_S):
                channel = await self._sandbox.connect()
                try:
                    await channel.send(encode(first))
                    answer, early = await self._answer(channel)
                    _check(answer)
                    if self._cut:
                        raise SandboxFault("The sandbox is just being put away.", code="sandbox_lost")
                except BaseException:
                    await channel.close()
                    raise
        except TimeoutError as error:
            raise SandboxFault("The sandbox does not answer.", code="sandbox_timeout") from error
        passage = Passage(self, channel, early)
        self._open.add(passage)
        return passage

    async def _answer(self, channel: Channel) -> tuple[Frame, bytes]:
        """The runner's line, and what came with it. Raises `SandboxFault`."""
        said = b""
        while b"\n" not in said:
            data = await channel.receive()
            if not data and await self._sandbox.alive():
                detail = "The sandbox was begun by an earlier version, which does not know of this."
                raise SandboxFault(detail, code="unsupported", retryable=False)
            if not data:
                raise SandboxFault("The sandbox is gone.", code="sandbox_lost")
            said += data
            if len(said) > _ANSWER_BYTES and b"\n" not in said:
                raise _nonsense()
        line, _, early = said.partition(b"\n")
        try:
            return decode(line), early
        except FrameError as error:
            raise _nonsense() from error


def _check(answer: Frame) -> None:
    """Raises what stands for the runner's no."""
    if answer["k"] == "opened":
        return
    code, said = answer.get("code"), answer.get("message")
    if answer["k"] != "refused" or not isinstance(code, str) or not isinstance(said, str):
        raise _nonsense()
    said = text_of(said[:_SAID_CHARS])
    if code in {"too_many_connections", "too_many_terminals"}:
        raise RateLimited(f"The sandbox takes no more: {said}.", code=code)
    if code in {"port_closed", "terminal_failed"}:
        raise SandboxFault(f"The sandbox says no: {said}.", code=code)
    raise SandboxFault(f"The sandbox says no: {said}.", code="runner_refused", retryable=False)


def _shown(frame: Frame) -> bytes:
    data = frame.get("data")
    try:
        return base64.b64decode(data if isinstance(data, str) else "-", validate=True)
    except (binascii.Error, ValueError) as error:
        raise _nonsense() from error


def _code(frame: Frame) -> int | None:
    code = frame.get("code")
    return code if isinstance(code, int) and not isinstance(code, bool) and abs(code) < 2**31 else None


def _nonsense() -> RuntimeFault:
    return SandboxFault("The sandbox sent something that is no frame.", code="sandbox_lost")
