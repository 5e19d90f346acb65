"""The whole system for a story: real server, real sandbox, real agent; only the model is scripted.

    async with serving() as server:
        server.url, server.token      what a client needs
        server.model                  what was asked of the scripted model
        server.http                   a client session that is authorised already

Everything is below one temporary folder and ends with the block.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp

from agent_runtime.cli.serve import running
from agent_runtime.cli.settings import Settings
from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.gateway.network import Network
from agent_runtime.runtime import AgentRuntime
from agent_runtime.testing.script import Script
from agent_runtime.testing.scripted_model import ScriptedModel


@dataclass(frozen=True)
class Server:
    """A running system."""

    url: str
    token: str
    model: ScriptedModel
    runtime: AgentRuntime
    http: aiohttp.ClientSession
    data: Path


@asynccontextmanager
async def serving(
    *,
    data: Path | None = None,
    scripts: Mapping[str, Script] | None = None,
    network: Network | None = None,
    **settings: Any,
) -> AsyncIterator[Server]:
    """Run the system; `data` keeps it for a second run, `settings` are those of a served runtime.

    `network`: what sandboxes may reach through the gateway, instead of the public internet.
    """
    with TemporaryDirectory(prefix="agent-runtime-story-") as fresh:
        folder = data or Path(fresh)
        chosen = Settings(port=0, data=folder, **settings)
        async with ScriptedModel(scripts=scripts or {}) as model:
            vendor = Anthropic(model.url, api_key=REAL_KEY)
            gateway = Gateway([vendor], folder / "gateway", network=network)
            async with running(chosen, gateway=gateway) as served:
                headers = {"Authorization": f"Bearer {served.token}"}
                async with aiohttp.ClientSession(served.url, headers=headers) as http:
                    try:
                        yield Server(served.url, served.token, model, served.runtime, http, folder)
                    finally:
                        await served.runtime.manager.stop_all()


REAL_KEY = "sk-ant-story-key-that-must-stay-outside"
"""The key of the model upstream; no sandbox, log, record or wire may ever hold it."""
