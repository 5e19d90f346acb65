"""How long a person waits for the agent's first block, and which part of it is ours.

    cold        from `POST /api/sessions`: the session, its sandbox and its agent are made
    pooled      the same, where a sandbox waits for a session
    prewarmed   the first message to an agent that waits
    warm        a further message of the same conversation
    hibernated  a message to a session whose agent was ended while it rested; its sandbox is there
    stopped     a message to a session whose sandbox is gone: files and history are restored as well

Beside them in the same rounds the bare agent (`bare_agent`) does what is left of each without us. The
model answers at once, so what a round's difference leaves is our own share. Nothing is pinned: an agent
uses all cores that it finds, ours and the bare one alike.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from bare_agent import bare_agent
from figures import difference, ratio, save, summary, table
from picture import Bar, Panel
from processes import WITHIN_S
from rounds import rounds
from served import System, Turn, Viewer, connected, joined, new_session, post, scripted_model, served

COLD, POOLED, PREWARMED, WARM = "cold", "pooled", "prewarmed", "warm"
HIBERNATED, STOPPED = "hibernated", "stopped"
BARE_SPAWNED, BARE_READY, BARE_WARM = (
    "bare: being spawned",
    "bare: set up and waiting",
    "bare: a further turn",
)
PEERS = {
    COLD: BARE_SPAWNED,
    POOLED: BARE_SPAWNED,
    HIBERNATED: BARE_SPAWNED,
    STOPPED: BARE_SPAWNED,
    PREWARMED: BARE_READY,
    WARM: BARE_WARM,
}
ROUNDS = 6
WARM_TURNS = 5
"""Of each round; their median is its sample."""
SETTLED_S = 1.0
"""A runner that waits has imported the agent's library by then; who comes earlier waits for that."""
REST_S = 0.3
STARTING_SANDBOX, STARTING_AGENT = "Starting the sandbox", "Starting the agent"

Seconds = dict[str, float]


@dataclass(frozen=True)
class Places:
    """Runtimes: as it comes, with a pool, and with agents that are soon ended when they rest."""

    plain: System
    pooled: System
    tired: System
    model_url: str


async def first_message(system: System, stack: AsyncExitStack) -> tuple[Viewer, float, Turn]:
    """A page that is open makes a session and sends a message: the seconds to the agent's first block."""
    client = await stack.enter_async_context(connected(system))
    began = time.perf_counter()
    viewer = await joined(client, await new_session(system))
    turn = await viewer.turn()
    return viewer, turn.sent - began + turn.first_block, turn


async def cold_warm_stopped(places: Places, steps: list[Seconds]) -> Seconds:
    """One session: its first message, further ones, and one after its sandbox was stopped."""
    async with AsyncExitStack() as stack:
        viewer, cold, turn = await first_message(places.plain, stack)
        steps.append(way_to_first_block(turn, cold))
        warm = [(await viewer.turn()).first_block for _ in range(WARM_TURNS)]
        await post(places.plain, f"/api/sessions/{viewer.session_id}/stop")
        stopped = (await viewer.turn()).first_block
        await post(places.plain, f"/api/sessions/{viewer.session_id}/stop")
    return {COLD: cold, WARM: statistics.median(warm), STOPPED: stopped}


async def pooled(places: Places) -> Seconds:
    """The first message of a session for which a sandbox waits."""
    async with asyncio.timeout(WITHIN_S):
        while not await waiting(places.pooled):  # noqa: ASYNC110 - a server is asked
            await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLED_S)
    async with AsyncExitStack() as stack:
        viewer, took, _ = await first_message(places.pooled, stack)
        await post(places.pooled, f"/api/sessions/{viewer.session_id}/stop")
    return {POOLED: took}


async def waiting(system: System) -> int:
    """How many sandboxes wait for a session."""
    async with system.http.get("/ready") as answer:
        return int((await answer.json())["parts"]["pool"]["waiting"])


async def prewarmed(places: Places) -> Seconds:
    """The first message to an agent that waits."""
    async with connected(places.plain) as client:
        viewer = await joined(client, await new_session(places.plain))
        await post(places.plain, f"/api/sessions/{viewer.session_id}/prewarm")
        await viewer.until("session_status", phase="ready")
        turn = await viewer.turn()
        await post(places.plain, f"/api/sessions/{viewer.session_id}/stop")
    return {PREWARMED: turn.first_block}


async def hibernated(places: Places) -> Seconds:
    """A message after the agent was ended because it rested."""
    async with AsyncExitStack() as stack:
        viewer, _, _ = await first_message(places.tired, stack)
        await viewer.until("session_status", phase="hibernated")
        turn = await viewer.turn()
        await post(places.tired, f"/api/sessions/{viewer.session_id}/stop")
    return {HIBERNATED: turn.first_block}


async def bare(places: Places) -> Seconds:
    """The binary by hand: from its spawn, and further turns."""
    async with bare_agent(places.model_url) as agent:
        spawned = (await agent.turn(since_spawn=True)).first_block
        further = [(await agent.turn()).first_block for _ in range(WARM_TURNS)]
    return {BARE_SPAWNED: spawned, BARE_WARM: statistics.median(further)}


