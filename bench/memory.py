"""Resident memory: of a served runtime, of each loaded session, of each session with its idle agent.

PSS shares a page's size among those who map it, so figures may be added up; private memory is what
would be free again if the process ended. Linux only: both are read from /proc/<pid>/smaps_rollup.
"""

from __future__ import annotations

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from agent_runtime_adapters.sandboxes.registry import Registry
from figures import save, table
from idling import measure_idling, tell_idling
from processes import Memory, children, memory
from served import System, new_session, scripted_model, served, viewing

SETTLE_S = 3.0
"""An agent that has just answered still gives memory back; a runtime still syncs."""
MIB = 1024.0 * 1024.0


async def loaded_sessions(model_url: str, count: int) -> dict[str, dict[str, float]]:
    """A runtime without sessions, then with so many that are in memory and have no sandbox."""
    async with served(model_url) as system:
        await _load(
            system, await new_session(system)
        )  # what the first request brings in is not the session's
        before = await _settled(system.pid)
        for _ in range(count):
            await _load(system, await new_session(system))
        after = await _settled(system.pid)
    return {"runtime": mib(before.pss, before.private), "loaded_session": each(after, before, count)}


async def idle_agents(model_url: str, count: int) -> dict[str, dict[str, float]]:
    """What a session adds that has answered one message and now waits, its sandbox included."""
    async with served(model_url) as system, AsyncExitStack() as stack:
        await _answer(system, stack)  # imports and probes once
        before, inside_before = await _settled(system.pid), _sandboxes(system)
        for _ in range(count):
            await _answer(system, stack)
        after, inside_after = await _settled(system.pid), _sandboxes(system)
    nothing = Memory(0, 0, 0)
    roles = {
        f"sandbox: {role}": each(inside_after[role], inside_before.get(role, nothing), count)
        for role in sorted(inside_after)
    }
    whole = each(sum(inside_after.values(), nothing), sum(inside_before.values(), nothing), count)
    return {"agent_session: runtime's share": each(after, before, count), **roles, "sandbox: all": whole}


async def _load(system: System, session_id: str) -> None:
    async with system.http.get(f"/api/sessions/{session_id}") as response:
        response.raise_for_status()


async def _answer(system: System, stack: AsyncExitStack) -> None:
    viewer = await stack.enter_async_context(viewing(system, await new_session(system)))
    await viewer.turn()


async def _settled(pid: int) -> Memory:
    await asyncio.sleep(SETTLE_S)
    return memory(pid)


def _sandboxes(system: System) -> dict[str, Memory]:
    """Memory of all sandboxes' processes, by what they are."""
    found: dict[str, Memory] = {}
    for record in Registry(system.data / "sandboxes").all():
        assert record.keeper is not None
        for pid in _tree(record.keeper.pid):
            role = _role(pid)
            found[role] = found.get(role, Memory(0, 0, 0)) + memory(pid)
    return found


def _tree(pid: int) -> list[int]:
    return [pid, *(below for child in children(pid) for below in _tree(child))]


def _role(pid: int) -> str:
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return "runner" if name.startswith("python") else {"claude": "agent"}.get(name, name)


def each(after: Memory, before: Memory, count: int) -> dict[str, float]:
    """What was added by each of so many, in MiB."""
    return mib((after.pss - before.pss) / count, (after.private - before.private) / count)


def mib(pss: float, private: float) -> dict[str, float]:
    """Bytes, as they are shown and kept."""
    return {"pss_mib": round(pss / MIB, 3), "private_mib": round(private / MIB, 3)}


async def measure(sessions: int, agents: int) -> dict[str, dict[str, float]]:
    """All of it."""
    async with scripted_model() as model_url:
        return {**await loaded_sessions(model_url, sessions), **await idle_agents(model_url, agents)}


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="memory", description=__doc__)
    parser.add_argument("--sessions", type=int, default=200, help="loaded sessions (default: 200)")
    parser.add_argument("--agents", type=int, default=5, help="sessions with an idle agent (default: 5)")
    parser.add_argument("--soak", type=float, default=20.0, help="seconds of the soak (default: 20)")
    options = parser.parse_args(argv)
    measured = asyncio.run(measure(options.sessions, options.agents))
    table(
        f"Resident memory, MiB: mean of {options.sessions} loaded sessions, of {options.agents} idle agents",
        ["what", "PSS", "private"],
        [[name, *figures.values()] for name, figures in measured.items()],
    )
    found = asyncio.run(measure_idling(options.soak))
    tell_idling(found)
    counts = {"sessions": options.sessions, "agents": options.agents}
    save("memory", {"unit": "MiB", **counts, **measured, "idling_bytes": found})


if __name__ == "__main__":
    main()
