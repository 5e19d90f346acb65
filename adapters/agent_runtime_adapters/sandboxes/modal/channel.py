"""The stream to a runner on Modal: one stream of the sandbox's trunk."""

from __future__ import annotations

import asyncio
from typing import Final

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import ByteTaker
from agent_runtime_sandbox.multiplex import Broken, Stream

RECEIVE_BYTES: Final = 256 * 1024
FLUSH_WITHIN_S: Final = 1.0


class ModalChannel:
    """A `ports.Channel`."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._closed = False

    async def receive(self, take: ByteTaker | None = None) -> bytes:  # noqa: ARG002
        """The next bytes; empty at the end. Raises `SandboxFault`."""
        try:
            return await self._stream.receive(RECEIVE_BYTES)
        except Broken as error:
            if self._closed:
                return b""
            raise _broken() from error

    async def send(self, data: bytes) -> None:
        """Write all of it. Raises `SandboxFault`."""
        if self._closed:
            raise _broken()
        try:
            await self._stream.send(data)
        except Broken as error:
            raise _broken() from error

    async def close(self) -> None:
        """Close both directions; what was sent still arrives, unless the other side does not read."""
        if self._closed:
            return
        self._closed = True
        self._stream.end()
        try:
            async with asyncio.timeout(FLUSH_WITHIN_S):
                while await self._stream.receive():
                    pass
        except (Broken, TimeoutError):
            pass
        finally:
            self._stream.reset()


def _broken() -> SandboxFault:
    return SandboxFault("The connection to the sandbox broke.")
