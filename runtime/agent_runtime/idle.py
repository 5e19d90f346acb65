"""Idle: when an agent, and then its sandbox, has had nothing to do for long enough, or lived long enough.

Nothing to do means: no turn is under way, the agent said nothing, no subagent and no command of its own
is at work in the background, nobody asked for anything, and nobody uses a port or a terminal: what one
finds at a port is often what the agent left running. What follows is decided by `lifecycle`.
Sessions that leave memory are the business of `loading`.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from typing import Final

from agent_runtime import moves
from agent_runtime.clock import now
from agent_runtime.machine import Machine
from agent_runtime.passages import Passages
from agent_runtime.records import Phase
from agent_runtime.runner_feed import RunnerFeed

_RESTING: Final = frozenset({Phase.READY, Phase.HIBERNATED})
_LEFT_AT: Final = 0.9
_LEFT_AT_LAST: Final = 0.95
"""Parts of a sandbox's lifetime; what is left is for a last look at its files and a snapshot."""
_LOOK_AGAIN_S: Final = 1.0
_LOOKS_IN_A_LIFE: Final = 1000


async def watch_idleness(
    machine: Machine, feed: RunnerFeed, passages: Passages, *, agent_idle_s: float, sandbox_idle_s: float
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
            quiet_s = min(loop.time() - max(machine.moved_at, feed.heard_at), passages.quiet_s())
        if quiet_s >= sandbox_idle_s:
            machine.feed(moves.SandboxIdle())
            return
        if ready and quiet_s >= agent_idle_s:
            machine.feed(moves.AgentIdle())
        else:
            # Never for longer than an agent may rest: one that hibernates may be roused meanwhile.
            await asyncio.sleep(min(due_s - quiet_s, agent_idle_s))


def when_to_leave(started_at: datetime, expires_at: datetime) -> tuple[datetime, datetime]:
    """When a sandbox is to be left before its provider ends it, and when also one that works for itself.

    Between the two whoever has something at work in the background may finish it.
    """
    life = expires_at - started_at
    return started_at + life * _LEFT_AT, started_at + life * _LEFT_AT_LAST


async def watch_lifetime(
    machine: Machine, feed: RunnerFeed, *, started_at: datetime, expires_at: datetime
) -> None:
    """Feed `SandboxAging` once, when the sandbox is to be left; asleep until then.

    A turn that is under way is told at once, and ends first. An agent that rests and has something at
    work in the background gets a little longer.
    """
    due, at_last = when_to_leave(started_at, expires_at)
    pause_s = min(_LOOK_AGAIN_S, (expires_at - started_at).total_seconds() / _LOOKS_IN_A_LIFE)
    while True:
        if (left_s := (due - now()).total_seconds()) > 0:
            await asyncio.sleep(left_s)
            continue
        phase = machine.state.phase
        may_wait = feed.at_work and now() < at_last
        if phase is Phase.RUNNING or (phase in _RESTING and not may_wait):
            machine.feed(moves.SandboxAging())
            return
        await asyncio.sleep(pause_s)
