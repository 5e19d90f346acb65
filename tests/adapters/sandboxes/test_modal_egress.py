"""The way out of a sandbox on Modal: the same gateway at the same address inside, over a trunk."""

import tempfile
from pathlib import Path

from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.needs import Egress, SandboxNeeds
from agent_runtime.ports import SandboxSpec
from agent_runtime.testing.runner_talk import RUNTIME_ID, greeted
from tests.adapters.sandboxes.modal_world import modal_world, needs_users
from tests.adapters.sandboxes.test_modal_inside import as_agent
from tests.stories.test_egress import HereAlone, packages

pytestmark = needs_users


async def test_allowed_hosts_are_reached_by_the_relay_and_nothing_else_is() -> None:
    curl = "curl -sS --max-time 20 -o /tmp/got -w '%{http_connect} %{http_code}\\n' --proxytunnel"
    relay = "-x http://127.0.0.1:3128"
    async with packages() as port, modal_world() as it:
        with tempfile.TemporaryDirectory(prefix="gw", dir="/tmp") as folder:
            egress = Egress(hosts=(f"packages.test:{port}", f"nowhere.test:{port}"))
            gateway = Gateway([Anthropic()], Path(folder) / "run", network=HereAlone())
            endpoint = await gateway.open("session-1", egress=egress)
            needs = SandboxNeeds(egress=egress)
            spec = SandboxSpec("session-1", RUNTIME_ID, endpoint.socket, 300.0, needs=needs)
            sandbox = await it.provider().create(spec)
            try:
                assert (await greeted(sandbox))["k"] == "hello"
                told = await as_agent(
                    it,
                    sandbox,
                    f"{curl} {relay} http://packages.test:{port}/; cat /tmp/got; echo;"
                    f"{curl} {relay} http://nowhere.test:{port}/;"
                    f"{curl} {relay} http://other.test:{port}/;"
                    f"{curl} http://127.0.0.1:{port}/",
                )
            finally:
                await sandbox.stop()
                await gateway.aclose()
    lines = [line for line in told.splitlines() if not line.startswith("curl:")]
    assert lines == ["200 200", "packages for all", "502 000", "403 000", "000 000"]
