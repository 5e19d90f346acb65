"""`agent-runtime sessions`: a look at a running server's sessions through its REST interface."""

from __future__ import annotations

from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from agent_runtime.errors import InvalidRequest, RuntimeFault

from .rendering import Renderer

_TIMEOUT = aiohttp.ClientTimeout(total=30)


async def list_sessions(url: str, token: str) -> None:
    """Print the newest sessions. Raises `RuntimeFault` with the server's own words."""
    answer = await _get(url, token, "/api/sessions?limit=50")
    table = Table(box=None)
    table.add_column("session", no_wrap=True)  # whole: it is what one copies
    for heading in ("phase", "last activity", "cost", "profile", "name"):
        table.add_column(heading, overflow="fold")
    for session in answer["sessions"]:
        cost = f"${session['costUsd']:.4f}" if "costUsd" in session else ""
        table.add_row(
            session["sessionId"],
            session["runtime"]["phase"],
            session["lastActivity"][:16].replace("T", " "),
            cost,
            session["agentProfileReference"],
            session.get("name", ""),
        )
    _console().print(table)


async def show_session(url: str, token: str, session_id: str) -> None:
    """Print a session's newest blocks, and how its newest turn stands.

    Raises `RuntimeFault` with the server's own words.
    """
    if "/" in session_id:
        raise InvalidRequest("a session id has no '/'")
    snapshot = await _get(url, token, f"/api/sessions/{session_id}")
    renderer = Renderer(_console())
    for block in snapshot["blocks"]:
        renderer.block(block)
    turns = (await _get(url, token, f"/api/sessions/{session_id}/turns?limit=1"))["turns"]
    for turn in turns:
        renderer.turn(turn)


def _console() -> Console:
    """A terminal's own width; in a pipe, wide enough for a row to stay a row."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


async def _get(url: str, token: str, path: str) -> Any:
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as http,
            http.get(url.rstrip("/") + path, headers=headers) as response,
        ):
            answer = await response.json(content_type=None)
            if response.ok:
                return answer
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise RuntimeFault(f"no agent-runtime answers at {url}") from error
    raise RuntimeFault(str(answer.get("detail", "the server refused")), code=str(answer.get("code")))
