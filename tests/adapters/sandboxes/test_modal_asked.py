"""What a host chooses is what Modal is asked for; ports and terminals are those of any other sandbox."""

import asyncio
import base64
from typing import Any

import pytest

from agent_runtime.needs import Resources, SandboxNeeds
from agent_runtime.ports import Channel, Sandbox
from agent_runtime.testing.runner_talk import one_of
from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_sandbox import frames
from agent_runtime_sandbox.image import USER, recipe
from tests.adapters.sandboxes.modal_world import QUICK, modal_world, needs_users

pytestmark = needs_users

TYPED = "id -un; stty size; python3 -m http.server 7007 --bind 127.0.0.1 &\n"
WRONG = ({"lifetime_s": 90_000}, {"app": "a b"}, {"image": "im age"}, {"unknown": 1})


async def asked(options: ModalOptions, **changes: Any) -> dict[str, Any]:
    """What the server was asked for, and the tags."""
    async with modal_world() as it, one_of(it.provider(options), **changes):
        (told,) = await it.living()
        return {**told["asked"], "tags": told["tags"], "app": told["appId"]}


async def test_every_option_reaches_modal() -> None:
    chosen = {"regions": ("us-east", "eu-west"), "cloud": "aws", "lifetime_s": 7200, "idle_s": 900}
    told = await asked(QUICK.model_copy(update=chosen))
    assert told["schedulerPlacement"]["regions"] == ["us-east", "eu-west"]
    assert told["cloudProviderStr"].lower() == "aws"
    assert told["timeoutSecs"] == 7200
    assert told["idleTimeoutSecs"] == 900


async def test_a_profiles_needs_reach_modal_and_a_life_is_the_shorter_of_both() -> None:
    needs = SandboxNeeds(resources=Resources(cpu=3, memory_bytes=2 * 2**30), lifetime_s=600)
    told = await asked(QUICK, needs=needs, labels={"profile": "reviewer"}, lane="lane-1")
    assert told["timeoutSecs"] == 600
    assert told["resources"]["memoryMb"] == 1024
    assert told["resources"]["memoryMbMax"] == 2048
    assert (told["resources"]["milliCpu"], told["resources"]["milliCpuMax"]) == (1000, 3000)
    assert told["networkAccess"]["networkAccessType"] == "BLOCKED"
    assert told["tags"]["profile"] == "reviewer"
    assert told["tags"]["session"] == "session-1"
    assert told["tags"]["agent-runtime"] == "runtime-1"
    assert told["tags"]["lane"] == "lane-1"


async def test_a_published_image_is_taken_by_its_name() -> None:
    async with modal_world() as it, one_of(it.provider()):
        (built,) = await it.living()
        named = it.provider(QUICK.model_copy(update={"image": recipe().name}))
        async with one_of(named):
            images = {told["asked"]["imageId"] for told in await it.living()}
        assert images == {built["asked"]["imageId"]}


async def test_apps_are_apart() -> None:
    async with modal_world() as it:
        mine, other = it.provider(), it.provider(QUICK.model_copy(update={"app": "another"}))
        async with one_of(mine) as sandbox:
            assert await other.list("runtime-1") == ()
            assert await mine.list("runtime-1") == (sandbox.ref,)


async def test_a_terminal_is_the_agents_and_a_port_is_reached() -> None:
    async with modal_world() as it, one_of(it.provider()) as sandbox:
        shell = await Line.to(sandbox, "terminal", rows=24, cols=80)
        await shell.say("data", data=_typed(TYPED))
        shown = await shell.shown_until("24 80")
        assert USER in shown
        async with asyncio.timeout(20):
            while (port := await Line.to(sandbox, "port", port=7007)).first["k"] != "opened":
                await asyncio.sleep(0.1)
            await port.channel.send(b"GET / HTTP/1.0\r\n\r\n")
            assert (port.rest + await port.channel.receive()).startswith(b"HTTP/1.0 200")
        await shell.say("data", data=_typed("exit 3\n"))
        async with asyncio.timeout(20):
            while (frame := await shell.line())["k"] != "exit":
                pass
        assert frame["code"] == 3
        await shell.channel.close()
        await port.channel.close()


def _typed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


class Line:
    """A connection to the runner beside the session's own."""

    first: frames.Frame

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.rest = b""

    @classmethod
    async def to(cls, sandbox: Sandbox, kind: str, **fields: Any) -> "Line":
        """Connect, and take the runner's answer."""
        it = cls(await sandbox.connect())
        await it.say(kind, **fields)
        it.first = await it.line()
        return it

    async def say(self, kind: str, **fields: Any) -> None:
        await self.channel.send(frames.encode({"k": kind, **fields}))

    async def line(self) -> frames.Frame:
        while b"\n" not in self.rest:
            data = await self.channel.receive()
            assert data, "the connection ended"
            self.rest += data
        line, _, self.rest = self.rest.partition(b"\n")
        return frames.decode(line)

    async def shown_until(self, words: str) -> str:
        shown = ""
        async with asyncio.timeout(20):
            while words not in shown:
                shown += base64.b64decode((await self.line())["data"]).decode(errors="replace")
        return shown


@pytest.mark.parametrize(
    "wrong", [{"lifetime_s": 90_000}, {"app": "a b"}, {"image": "im age"}, {"unknown": 1}]
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ModalOptions.model_validate(wrong)
