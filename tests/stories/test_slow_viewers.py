"""One viewer of a hundred stops reading while a session streams several MiB: only that one is cut.

The server is a process of its own, so that its memory can be measured; the one that stalls does so behind
a proxy that stops reading, as a laptop does that is closed.
"""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp

from tests.chaos.client import Connection, Viewer, connected
from tests.chaos.life import TOKEN
from tests.chaos.orders import stream
from tests.chaos.proxy import Fate
from tests.stories.test_rejoin_over_tcp import caught_up, ended, say, scene, until, watching
from tests.waiting import eventually

KIB, MIB = 1024, 1024 * 1024
OTHERS = 99
BACKLOG = 1 * MIB
LOG = 32 * MIB
TURNS, BLOCKS, PIECES, PIECE = 16, 2, 32, 4 * KIB
"""Several MiB in all, and in each turn half of what may wait for a viewer: every block is told in pieces, and
then whole. Nobody who reads falls behind by more than one turn, however slow the machine is."""
ALLOWED_GROWTH = 64 * MIB
"""What is streamed stands in the log, in the fold and in the store's cache; a hundred copies of it would be
some 800 MiB more."""


class Ear:
    """Counts what one viewer hears, in order."""

    def __init__(self) -> None:
        self.after = 0
        self.heard = 0
        self.in_order = True
        self.size = 0

    def hear(self, event: dict[str, Any]) -> None:
        self.heard += 1
        self.in_order &= event["seq"] == self.after + 1
        self.after = event["seq"]
        self.size += len(event.get("delta", ""))


async def test_who_stops_reading_is_cut_and_costs_nobody_anything() -> None:
    async with (
        scene(viewer_backlog_bytes=BACKLOG, log_bytes=LOG) as it,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        AsyncExitStack() as stack,
    ):
        slow = Viewer("slow", it.network.url, TOKEN, it.session_id)
        it.network.weather = lambda number: Fate(4 * KIB, "stall", 60.0) if number == 0 else None
        ears = [Ear() for _ in range(OTHERS)]
        for ear in ears:
            wire = await stack.enter_async_context(connected(http, it.url, TOKEN, ear.hear))
            await join(wire, it.session_id, ear)
        async with watching(slow):
            await until(slow, lambda: slow.joins["snapshot"] == 1)
            stalled_at = slow.state.position
            before = resident(it.pid)
            assert await slow_consumers(it.http) == 0

            peak = max([await say_and_watch(it, ears, turn) for turn in range(1, TURNS + 1)])

            assert await slow_consumers(it.http) == 1
            head = await head_of(it)
            assert all(ear.in_order for ear in ears)
            assert {ear.size for ear in ears} == {TURNS * BLOCKS * PIECES * PIECE}
            assert peak - before < ALLOWED_GROWTH, f"{(peak - before) / MIB:.0f} MiB more"

            assert stalled_at is not None
            assert slow.state.seq < head
            it.network.cut_all()  # what was cut at the server is seen to be
            await caught_up(it, slow)
            assert slow.joins["replay"] >= 1

            stayed = Viewer("fresh", it.url, TOKEN, it.session_id)
            async with watching(stayed):
                await caught_up(it, stayed)
            assert slow.state.bytes() == stayed.state.bytes()


async def join(wire: Connection, session_id: str, ear: Ear) -> None:
    ack = await wire.call("session:join", {"sessionId": session_id}, within_s=10)
    assert ack["ok"], ack
    ear.after = int(ack["position"].rpartition(":")[2])


async def say_and_watch(it: Any, ears: list[Ear], turn: int) -> int:
    """Have a turn said, until all ears have heard it; the most memory of the server meanwhile."""
    peak = resident(it.pid)
    text = stream(f"m-{turn}", blocks=BLOCKS, pieces=PIECES, piece_bytes=PIECE, pause_s=0.002)
    await say(it, text, f"m-{turn}")
    async with asyncio.TaskGroup() as tasks:
        over = tasks.create_task(heard(it, ears, turn))
        while not over.done():
            peak = max(peak, resident(it.pid))
            await asyncio.sleep(0.02)
    return peak


async def heard(it: Any, ears: list[Ear], turns: int) -> None:
    await ended(it, turns)
    head = await head_of(it)
    await eventually(lambda: all(ear.after >= head for ear in ears), within=30)


async def head_of(it: Any) -> int:
    async with it.http.get(f"/api/sessions/{it.session_id}") as response:
        return int((await response.json())["position"].rpartition(":")[2])


async def slow_consumers(http: aiohttp.ClientSession) -> int:
    async with http.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    (value,) = [line.split()[1] for line in lines if line.startswith("agent_runtime_slow_consumers_total ")]
    return int(float(value))


def resident(pid: int) -> int:
    """Bytes of memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    (kib,) = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(kib) * KIB
