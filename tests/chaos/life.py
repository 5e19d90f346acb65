"""One life of a runtime process: the real parts, with faulty seams between them, until a signal.

SIGTERM closes in order and leaves sandboxes alive, SIGINT ends them too; anything else is sudden.
Started by `fork_server`; says `{"ready": PORT}` on the descriptor that it is given.
"""

import asyncio
import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

from aiohttp import web

from agent_runtime.cli.folder import held
from agent_runtime.config import RuntimeConfig
from agent_runtime.pool import PoolSettings
from agent_runtime.ports import GatewayEndpoint, SandboxProvider
from agent_runtime.profile import AgentProfile
from agent_runtime.runtime import AgentRuntime
from agent_runtime.testing.scripted_agent import ScriptedAgent
from agent_runtime.transport.auth import TokenAuthenticator
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from tests.chaos.awaits import tell_at_a_signal
from tests.chaos.faulty import Dice, FaultySandboxes, FaultyStore, SlowLog

TOKEN = "chaos-chaos-chaos"
PROFILE = AgentProfile(profile_id="chaos", name="Chaos", architecture="scripted")
LIGHT_RUNNER = ("-m", "agent_runtime_sandbox", "--preload", "")
"""A runner that does not import the Claude SDK before anybody asks for it."""
BOUNDS: dict[str, Any] = {
    "block_page": 1000,
    "sync_interval_s": 0.1,
    "interrupt_grace_s": 1.0,
    "wake_timeout_s": 20.0,
}


def live(told: dict[str, Any], say: int) -> None:
    """Run until a signal. `told`: data, provider, seed, life, calmAt, rates,
    logBytes, orphanTimeout; perhaps `pool`, and `bounds` over ours."""
    asyncio.run(_live(told, say))


async def _live(told: dict[str, Any], say: int) -> None:
    ended: asyncio.Queue[int] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.put_nowait, number)
    tell_at_a_signal()
    data = Path(told["data"])
    with held(data):
        runtime = AgentRuntime(_config(told, data))
        runner = web.AppRunner(runtime.app(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            os.write(say, json.dumps({"ready": runner.addresses[0][1]}).encode() + b"\n")
            if await ended.get() == signal.SIGINT and hasattr(runtime.manager, "stop_all"):
                await runtime.manager.stop_all()
        finally:
            await runner.cleanup()


def _config(told: dict[str, Any], data: Path) -> RuntimeConfig:
    def dice(seam: str) -> Dice:
        return Dice(f"{told['seed']}/{seam}/{told['life']}", told["rates"][seam], told["calmAt"])

    return RuntimeConfig(
        persistence=FaultyStore(SqlitePersistence(data / "agent-runtime.db"), dice("store")),
        log=SlowLog(dice("log"), max_bytes_per_session=told["logBytes"]),
        sandboxes=FaultySandboxes(_provider(told["provider"], data / "sandboxes"), dice("channel")),
        agents=(ScriptedAgent(),),
        gateway=SilentGateway(data / "gateway"),
        authenticator=TokenAuthenticator(TOKEN),
        profiles=(PROFILE,),
        runtime_id=str(told["seed"]),
        orphan_timeout_s=told["orphanTimeout"],
        pool=PoolSettings(size=told.get("pool", 0), max_age_s=1.0, profiles=(PROFILE.profile_id,)),
        **BOUNDS | told.get("bounds", {}),
    )


def _provider(name: str, root: Path) -> SandboxProvider:
    return LocalSandboxes(root) if name == "local" else UnsafeSubprocess(root, runner=LIGHT_RUNNER)


class SilentGateway:
    """Real sockets that nobody serves: the scripted agent asks no model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, socket.socket] = {}
        self._whose: dict[str, str] = {}

    async def open(self, session_id: str, *, lane: str | None = None, **_: object) -> GatewayEndpoint:
        name = lane or session_id
        path = self._folder / name / "gateway.sock"
        if name not in self._open:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            self._open[name] = listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(path))
            listener.listen()
        self._whose[name] = session_id
        return GatewayEndpoint(path, "no-token")

    async def close(self, session_id: str) -> None:
        for name in [name for name, whose in self._whose.items() if whose == session_id]:
            del self._whose[name]
            self._open.pop(name).close()

    async def aclose(self) -> None:
        for session_id in set(self._whose.values()):
            await self.close(session_id)
