"""State: where a session stands, and what must hold of that. Pure: values only.

Which move leads from one to the next is in `lifecycle`, the only one that makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from agent_runtime.records import Phase


@dataclass(frozen=True, slots=True)
class State:
    """All that decides what a session may do next.

    `turn` is the one under way; `queue` holds accepted turns in order; `handed` are those of them that the
    agent was given already, in the order of that; `interrupting` says that the turn under way was asked to
    end, `autonomous` that the agent began it by itself. `again` is a
    turn that had begun when its sandbox died, before the agent did anything for it: it is tried once
    more, and does not begin twice. `leaving`: its sandbox will not live for long any more, and is left
    when the turn under way is over. `attempt` counts wakes, so that the late answer of one that was
    given up is known for what it is.
    """

    phase: Phase = Phase.DORMANT
    turn: str | None = None
    queue: tuple[str, ...] = ()
    handed: tuple[str, ...] = ()
    interrupting: bool = False
    autonomous: bool = False
    leaving: bool = False
    again: str | None = None
    attempt: int = 0


def check(state: State) -> None:
    """What holds after every step. Raises AssertionError."""
    assert (state.turn is not None) == (state.phase is Phase.RUNNING)
    assert state.turn is not None or not (state.interrupting or state.autonomous or state.leaving)
    assert len(set(state.queue)) == len(state.queue)
    assert state.turn not in state.queue
    assert set(state.handed) <= set(state.queue)
    assert not state.handed or state.phase is Phase.RUNNING
    assert not (state.queue and state.phase in _WITHOUT_QUEUE)


_WITHOUT_QUEUE: Final = frozenset({Phase.READY, Phase.DORMANT, Phase.HIBERNATED, Phase.FAILED})
