"""The served command runs on uvloop, whose transports are others: the stories that lean on them, there."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from tests.stories import test_preview, test_terminal

STORIES = (
    test_preview.test_websockets_go_through_whole,
    test_preview.test_large_bodies_go_both_ways,
    test_preview.test_a_hundred_at_once_are_served,
    test_preview.test_the_sessions_stop_ends_what_is_open,
    test_terminal.test_who_disconnects_leaves_no_process_behind,
    test_terminal.test_a_flood_is_held_back_inside_and_the_connection_stays,
)


@pytest.mark.parametrize("story", STORIES, ids=[story.__name__ for story in STORIES])
def test_ports_and_terminals_work_on_uvloop_too(story: Callable[[str], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await story("unsafe-subprocess")

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(bounded())
