"""A host application with the runtime mounted below /agents, its own users and its own profile.

    pip install agent-runtime
    ALICE_KEY=... BOB_KEY=... ANTHROPIC_API_KEY=... python examples/host_app/app.py

The host decides who calls (`Keys`), where records are kept (SQLite here; any `PersistenceAdapter`)
and what agents are made of (`PROFILE`). Everything else is the runtime's.
"""

import hmac
import os
from pathlib import Path

from aiohttp import web

from agent_runtime import (
    AgentProfile,
    AgentRuntime,
    Credentials,
    Gateway,
    Principal,
    RuntimeConfig,
)
from agent_runtime_adapters.agents.claude.agent import ClaudeAgent
from agent_runtime_adapters.logs.memory import MemoryEventLog
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.sandboxes.local import LocalSandboxes

PROFILE = AgentProfile(
    profile_id="reviewer",
    name="Reviewer",
    instructions="You review code. You never change it.",
    tools=("Read", "Grep", "Glob"),
)


class Keys:
    """The host's own users, by key: each sees the sessions that are its own."""

    def __init__(self, owners: dict[str, str]) -> None:
        self._owners = owners

    async def authenticate(self, credentials: Credentials) -> Principal | None:
        """The owner of the key that was shown."""
        shown = (credentials.token or "").encode()
        for key, owner in self._owners.items():
            if hmac.compare_digest(shown, key.encode()):
                return Principal(owner)
        return None


async def page(_: web.Request) -> web.Response:
    """What the host serves itself."""
    return web.Response(text="The host's own page.")


def build(data: Path, owners: dict[str, str], gateway: Gateway) -> web.Application:
    """The host's application with the runtime in it."""
    runtime = AgentRuntime(
        RuntimeConfig(
            persistence=SqlitePersistence(data / "agents.db"),
            log=MemoryEventLog(),
            sandboxes=LocalSandboxes(data / "sandboxes"),
            agents=[ClaudeAgent()],
            gateway=gateway,
            authenticator=Keys(owners),
            profiles=[PROFILE],
        )
    )
    app = web.Application()
    app.router.add_get("/", page)
    runtime.attach(app, prefix="/agents")
    return app


if __name__ == "__main__":
    folder = Path("host-app-data").resolve()
    folder.mkdir(exist_ok=True)
    keys = {os.environ["ALICE_KEY"]: "alice", os.environ["BOB_KEY"]: "bob"}
    gateway = Gateway.from_environment(folder / "gateway")
    web.run_app(build(folder, keys, gateway), host="127.0.0.1", port=8080)
