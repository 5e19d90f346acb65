"""Scripted sandboxes for the suite of `ports.SandboxProvider`: they obey as the real runner's driver does."""

import asyncio
import json
from typing import Any

from agent_runtime.errors import SandboxFault
from agent_runtime.ports import SandboxSpec
from agent_runtime.testing.scripted_runner import Stage
from agent_runtime.testing.scripted_sandbox import ScriptedSandbox, ScriptedSandboxes


async def obeys(stage: Stage) -> None:
    """The orders of the runner's own scripted driver that the suite gives."""
    verb, _, rest = str(stage.message).partition(" ")
    result: dict[str, Any] = {"type": "result", "message": stage.turn_id, "interrupted": False}
    if verb == "lines":
        for number in range(int(rest.split()[0])):
            stage.line({"type": "line", "n": number})
    if "os.environ" in rest:
        result |= {"code": 0, "out": json.dumps(stage.recalled["environment"][0])}
    elif verb == "run":
        await asyncio.Event().wait()
    stage.line(result)


class Provider(ScriptedSandboxes):
    """Looks for its gateway as a real one does, and remembers none that is gone."""

    def __init__(self, *, snapshots: bool = True) -> None:
        super().__init__(obeys, snapshots=snapshots)

    async def create(self, spec: SandboxSpec) -> ScriptedSandbox:
        if not spec.gateway_socket.is_socket():
            raise SandboxFault("The gateway is missing.")
        self.made = self.living()
        sandbox = await super().create(spec)
        sandbox.runner.recalled["environment"] = [{**spec.needs.env, **spec.secrets}]
        return sandbox
