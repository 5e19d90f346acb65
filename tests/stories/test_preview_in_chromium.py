"""A page out of a sandbox, in a real Chromium beside the console: what it can do, and what it cannot."""

import os
import shutil
import socket
from pathlib import Path
from typing import Any

from tests.running_node import story
from tests.runtime.transport.world import ANNA
from tests.stories.inside import Inside, inside
from tests.stories.test_preview import SERVER

PAGES = Path(__file__).parent / "shown"
FILES = {SERVER.name: SERVER.read_text()} | {
    f"shown/{file.name}": file.read_text() for file in sorted(PAGES.iterdir())
}


async def told(place: Inside) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a page found, in a tab of its own and in that of the console."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "Chromium is not installed: run `make test`, which sees to it"
    os.environ["CHROMIUM"] = chromium
    port = await place.serve(SERVER.name)
    given = (place.world.url, ANNA, place.session_id, await place.shown(port), str(port))
    done = await story("preview_story.mjs", *given, within=50)
    assert done["opened"] == "hello from inside", "a person finds it in the console"
    return done["attempts"], done["inTheConsolesTab"]


def own_origins() -> dict[str, Any]:
    """A server whose previews have names of their own, which browsers know to be this machine."""
    with socket.socket() as found_free:
        found_free.bind(("127.0.0.1", 0))
        port = found_free.getsockname()[1]
    return {"port": port, "preview_origin": f"http://*.preview.localhost:{port}"}


NOT_OURS = {
    "api": "TypeError",
    "apiWithCookies": "TypeError",
    "console": "TypeError",
    "polling": "TypeError",
    "socket": "Refused",
    "popup": "SecurityError",
    "frame": "SecurityError",
}
"""What no page may do, wherever it is shown; a browser says no more than these names."""
OWN = {"ownFetch": 200, "ownSocket": "echoed", "ownModule": "imported"}


async def test_a_page_at_our_origin_can_neither_read_the_token_nor_call_us() -> None:
    async with inside(files=FILES) as place:
        for found in await told(place):
            assert found["origin"] == "opaque"
            assert found.items() >= (NOT_OURS | OWN).items()
            for name in ("sessionStorage", "localStorage", "cookie", "serviceWorker"):
                assert found[name] == "SecurityError", name
            assert ANNA not in str(found)
        assert await place.phase() == "ready", "it was not stopped"


async def test_a_page_at_an_origin_of_its_own_has_that_and_nothing_of_ours() -> None:
    async with inside(files=FILES, **own_origins()) as place:
        for found in await told(place):
            assert found["origin"] == "own"
            assert found.items() >= (NOT_OURS | OWN | {"absolutePath": 200}).items()
            assert (found["sessionStorage"], found["localStorage"], found["cookie"]) == ("{}", "{}", "")
            assert found["serviceWorker"] in {"TypeError", "SecurityError"}
            assert ANNA not in str(found)
        assert await place.phase() == "ready"


async def test_open_access_is_none_for_pages_that_are_shown() -> None:
    # Their origins are loopback names too.
    async with inside(files=FILES, authenticator=None, open_access=True, **own_origins()) as place:
        for found in await told(place):
            assert found.items() >= NOT_OURS.items()
        assert await place.phase() == "ready", "it was not stopped"
