"""The served runtime of `pipeline`: the real one, whose agents are named pipes. A process of its own.

    python pipeline_server.py FOLDER [--runners N] [--coalesce S]

Everything is as `agent-runtime serve` makes it, but for two parts. The agent's lines are Claude's and read
by Claude's translator, while the driver in the sandbox is `scripted`, which hands on what is written to a
pipe. And with `--runners` all sandboxes are runners of one other process (`many_runners`), which waits in
FOLDER: five hundred Pythons would not fit into a machine that is to be measured.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import uvloop
from aiohttp import web

from agent_runtime.cli.collecting import sparing_the_loop
from agent_runtime.cli.composition import compose
from agent_runtime.cli.settings import SandboxKind, Settings
from agent_runtime.errors import SandboxFault
from agent_runtime.ports import AgentStart, Capabilities, Channel, SandboxProvider, SandboxSpec
from agent_runtime.records import SandboxRef, SandboxSnapshot
from agent_runtime.runtime import AgentRuntime
from agent_runtime.transport.auth import TokenAuthenticator
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from agent_runtime_adapters.sandboxes import channel
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess

TOKEN = "a-token-for-the-bench"
VIEWER_BYTES = 64 * 1024 * 1024
"""Viewers share their core with agents and runners; that a slow one is cut is not what is measured here."""
LIGHT_RUNNER = ("-m", "agent_runtime_sandbox", "--preload", "")
"""It imports no agent's SDK: there is none to be driven."""


class PipedAgent(ClaudeAgent):
    """Claude to whoever reads it; in the sandbox it is played."""

    def start(self, *_: Any, **__: Any) -> AgentStart:
        return AgentStart("scripted", {})


class StandingRunner:
    """A `ports.Sandbox` that somebody else began and ends."""

    def __init__(self, folder: Path, ref: SandboxRef) -> None:
        self._folder = folder
        self.ref = ref
        self.expires_at: datetime | None = None

    async def connect(self) -> Channel:
        return await channel.connect(self._folder)

    async def alive(self) -> bool:
        return True

    async def mishap(self) -> None:
        return None

    async def assign(self, session_id: str) -> None:
        pass

    async def snapshot(self) -> SandboxSnapshot:
        raise _nothing_of_the_kind()

    async def stop(self, grace_s: float = 0.0) -> None:
        pass


class StandingRunners:
    """A `ports.SandboxProvider` that hands out what is there, each once."""

    name = "unsafe-subprocess"

    def __init__(self, folder: Path, count: int) -> None:
        self._free = [folder / str(number) for number in range(count)]

    async def probe(self) -> Capabilities:
        return Capabilities(self.name, available=True, isolation="none")

    async def create(self, spec: SandboxSpec) -> StandingRunner:  # noqa: ARG002
        folder = self._free.pop(0)
        return StandingRunner(folder, self._ref(folder.name))

    def _ref(self, sandbox_id: str) -> SandboxRef:
        return SandboxRef(
            sandbox_id=sandbox_id, provider=self.name, isolation="none", started_at=datetime.now(UTC)
        )

    async def attach(self, ref: SandboxRef, *, gateway_socket: Path | None = None) -> StandingRunner:  # noqa: ARG002
        raise _nothing_of_the_kind()

    async def list(self, runtime_id: str) -> tuple[SandboxRef, ...]:  # noqa: ARG002
        return ()

    async def forget(self, snapshot: SandboxSnapshot) -> None:  # noqa: ARG002
        raise _nothing_of_the_kind()

    async def close(self) -> None:
        pass


def _nothing_of_the_kind() -> SandboxFault:
    return SandboxFault("Runners that stand have no snapshots, and are found once.", code="unsupported")


async def serve(folder: Path, runners: int, coalesce_within_s: float) -> None:
    settings = Settings(
        data=folder / "data",
        sandbox=SandboxKind.UNSAFE_SUBPROCESS,
        coalesce_within_s=coalesce_within_s,
        viewer_backlog_bytes=VIEWER_BYTES,
    )
    sandboxes: SandboxProvider = UnsafeSubprocess(folder / "data" / "sandboxes", runner=LIGHT_RUNNER)
    if runners:
        sandboxes = StandingRunners(folder, runners)
    config = compose(settings, authenticator=TokenAuthenticator(TOKEN))
    runtime = AgentRuntime(dataclasses.replace(config, agents=(PipedAgent(),), sandboxes=sandboxes))
    runner = web.AppRunner(runtime.app(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(15, ended.set)
        async with sparing_the_loop():
            print(json.dumps({"port": runner.addresses[0][1], "token": TOKEN}), flush=True)
            await ended.wait()
        await runtime.manager.stop_all()
    finally:
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runners", type=int, default=0)
    parser.add_argument("--coalesce", type=float, default=Settings().coalesce_within_s)
    told = parser.parse_args()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    os.environ.setdefault("ANTHROPIC_API_KEY", "sk-ant-bench")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(told.folder, told.runners, told.coalesce))


if __name__ == "__main__":
    main()
