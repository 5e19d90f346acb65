"""The official Socket.IO client from npm, in Node, on the whole system."""

from tests.running_node import story
from tests.stories.serving import serving


async def test_the_official_client_misses_nothing_and_breaks_nothing() -> None:
    async with serving() as server:
        done = await story("socket_story.mjs", server.url, server.token, within=55)
    assert done["events"] > 100
    assert done["replayed"]["missed"] > done["replayed"]["events"] > 0
