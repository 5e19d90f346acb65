"""RunnerTalk: how the sandbox suites speak to the runner inside, without a runtime in between.

    gateway, one_of   a spec with a socket behind it; a sandbox that is ended whatever happens
    greeted           the first line of a connection
    Talk              attached from an offset: commands and their replies, kept frames in order

What a provider must keep is in `sandbox_contract` and `sandbox_work`; how a session speaks to a runner is
in `agent_runtime.runner_link`.
"""

from __future__ import annotations

import asyncio
import base64
import socket
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from agent_runtime.ports import Channel, Sandbox, SandboxProvider, SandboxSpec
from agent_runtime_sandbox import frames

RUNTIME_ID: Final = "runtime-1"
ATTACH: Final = frames.encode({"k": "attach", "after": 0})
HELLO_WITHIN_S: Final = 20.0
ANSWER_WITHIN_S: Final = 30.0


@contextmanager
def gateway(runtime_id: str = RUNTIME_ID, session_id: str = "session-1") -> Iterator[SandboxSpec]:
    """A spec whose gateway is a socket that listens and is answered by nobody."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "gateway.sock"
        listener.bind(str(path))
        listener.listen()
        # As a gateway does it: a sandbox's own user must get at the socket.
        path.parent.chmod(0o755)
        path.chmod(0o666)
        yield SandboxSpec(
            session_id=session_id, runtime_id=runtime_id, gateway_socket=path, orphan_timeout_s=300.0
        )


@asynccontextmanager
async def one_of(
    provider: SandboxProvider, *, runtime_id: str = RUNTIME_ID, **changes: Any
) -> AsyncIterator[Sandbox]:
    """A sandbox that is stopped in the end, whatever happens. `changes` are fields of its spec."""
    with gateway(runtime_id) as spec:
        sandbox = await provider.create(replace(spec, **changes))
        try:
            yield sandbox
        finally:
            await sandbox.stop()


async def greeted(sandbox: Sandbox) -> frames.Frame:
    """Connect, attach, return the first line, and disconnect."""
    channel = await sandbox.connect()
    try:
        await channel.send(ATTACH)
        return await first_line(channel)
    finally:
        await channel.close()


async def first_line(channel: Channel) -> frames.Frame:
    """The next frame of a channel."""
    splitter = frames.LineSplitter()
    async with asyncio.timeout(HELLO_WITHIN_S):
        while True:
            data = await channel.receive()
            assert data, "the runner closed the connection without a word"
            if lines := splitter.feed(data):
                return frames.decode(lines[0])


class Talk:
    """One attachment. `kept` are the kept frames that came; `agent` is how it stood at the greeting."""

    def __init__(self, channel: Channel) -> None:
        self.agent = ""
        self.kept: list[frames.Frame] = []
        self._channel = channel
        self._splitter = frames.LineSplitter()
        self._waiting: deque[frames.Frame] = deque()
        self._commands = 0

    async def command(self, kind: str, **fields: Any) -> Any:
        """Give a command; its result. A refusal is an AssertionError."""
        self._commands += 1
        name = f"c{self._commands}"
        await self._channel.send(frames.encode({"k": kind, "id": name, **fields}))
        content = b""
        async with asyncio.timeout(ANSWER_WITHIN_S):
            while True:
                frame = await self._next()
                if frame.get("id") != name:
                    continue
                if frame["k"] == "chunk":
                    content += base64.b64decode(frame["data"])
                    continue
                assert frame.get("ok") is True, frame.get("error")
                return content or frame.get("result")

    async def say(self, text: str, message_id: str) -> None:
        """Give the agent a message."""
        await self.command("message", uuid=message_id, content=text)

    async def until(self, wanted: Callable[[frames.Frame], bool]) -> frames.Frame:
        """The first kept frame that is wanted, of those that came or are to come."""
        for frame in self.kept:
            if wanted(frame):
                return frame
        async with asyncio.timeout(ANSWER_WITHIN_S):
            while True:
                frame = await self._next()
                if "o" in frame and wanted(frame):
                    return frame

    async def until_it_ends(self) -> None:
        """Take what comes until nothing does. Raises `SandboxFault` where the channel says it like that."""
        while data := await self._channel.receive():
            self._take(data)

    async def close(self) -> None:
        """Leave."""
        await self._channel.close()

    async def _next(self) -> frames.Frame:
        while not self._waiting:
            data = await self._channel.receive()
            assert data, "the connection ended"
            self._take(data)
        return self._waiting.popleft()

    def _take(self, data: bytes) -> None:
        for line in self._splitter.feed(data):
            frame = frames.decode(line)
            self._waiting.append(frame)
            if "o" in frame:
                self.kept.append(frame)


@asynccontextmanager
async def talking(sandbox: Sandbox, *, after: int = 0) -> AsyncIterator[Talk]:
    """Attached from an offset on; the greeting is taken."""
    talk = Talk(await sandbox.connect())
    try:
        await talk._channel.send(frames.encode({"k": "attach", "after": after}))  # noqa: SLF001 - our own
        async with asyncio.timeout(HELLO_WITHIN_S):
            hello = await talk._next()  # noqa: SLF001
        assert hello["k"] == "hello", hello
        talk.agent = hello["agent"]
        yield talk
    finally:
        await talk.close()


async def with_agent(talk: Talk) -> Talk:
    """Start the agent that plays what it is told."""
    await talk.command("start", driver="scripted", options={})
    return talk


def said(message_id: str) -> Callable[[frames.Frame], bool]:
    """Whether a frame is the scripted agent's last word on a message."""

    def is_result(frame: frames.Frame) -> bool:
        line = frame.get("line")
        return isinstance(line, dict) and line.get("type") == "result" and line.get("message") == message_id

    return is_result


def offsets(kept: list[frames.Frame]) -> list[int]:
    """Their offsets."""
    return [int(frame["o"]) for frame in kept]
