"""Idle: when an agent, and then its sandbox, has had nothing to do for long enough.

Nothing to do means: no turn is under way, the agent said nothing, no subagent and no command of its own
is at work in the background, and nobody asked for anything. What follows is decided by `lifecycle`.
Sessions that leave memory are the business of `loading`.
"""

from __future__ import annotations

import asyncio
from typing import Final

from agent_runtime import moves
from agent_runtime.machine import Machine
from agent_runtime.records import Phase
from agent_runtime.runner_feed import RunnerFeed

_RESTING: Final = frozenset({Phase.READY, Phase.HIBERNATED})


async def watch_idleness(
    machine: Machine, feed: RunnerFeed, *, agent_idle_s: float, sandbox_idle_s: float
) -> None:
    """Feed `AgentIdle` and `SandboxIdle` when they are due, asleep in between; ends with the sandbox.

    `agent_idle_s` counts from the agent's last sign of life, `sandbox_idle_s` from then or, where the
    agent was ended before, from that end.
    """
    loop = asyncio.get_running_loop()
    while True:
        ready = machine.state.phase is Phase.READY
        hibernated = machine.state.phase is Phase.HIBERNATED
        due_s = sandbox_idle_s if hibernated else min(agent_idle_s, sandbox_idle_s)
        quiet_s = 0.0
        if machine.state.phase in _RESTING and not feed.at_work:
            quiet_s = loop.time() - max(machine.moved_at, feed.heard_at)
        if quiet_s >= sandbox_idle_s:
            machine.feed(moves.SandboxIdle())
            return
        if ready and quiet_s >= agent_idle_s:
            machine.feed(moves.AgentIdle())
        else:
            # Never for longer than an agent may rest: one that hibernates may be roused meanwhile.
            await asyncio.sleep(min(due_s - quiet_s, agent_idle_s))
