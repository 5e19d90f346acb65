"""The console, used by a person with a real Chromium, on the whole system."""

import os
import shutil
from pathlib import Path

from tests.running_node import story
from tests.stories.serving import serving


async def test_a_person_works_in_the_console(tmp_path: Path) -> None:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "Chromium is not installed: run `make test`, which sees to it"
    os.environ["CHROMIUM"] = chromium
    async with serving() as server:
        done = await story("console_story.mjs", server.url, server.token, str(tmp_path), within=55)
    steps = {"watchTurn", "reloadInMidTurn", "reloadInMidText", "readFile", "interrupt", "remove"}
    assert steps <= done.keys()
