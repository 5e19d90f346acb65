"""A viewer whose connection breaks at any byte, in mid-delta too, ends in the bytes of one that never left.

A real server in a process of its own, real sockets through a proxy that cuts them, and a client that
folds what it is told by docs/wire.md alone (`tests/chaos/fold`).
"""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest

from tests.chaos.client import Connection, Viewer, connected
from tests.chaos.life import TOKEN
from tests.chaos.orders import stream
from tests.chaos.processes import calm_server
from tests.chaos.proxy import Fate, Proxy, proxy


@dataclass
class Scene:
    """A server with a session; `network` is the way to it that breaks, `pid` its process."""

    url: str
    pid: int
    session_id: str
    network: Proxy
    http: aiohttp.ClientSession


@asynccontextmanager
async def scene(**bounds: Any) -> AsyncIterator[Scene]:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TemporaryDirectory(prefix="agent-runtime-") as folder:  # pytest's own are too long for sockets
        async with calm_server(Path(folder) / "data", **bounds) as life, proxy() as network:
            network.target = await life.ready
            url = f"http://127.0.0.1:{network.target}"
            async with aiohttp.ClientSession(url, headers=headers) as http:
                async with http.post("/api/sessions", json={"agentProfileRef": "chaos"}) as response:
                    session_id = (await response.json())["sessionId"]
                yield Scene(url, life.pid, session_id, network, http)


@asynccontextmanager
async def watching(*viewers: Viewer) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        watches = [tasks.create_task(viewer.watch()) for viewer in viewers]
        try:
            yield
        finally:
            for viewer in viewers:
                viewer.leave()
            for watch in watches:
                watch.cancel()


async def until(viewer: Viewer, holds: Any, within: float = 30) -> None:
    async with asyncio.timeout(within):
        while not holds():
            viewer.moved.clear()
            await viewer.moved.wait()


async def say(it: Scene, text: str, message_id: str) -> None:
    body = {"content": text, "messageId": message_id}
    async with it.http.post(f"/api/sessions/{it.session_id}/messages", json=body) as response:
        assert response.status == 202, await response.text()


async def ended(it: Scene, turns: int) -> None:
    """So many turns are over, and the session says that it rests."""
    async with asyncio.timeout(30):
        while True:
            async with it.http.get(f"/api/sessions/{it.session_id}/turns") as response:
                told = (await response.json())["turns"]
            async with it.http.get(f"/api/sessions/{it.session_id}") as response:
                phase = (await response.json())["session"]["runtime"]["phase"]
            if [turn["status"] for turn in told] == ["completed"] * turns and phase == "ready":
                return
            await asyncio.sleep(0.02)


async def caught_up(it: Scene, viewer: Viewer) -> None:
    async with it.http.get(f"/api/sessions/{it.session_id}") as response:
        head = (await response.json())["position"]
    await until(viewer, lambda: viewer.state.position == head)


@pytest.mark.parametrize("seed", range(3))
async def test_cut_at_any_byte_it_comes_back_to_what_one_sees_that_never_left(seed: int) -> None:
    dice = random.Random(seed)
    in_mid_delta = said = 0
    is_calm = False

    def weather(_: int) -> Fate | None:
        nonlocal in_mid_delta
        in_mid_delta += any(block["state"] == "streaming" for block in went.state.blocks.values())
        return None if is_calm else Fate(dice.randrange(500, 20_000), "cut")

    async with scene() as it:
        it.network.weather = weather
        stayed = Viewer("stayed", it.url, TOKEN, it.session_id)
        went = Viewer("went", it.network.url, TOKEN, it.session_id)
        async with watching(stayed, went):
            await until(stayed, lambda: stayed.state.position is not None)
            while went.joins["replay"] < 5 or in_mid_delta < 3:  # a slow machine is seldom back in time
                is_calm = False
                it.network.cut_all()
                said += 1
                text = stream(f"m-{said}", blocks=6, pieces=100, piece_bytes=20, pause_s=0.003)
                await say(it, text, f"m-{said}")
                await ended(it, said)
                is_calm = True  # what it missed may be more than comes through before a cut
                await caught_up(it, stayed)
                await caught_up(it, went)

        assert went.state.bytes() == stayed.state.bytes()
        assert stayed.joins == {"snapshot": 1, "replay": 0}
        texts = [block for block in went.state.blocks.values() if block["type"] == "assistant_text"]
        assert [len(block["content"]) for block in texts] == [2000] * 6 * said


@pytest.mark.parametrize(
    "position", ["too old", "elsewhere:3", "ahead", "", "null", "e:-1", "\u0661:1", "x" * 100]
)
async def test_a_position_of_no_use_gives_a_snapshot_and_then_all_that_follows(position: str) -> None:
    """One that falls out of the log, is of another log, or no position at all: never silence."""
    async with scene(log_bytes=20_000) as it:
        stayed = Viewer("stayed", it.url, TOKEN, it.session_id)
        back = Viewer("back", it.url, TOKEN, it.session_id)
        async with watching(stayed):
            await until(stayed, lambda: stayed.state.position is not None)
            await say(it, stream("m", blocks=2, pieces=200, piece_bytes=200, pause_s=0.0), "m")
            await ended(it, 1)
            await caught_up(it, stayed)
            known = {"too old": f"{stayed.state.epoch}:1", "ahead": f"{stayed.state.epoch}:99999999"}
            heard: list[dict[str, Any]] = []
            async with aiohttp.ClientSession() as http, connected(http, it.url, TOKEN, heard.append) as wire:
                ack = await joined(wire, it.session_id, known.get(position, position))
                assert ack["resume"] == "snapshot"
                back.state.take_join(ack)
                await say(it, stream("n", blocks=1, pieces=3, piece_bytes=10, pause_s=0.0), "n")
                await ended(it, 2)
                await caught_up(it, stayed)
                async with asyncio.timeout(10):
                    while not heard or f"{heard[-1]['epoch']}:{heard[-1]['seq']}" != stayed.state.position:
                        await asyncio.sleep(0.01)
        for event in heard:
            back.state.take_live(event)
        assert back.state.bytes() == stayed.state.bytes()


async def joined(wire: Connection, session_id: str, position: str) -> dict[str, Any]:
    ack = await wire.call("session:join", {"sessionId": session_id, "position": position}, within_s=10)
    assert ack["ok"], ack
    return ack
