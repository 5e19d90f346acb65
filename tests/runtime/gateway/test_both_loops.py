"""The gateway on the loop that a served runtime has; all other tests here run on asyncio's own.

Transports differ between the two, and connections change hands here in mid-air.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from tests.runtime.gateway import test_admission, test_passing, test_tunnels

BOUND_S = 20.0
STORIES = [
    story
    for module in (test_admission, test_passing, test_tunnels)
    for name, story in vars(module).items()
    if name.startswith("test_") and inspect.iscoroutinefunction(story)
    if not inspect.signature(story).parameters
]


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__.removeprefix("test_"))
def test_it_is_the_same_where_it_is_served(story: Callable[[], Awaitable[None]]):
    async def bounded() -> None:
        async with asyncio.timeout(BOUND_S):
            await story()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
