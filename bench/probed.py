"""A runtime as it is served, with a probe on its loop, and agents that play what they are told.

    python bench/probed.py SETTINGS.json        one line of JSON when it accepts requests

Server, store, log, transport, sandbox and runner are the real ones; the translator is the Claude
agent's own. Only the agent's process is the runner's scripted driver, whose lines a message names.
`POST /probe` answers with what was seen since the last one: the longest time that the loop did not
come round, and the most memory. Clients are in `bulk` and `memory`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import uvloop
from aiohttp import web

from agent_runtime.cli.collecting import sparing_the_loop
from agent_runtime.cli.composition import compose
from agent_runtime.cli.settings import Settings
from agent_runtime.ports import AgentStart
from agent_runtime.profile import AgentProfile
from agent_runtime.runtime import AgentRuntime
from agent_runtime.transport.auth import TokenAuthenticator
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from processes import KIB, process
from served import System, client

TOKEN = "a-token-of-the-bench"
PACE_S = 0.001


class ToldAgent(ClaudeAgent):
    """The Claude agent as the runtime knows it; inside, the driver that plays what a message says."""

    def start(
        self,
        profile: AgentProfile,  # noqa: ARG002 - it needs no options
        options: Mapping[str, Any],  # noqa: ARG002
        *,
        agent_session_id: str | None,  # noqa: ARG002
        gateway_token: str,  # noqa: ARG002
    ) -> AgentStart:
        """Nothing but the driver."""
        return AgentStart("scripted", {})


class Probe:
    """Comes round every millisecond and remembers the longest delay."""

    def __init__(self) -> None:
        self._longest_s = 0.0
        self._busiest_s = 0.0
        self._is_new = True

    async def run(self) -> None:
        """Until cancelled. The loop's own clock stands still in a turn of uvloop: not of use here."""
        while True:
            due, busy = time.perf_counter() + PACE_S, time.process_time()
            await asyncio.sleep(PACE_S)
            if self._is_new:  # what was between belongs to the probe itself
                self._longest_s, self._busiest_s, self._is_new = 0.0, 0.0, False
                continue
            self._longest_s = max(self._longest_s, time.perf_counter() - due)
            self._busiest_s = max(self._busiest_s, time.process_time() - busy)

    async def tell(self, _: web.Request) -> web.Response:
        """What was seen since the last call; the call itself collects garbage, and does not count."""
        longest_s, busiest_s = self._longest_s, self._busiest_s
        kib = _memory()
        gc.collect()
        self._is_new = True
        told = {"peak_mib": kib["VmHWM"] / KIB, "rss_mib": kib["VmRSS"] / KIB}
        return web.json_response({"blocked_ms": longest_s * 1000, "busy_ms": busiest_s * 1000, **told})


def _memory() -> dict[str, int]:
    """The most and the present, in KiB; the most begins anew."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    Path("/proc/self/clear_refs").write_text("5")
    return {name: int(fields[name].split()[0]) for name in ("VmHWM", "VmRSS")}


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM."""
    config = compose(settings, authenticator=TokenAuthenticator(TOKEN))
    runtime = AgentRuntime(replace(config, agents=(ToldAgent(),)))
    app, probe = runtime.app(), Probe()
    app.router.add_post("/probe", probe.tell)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        over = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
        async with sparing_the_loop(), asyncio.TaskGroup() as tasks:
            print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
            watching = tasks.create_task(probe.run())
            await over.wait()
            watching.cancel()
        await runtime.manager.stop_all()
    finally:
        await runner.cleanup()


@asynccontextmanager
async def probed(data: Path, core: int | None = None, **settings: Any) -> AsyncIterator[System]:
    """Serve from a folder, in a process of its own."""
    config = data / "settings.json"
    named = {"port": 0, "data": str(data / "data"), "sandbox": "unsafe-subprocess", **settings}
    config.write_text(json.dumps(named))
    env = {**os.environ, "ANTHROPIC_BASE_URL": "http://127.0.0.1:9", "ANTHROPIC_API_KEY": "sk-ant-bench"}
    argv = (sys.executable, __file__, str(config))
    async with (
        process(*argv, env=env, core=core) as (server, ready),
        client(ready["url"], TOKEN) as http,
    ):
        yield System(ready["url"], TOKEN, server.pid, data / "data", http)


async def seen(system: System) -> dict[str, float]:
    """What the probe saw since this was asked last."""
    async with system.http.post("/probe") as response:
        response.raise_for_status()
        told: dict[str, float] = await response.json()
        return told


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.WriteLoggerFactory(sys.stderr))
    with (
        contextlib.suppress(KeyboardInterrupt),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as running,
    ):
        running.run(serve(Settings.model_validate(json.loads(Path(sys.argv[1]).read_text()))))
