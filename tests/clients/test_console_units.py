"""The console's pure parts, tested by Node's own runner; and what must hold of its files as text."""

import hashlib
import re
from pathlib import Path

from tests.running_node import CLIENTS, node

CONSOLE = Path(__file__).parents[2] / "clients" / "console"
OURS = [path for path in sorted(CONSOLE.rglob("*.js")) if path.parent.name != "vendor"]


async def test_the_consoles_own_tests_pass() -> None:
    tests = sorted((CLIENTS / "console").glob("*.test.mjs"))
    assert tests
    await node("--test", "--test-reporter=spec", *tests, within=50)


def test_third_party_files_are_the_published_ones() -> None:
    readme = (CONSOLE / "vendor" / "README.md").read_text()
    listed = dict(re.findall(r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", readme, re.MULTILINE))
    files = {path.name: path for path in (CONSOLE / "vendor").glob("*.js")}
    assert listed.keys() == files.keys()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[name]


def test_no_text_is_ever_made_into_html() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function"
    )
    for path in OURS:
        assert not forbidden.search(path.read_text()), path.name


def test_the_page_needs_no_inline_code_and_nothing_from_elsewhere() -> None:
    page = (CONSOLE / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page)
    for path in [CONSOLE / "index.html", *OURS, *CONSOLE.glob("*.css")]:
        assert not re.search(r"""(src|href|from|import|url)\b[\s=("']*https?://""", path.read_text()), (
            path.name
        )