async def bare_ready(places: Places) -> Seconds:
    """The binary by hand: its first turn after it has set itself up."""
    async with bare_agent(places.model_url) as agent:
        await agent.ready()
        return {BARE_READY: (await agent.turn()).first_block}


@asynccontextmanager
async def all_places() -> AsyncIterator[Places]:
    """Everything that is started once."""
    async with (
        scripted_model() as model_url,
        served(model_url) as plain,
        served(model_url, pool={"size": 1, "agents": True}) as with_pool,
        served(model_url, agentIdleTimeoutS=REST_S) as tired,
    ):
        yield Places(plain, with_pool, tired, model_url)


async def measure(count: int) -> tuple[dict[str, list[float]], list[Seconds]]:
    """Seconds to the first block by variant and round; and the steps of the cold ones."""
    steps: list[Seconds] = []
    async with all_places() as places:
        variants: dict[str, Callable[[], Awaitable[Seconds]]] = {
            COLD: partial(cold_warm_stopped, places, steps),
            BARE_SPAWNED: partial(bare, places),
            POOLED: partial(pooled, places),
            BARE_READY: partial(bare_ready, places),
            PREWARMED: partial(prewarmed, places),
            HIBERNATED: partial(hibernated, places),
        }
        taken = await rounds(variants, count)
    measured: dict[str, list[float]] = defaultdict(list)
    for of_variant in taken.values():
        for sample in of_variant:
            for name, seconds in sample.items():
                measured[name].append(seconds)
    return measured, steps[-count:]


def way_to_first_block(turn: Turn, whole: float) -> Seconds:
    """Where the time to a cold session's first block goes, as its viewer is told."""
    marks = {
        "session made and joined": 0.0,
        "message accepted (durable)": turn.accepted - turn.sent,
        "sandbox is being started": turn.said(STARTING_SANDBOX),
        "sandbox runs, agent is being started": turn.said(STARTING_AGENT),
        "agent waits, turn begun": turn.at("turn_start"),
        "first block": turn.first_block,
    }
    before_sending = whole - turn.first_block
    ordered = [(name, before_sending + at) for name, at in sorted(marks.items(), key=lambda mark: mark[1])]
    spans = zip(ordered, pairwise((0.0, *(at for _, at in ordered))), strict=True)
    return {name: after - before for (name, _), (before, after) in spans}


def tell(measured: dict[str, list[float]], steps: Sequence[Seconds]) -> tuple[dict[str, Any], list[Panel]]:
    """Print it; return what is kept and drawn. Milliseconds."""
    first = {name: summary(samples, 1000) for name, samples in measured.items()}
    ratios = {name: ratio(measured[name], measured[peer]) for name, peer in PEERS.items()}
    ratios["pooled to cold"] = ratio(measured[POOLED], measured[COLD])
    shares = {name: difference(measured[name], measured[peer], 1000) for name, peer in PEERS.items()}
    order = [COLD, POOLED, HIBERNATED, STOPPED, BARE_SPAWNED, PREWARMED, BARE_READY, WARM, BARE_WARM]
    table(
        "To the agent's first block, ms",
        ["variant", "median", "min", "max", "x bare", "our own share", "q1", "q3"],
        [
            [
                *(name, *(first[name][key] for key in ("median", "min", "max"))),
                *(ratios[name]["of_medians"] if name in ratios else "",),
                *(shares[name][key] if name in shares else "" for key in ("median", "q1", "q3")),
            ]
            for name in order
        ],
    )
    print(f"\npooled: {ratios['pooled to cold']['of_medians']} of cold")
    split = {name: summary([step[name] for step in steps], 1000) for name in steps[0]}
    table(
        "A cold session's way to its first block: ms since the line above",
        ["until", "median", "min", "max"],
        [[name, *(figures[key] for key in ("median", "min", "max"))] for name, figures in split.items()],
    )
    told = {"unit": "ms", "first_block": first, "own_share": shares, "ratios": ratios, "cold_steps": split}
    bars = [Bar.of(name, first[name], ours=name in PEERS) for name in order]
    return told, [Panel("To the agent's first block, ms", bars)]


async def gate() -> Seconds:
    """What `gate` compares: a cold and a warm start, medians of a few."""
    cold, warm = [], []
    async with scripted_model() as model_url, served(model_url) as system:
        for number in range(4):
            async with AsyncExitStack() as stack:
                viewer, took, _ = await first_message(system, stack)
                if number:  # the first waits for the probe
                    cold.append(took)
                warm += [(await viewer.turn()).first_block for _ in range(WARM_TURNS)]
                await post(system, f"/api/sessions/{viewer.session_id}/stop")
    return {COLD: statistics.median(cold), WARM: statistics.median(warm)}


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"default: {ROUNDS}")
    told, panels = tell(*asyncio.run(measure(parser.parse_args(argv).rounds)))
    save("start", told, *panels)


if __name__ == "__main__":
    main()
