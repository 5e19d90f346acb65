"""A process that was started without an event loop, as one that `anyio` has started.

As much of `anyio.abc.Process` as the SDK and the driver use.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
from typing import IO

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream

_READ_BYTES = 64 * 1024


class AdoptedProcess:
    """Wraps what `subprocess.Popen` gave, with all three of its streams as pipes."""

    def __init__(
        self, process: subprocess.Popen[bytes], stdin: _Sends, stdout: _Receives, stderr: _Receives
    ) -> None:
        self.stdin, self.stdout, self.stderr = stdin, stdout, stderr
        self.pid = process.pid
        self._process = process
        self._ended = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait() -> None:
            process.wait()
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._ended.set)

        threading.Thread(target=wait, name="agent-ends", daemon=True).start()

    @classmethod
    async def adopt(cls, process: subprocess.Popen[bytes]) -> AdoptedProcess:
        """From now on the running loop serves its streams and waits for it. Where that fails, it is ended."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        made: list[_Sends | _Receives] = []
        try:
            made.append(stdin := await _Sends.over(process.stdin))
            made.append(stdout := await _Receives.over(process.stdout))
            made.append(stderr := await _Receives.over(process.stderr))
        except BaseException:
            process.kill()
            threading.Thread(target=process.wait, name="agent-ends", daemon=True).start()
            for stream in made:
                await stream.aclose()
            for pipe in (process.stdin, process.stdout, process.stderr):
                asyncio.get_running_loop().call_soon(pipe.close)  # after those that have it
            raise
        return cls(process, stdin, stdout, stderr)

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Its exit code, once it has ended."""
        await self._ended.wait()
        code: int = self._process.returncode
        return code

    def send_signal(self, number: int) -> None:
        """Of no effect once it has ended."""
        self._process.send_signal(number)

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()


class _Receives(ByteReceiveStream):
    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.BaseTransport) -> None:
        self._reader = reader
        self._transport = transport

    @classmethod
    async def over(cls, pipe: IO[bytes]) -> _Receives:
        reader = asyncio.StreamReader(limit=_READ_BYTES)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return cls(reader, transport)

    async def receive(self, max_bytes: int = _READ_BYTES) -> bytes:
        data = await self._reader.read(max_bytes)
        if not data:
            raise anyio.EndOfStream
        return data

    async def aclose(self) -> None:
        self._reader.set_exception(anyio.ClosedResourceError())
        self._transport.close()


class _Sends(ByteSendStream):
    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer

    @classmethod
    async def over(cls, pipe: IO[bytes]) -> _Sends:
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())
        transport, _ = await loop.connect_write_pipe(lambda: protocol, pipe)
        return cls(asyncio.StreamWriter(transport, protocol, None, loop))

    async def send(self, item: bytes) -> None:
        self._writer.write(item)
        await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
