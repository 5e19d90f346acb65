"""`agent-runtime demo`: the main job, seen by a client like any other.

It serves a runtime and then talks to it as a stranger would: REST to create a session, Socket.IO to
join, to send and to listen. With a key in the environment the model is real; without one it is
scripted, and that is said. The tools, the sandbox and the agent are real either way.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import socketio
from rich.console import Console
from rich.table import Table

from agent_runtime.errors import RuntimeFault
from agent_runtime.gateway.anthropic import Anthropic
from agent_runtime.gateway.broker import Gateway
from agent_runtime.ports import ModelGateway
from agent_runtime.testing.scripted_model import ScriptedModel

from .composition import sandboxes, surroundings
from .rendering import Renderer
from .serve import Served, running
from .settings import Settings

MESSAGE: Final = (
    "Please write Conway's game of life here, in a few lines of Python, with a test. "
    "Improve it once, run it, and let a subagent look it over before you sum up."
)
_TURN_BOUND_S: Final = 600.0
"""A real model may think for minutes; a demo that says nothing for longer has failed."""
_INTERRUPTED: Final = 130
"""The exit code that shells give a command ended by Ctrl-C."""
_PROMISED: Final = {
    "the agent thought": lambda block: block["type"] == "thinking",
    "it wrote a file": lambda block: block.get("toolName") == "Write",
    "it edited a file": lambda block: block.get("toolName") == "Edit",
    "it ran commands": lambda block: block.get("toolName") == "Bash",
    "a subagent worked": lambda block: block["type"] == "subagent",
}


async def demo(settings: Settings, *, once: bool) -> int:
    """Run the demo; with `once` it ends after the turn, else at SIGINT or SIGTERM.

    Returns 0 when all that it promises happened, 1 when not, 130 when it was interrupted before.
    """
    async with surroundings(settings):
        return await _demo(settings, once=once)


async def _demo(settings: Settings, *, once: bool) -> int:
    console = Console()
    if not await _can_isolate(settings, console):
        return 1
    outcome = _INTERRUPTED
    async with _model(settings, console) as gateway, running(settings, gateway=gateway) as served:
        console.print(f"[bold]server[/]   {served.url}   data in {settings.data}/\n", soft_wrap=True)
        try:
            async with asyncio.timeout(None) as patience:
                _at_signal(lambda: patience.reschedule(0))
                outcome = await _perform(served, console)
                if not once:
                    console.print("[dim]Serving until Ctrl-C.[/]")
                    await asyncio.Event().wait()
        except TimeoutError:
            console.print("[dim]closing[/]")
        finally:
            _at_signal(lambda: None)  # it is closing already
            await served.runtime.manager.stop_all()
    return outcome


async def _perform(served: Served, console: Console) -> int:
    """Show the one turn and what it left; 0 when all that the demo promises happened."""
    shown = await _show(served, Renderer(console))
    missing = [promise for promise, kept in _PROMISED.items() if not any(map(kept, shown.blocks))]
    if shown.status != "completed":
        missing.append(f"the turn was to complete; it is {shown.status}")
    if not shown.files:
        missing.append("files were to come back")
    _tell_files(console, shown.files)
    for promise in missing:
        console.print(f"[red]did not happen:[/] {promise}")
    console.print(f"\n[bold]console[/]  {served.console}&session={shown.session_id}", soft_wrap=True)
    return 1 if missing else 0


class _Shown:
    """What came over the wire in the one turn."""

    def __init__(self) -> None:
        self.session_id = ""
        self.blocks: list[dict[str, Any]] = []
        self.files: list[dict[str, Any]] = []
        self.status = "not over"
        self.over = asyncio.Event()

    def take(self, envelope: dict[str, Any]) -> None:
        if envelope["type"] == "block_complete":
            self.blocks.append(envelope["block"])
        elif envelope["type"] == "turn_end":
            self.status = envelope["turn"]["status"]
            self.over.set()


async def _show(served: Served, renderer: Renderer) -> _Shown:
    """Create a session, send the message, print what streams in until the turn ends."""
    shown = _Shown()
    headers = {"Authorization": f"Bearer {served.token}"}
    async with aiohttp.ClientSession(served.url, headers=headers) as http:
        new = {"agentProfileRef": "default", "name": "Demo"}
        async with http.post("/api/sessions", json=new) as response:
            session_id = shown.session_id = (await response.json())["sessionId"]
        client = socketio.AsyncClient(handle_sigint=False)  # its own handler would cancel the server too

        async def on_event(_: str, envelope: dict[str, Any]) -> None:
            renderer.event(envelope)
            shown.take(envelope)

        client.on("*", on_event)
        await client.connect(served.url, auth={"token": served.token}, transports=["websocket"])
        try:
            await client.call("session:join", {"sessionId": session_id})
            message = {"sessionId": session_id, "content": MESSAGE, "messageId": "demo-1"}
            ack = await client.call("session:send", message)
            if not ack["ok"]:
                raise RuntimeFault(ack["error"]["detail"], code=ack["error"]["code"])
            async with asyncio.timeout(_TURN_BOUND_S):
                await shown.over.wait()
        except TimeoutError as error:
            raise RuntimeFault(f"the demo's turn did not end within {_TURN_BOUND_S:g} s") from error
        finally:
            renderer.ready()
            await client.disconnect()
        async with http.get(f"/api/sessions/{session_id}/files") as response:
            shown.files = (await response.json())["files"]
    return shown


@asynccontextmanager
async def _model(settings: Settings, console: Console) -> AsyncIterator[ModelGateway | None]:
    """The environment's own model, or a scripted one behind the same gateway."""
    if any(os.environ.get(name) for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")):
        console.print(
            "[bold]model[/]    real: the key in your environment stays outside of the sandbox", soft_wrap=True
        )
        yield None
        return
    console.print(
        "[bold]model[/]    [yellow]scripted[/]: no ANTHROPIC_API_KEY is set, so the words are written in "
        "advance and cost nothing; the agent, its tools and the sandbox are real",
        soft_wrap=True,
    )
    async with ScriptedModel(default="demo") as model:
        yield Gateway([Anthropic(model.url, api_key="scripted")], settings.data.resolve() / "gateway")


async def _can_isolate(settings: Settings, console: Console) -> bool:
    provider = sandboxes(settings, settings.data.resolve() / "sandboxes")
    found = await provider.probe()
    await provider.close()
    console.print(f"[bold]sandbox[/]  {found.provider}: {found.isolation}")
    if not found.available:
        for reason in found.reasons:
            console.print(f"         {reason}", soft_wrap=True)
    return found.available


def _tell_files(console: Console, files: list[dict[str, Any]]) -> None:
    table = Table("file", "bytes", "sha256", box=None, header_style="bold")
    for file in files:
        table.add_row(file["path"], str(file["sizeBytes"]), file["sha256"][:12])
    console.print()
    console.print(table)


def _at_signal(act: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, act)
