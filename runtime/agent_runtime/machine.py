"""Machine: one session's state, and the effects that are still to be performed.

`lifecycle` says what follows from an input; here the state is kept, inputs are fed in as they come,
and one task performs the effects in order. How an effect is performed is in `performer`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

from agent_runtime import lifecycle
from agent_runtime.moves import Effect, Input
from agent_runtime.state import State, check


class Machine:
    """The state moves at once, at `feed`; what follows from it happens in `run`, one by one.

    `moved_at` is the loop's time of the last input.

    Args:
        moved: called after each move.
    """

    def __init__(self, *, moved: Callable[[], None]) -> None:
        self.state = State()
        self.moved_at = asyncio.get_running_loop().time()
        self._moved = moved
        self._effects: deque[Effect] = deque()
        self._wanted = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._over = False
        self._next = asyncio.Event()

    def feed(self, given: Input) -> None:
        """Make a move. After `end` the state still moves, and nothing follows."""
        self.state, effects = lifecycle.step(self.state, given)
        check(self.state)
        self.moved_at = asyncio.get_running_loop().time()
        self._moved()
        self._next.set()
        self._next = asyncio.Event()
        if effects and not self._over:
            self._effects.extend(effects)
            self._idle.clear()
            self._wanted.set()

    async def run(self, perform: Callable[[Effect], Awaitable[None]]) -> None:
        """Perform effects in order, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._effects:
                await perform(self._effects.popleft())
            self._idle.set()

    async def until(self, wanted: Callable[[State], bool]) -> State:
        """Return the first state that is wanted; whatever it is, once no more moves follow."""
        while not (self._over or wanted(self.state)):
            await self._next.wait()
        return self.state

    async def idle(self) -> None:
        """Return when no effect is left to be performed, or none will be any more."""
        await self._idle.wait()

    def end(self) -> None:
        """Perform nothing more; let go who waits."""
        self._over = True
        self._effects.clear()
        self._idle.set()
        self._next.set()
