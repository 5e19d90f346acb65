"""A local Modal for a test or a demo: a process of its own, and a handle to make things go wrong in it."""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from agent_runtime_modal_local.faults import Fault
from agent_runtime_modal_local.folders import let_go, sweep, usual_root

START_WITHIN_S: Final = 30.0
STOP_WITHIN_S: Final = 20.0
ANSWER_WITHIN_S: Final = 30.0
LINE_BYTES: Final = 16 * 1024**2


class LocalModalError(Exception):
    """The server did not start, or refused what it was asked; the text says why."""


class LocalModal:
    """A server, from `async with` to its end. The SDK and the server never wait for each other.

    Args:
        root: where the server makes a folder of its own; what a killed one left there is removed.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or usual_root()
        self._process: subprocess.Popen[bytes] | None = None
        self._told: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        """Start it. Raises `LocalModalError`."""
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it, and with it everything that it made."""
        await asyncio.to_thread(self.stop)

    def start(self) -> None:
        """Start the server and wait until it serves. Raises `LocalModalError`."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "agent_runtime_modal_local", "--root", str(self._root), "--until-eof"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        spoken, _, _ = select.select([self._process.stdout], [], [], START_WITHIN_S)
        line = self._process.stdout.readline() if spoken else b""
        if not line:
            self.stop()
            raise LocalModalError("the local Modal did not start; its stderr says why")
        self._told = json.loads(line)

    def stop(self) -> None:
        """End the server; kill it where it does not listen. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        if self._root.exists():
            sweep(self._root)
        if self._root == usual_root():
            let_go(self._root)

    @property
    def pid(self) -> int:
        """The process of the server."""
        return int(self._told["pid"])

    @property
    def url(self) -> str:
        """Of the control plane."""
        return str(self._told["url"])

    @property
    def admin_port(self) -> int:
        """Where `ask` asks."""
        return int(self._told["admin"]["port"])

    @property
    def users(self) -> tuple[str, ...]:
        """Who is inside: root and agent, or root alone where the server is an ordinary user's."""
        return tuple(self._told["users"])

    def environment(self) -> dict[str, str]:
        """The variables that make the SDK talk to this server, and to nobody else."""
        return dict(self._told["environment"])

    @contextmanager
    def in_environment(self, more: Mapping[str, str] | None = None) -> Iterator[None]:
        """Set these variables (and more) in this process for a while."""
        wanted = self.environment() | dict(more or {})
        before = {name: os.environ.get(name) for name in wanted}
        os.environ.update(wanted)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    async def set_fault(self, fault: Fault) -> None:
        """Let something go wrong."""
        await self.ask("set_fault", fault=fault.to_json())

    async def clear_faults(self) -> None:
        """Let nothing go wrong any more; count calls from zero."""
        await self.ask("clear_faults")

    async def calls(self) -> dict[str, int]:
        """How often each RPC was called."""
        return dict(await self.ask("calls"))

    async def fail_builds(self, why: str) -> None:
        """No image layer that is new can be built, until faults are cleared."""
        await self.ask("fail_builds", why=why)

    async def sandboxes(self) -> list[dict[str, Any]]:
        """All sandboxes, living and ended, with what was asked for."""
        return list(await self.ask("sandboxes"))

    async def images(self) -> list[dict[str, Any]]:
        """All images, snapshots too, with the lines of their layers."""
        return list(await self.ask("images"))

    async def end(self, sandbox_id: str, how: str, exit_code: int | None = None) -> None:
        """End a sandbox from outside, as if `idle`, `lifetime`, `out_of_memory`, `internal_failure`, ..."""
        await self.ask("end", sandboxId=sandbox_id, how=how, exitCode=exit_code)

    async def advance(self, seconds: float) -> None:
        """Let time pass for the lifetime and the idle end of sandboxes."""
        await self.ask("advance", seconds=seconds)

    async def token_lifetime(self, seconds: float) -> None:
        """How long the tokens are good that are given out from now on."""
        await self.ask("token_lifetime", seconds=seconds)

    async def refuse_tokens(self) -> None:
        """Refuse all tokens that were given out.

        The SDK asks for another one only when its own says that it ends within 30 s; until then its
        handle of a sandbox fails.
        """
        await self.ask("refuse_tokens")

    async def at_death(self, seen: str) -> None:
        """What open streams see when their sandbox ends: `not_found` (as it begins) or `eof`."""
        await self.ask("at_death", seen=seen)

    async def data_path(self, *, up: bool) -> None:
        """Take the data path away, which breaks its connections, or bring it back."""
        await self.ask("data_path", up=up)

    async def ask(self, do: str, **words: Any) -> Any:
        """One line of `admin`. Raises `LocalModalError`."""
        async with asyncio.timeout(ANSWER_WITHIN_S):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.admin_port, limit=LINE_BYTES)
            try:
                line = json.dumps({"token": self._told["admin"]["token"], "do": do, **words})
                writer.write(line.encode() + b"\n")
                answer = json.loads(await reader.readline() or b'{"error": "the server is gone"}')
            finally:
                writer.close()
        if "error" in answer:
            raise LocalModalError(answer["error"])
        return answer["ok"]
