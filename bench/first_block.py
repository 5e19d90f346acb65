"""How long a person waits for the agent's first block: cold, pooled, prewarmed, warm, beside the bare agent.

The variants run in rounds, one of each a round, in an order that turns, so that a busy minute of the
machine meets all of them. The model answers at once: what is left is our time and the agent's own.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from itertools import pairwise

from bare_agent import bare_agent
from figures import save, summary, table
from served import WITHIN_S, System, Turn, new_session, post, scripted_model, served, viewing

COLD, WARM, AGAIN = "ours, cold session", "ours, warm", "ours, woken again (history restored)"
PREWARMED, POOLED = "ours, prewarmed", "ours, cold session, pooled sandbox"
BARE_COLD, BARE_WARM = "bare agent, being spawned", "bare agent, second turn"
BARE_READY = "bare agent, set up and waiting"
PEERS = {COLD: BARE_COLD, POOLED: BARE_COLD, AGAIN: BARE_COLD, PREWARMED: BARE_READY, WARM: BARE_WARM}
SETTLED_S = 2.0
"""A runner that waits has imported the agent's library by then; who comes earlier waits for that."""
STARTING_SANDBOX, STARTING_AGENT = "Starting the sandbox", "Starting the agent"

Measured = dict[str, list[Turn]]


async def cold_warm_again(system: System, _: str, into: Measured) -> None:
    """One session: its first message, its second, and one after its sandbox was stopped."""
    session_id = await new_session(system)
    async with viewing(system, session_id) as viewer:
        into[COLD].append(await viewer.turn())
        into[WARM].append(await viewer.turn())
        await post(system, f"/api/sessions/{session_id}/stop")
        into[AGAIN].append(await viewer.turn())
    await post(system, f"/api/sessions/{session_id}/stop")


async def prewarmed(system: System, _: str, into: Measured) -> None:
    """The first message to an agent that waits."""
    session_id = await new_session(system)
    async with viewing(system, session_id) as viewer:
        await post(system, f"/api/sessions/{session_id}/prewarm")
        await viewer.until("session_status", phase="ready")
        into[PREWARMED].append(await viewer.turn())
    await post(system, f"/api/sessions/{session_id}/stop")


async def pooled(system: System, _: str, into: Measured) -> None:
    """The first message of a session for which a sandbox waits."""
    async with asyncio.timeout(WITHIN_S):
        while not await waiting(system):  # noqa: ASYNC110 - a server is asked
            await asyncio.sleep(0.1)
    await asyncio.sleep(SETTLED_S)
    session_id = await new_session(system)
    async with viewing(system, session_id) as viewer:
        into[POOLED].append(await viewer.turn())
    await post(system, f"/api/sessions/{session_id}/stop")


async def waiting(system: System) -> int:
    """How many sandboxes wait for a session."""
    async with system.http.get("/ready") as answer:
        return int((await answer.json())["parts"]["pool"]["waiting"])


async def bare(_: System, model_url: str, into: Measured) -> None:
    """The binary by hand: from its spawn, and its second turn."""
    async with bare_agent(model_url) as agent:
        into[BARE_COLD].append(await agent.turn(since_spawn=True))
        into[BARE_WARM].append(await agent.turn())


async def bare_ready(_: System, model_url: str, into: Measured) -> None:
    """The binary by hand: its first turn after it has set itself up."""
    async with bare_agent(model_url) as agent:
        await agent.ready()
        into[BARE_READY].append(await agent.turn())


VARIANTS: tuple[Callable[[System, str, Measured], Awaitable[None]], ...] = (
    cold_warm_again,
    pooled,
    prewarmed,
    bare,
    bare_ready,
)


async def measure(runs: int) -> Measured:
    """So many runs of each; one round before them is not counted: it fills caches and probes."""
    measured: Measured = defaultdict(list)
    async with (
        scripted_model() as model_url,
        served(model_url) as system,
        served(model_url, pool={"size": 1}) as with_pool,
    ):
        for variant in VARIANTS:
            await variant(with_pool if variant is pooled else system, model_url, defaultdict(list))
        for run in range(runs):
            first = run % len(VARIANTS)
            for variant in VARIANTS[first:] + VARIANTS[:first]:
                await variant(with_pool if variant is pooled else system, model_url, measured)
            print(f"round {run + 1} of {runs}", flush=True)
    return measured


def steps(turn: Turn) -> dict[str, float]:
    """Where the time to a cold session's first block goes, as its viewer is told."""
    marks = {
        "message accepted (durable)": turn.accepted - turn.sent,
        "sandbox is being started": turn.said(STARTING_SANDBOX),
        "sandbox runs, agent is being started": turn.said(STARTING_AGENT),
        "agent waits, turn begun": turn.at("turn_start"),
        "first block": turn.first_block,
    }
    ordered = dict(sorted(marks.items(), key=lambda mark: mark[1]))
    return dict(
        zip(ordered, (after - before for before, after in pairwise((0.0, *ordered.values()))), strict=True)
    )


def tell(measured: Measured) -> dict[str, object]:
    """Print it; return what is kept. Milliseconds."""
    first = {name: summary([turn.first_block for turn in turns], 1000) for name, turns in measured.items()}
    whole = {name: summary([turn.end for turn in turns], 1000) for name, turns in measured.items()}
    ratios = {name: round(first[name]["median"] / first[peer]["median"], 2) for name, peer in PEERS.items()}
    order = [COLD, POOLED, AGAIN, BARE_COLD, PREWARMED, BARE_READY, WARM, BARE_WARM]
    table(
        "From sending a message to the agent's first block, ms",
        ["variant", "median", "min", "max", "x bare", "turn's end, median"],
        [
            [
                name,
                *(first[name][key] for key in ("median", "min", "max")),
                ratios.get(name, 1.0),
                whole[name]["median"],
            ]
            for name in order
        ],
    )
    return {
        "unit": "ms",
        "first_block": first,
        "turn_end": whole,
        "ratio_to_bare": ratios,
        "cold_steps": tell_steps(measured[COLD]),
    }


def tell_steps(turns: list[Turn]) -> dict[str, dict[str, float]]:
    """Print and return the steps of cold sessions."""
    parts: dict[str, list[float]] = defaultdict(list)
    for turn in turns:
        for name, seconds in steps(turn).items():
            parts[name].append(seconds)
    split = {name: summary(samples, 1000) for name, samples in parts.items()}
    table(
        "A cold session's way to its first block: ms since the line above",
        ["until", "median", "min", "max"],
        [[name, *(figures[key] for key in ("median", "min", "max"))] for name, figures in split.items()],
    )
    return split


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="first_block", description=__doc__)
    parser.add_argument("--runs", type=int, default=10, help="of each variant (default: 10)")
    save("first_block", tell(asyncio.run(measure(parser.parse_args(argv).runs))))


if __name__ == "__main__":
    main()
