"""The agent's binary started by hand: what there would be without us, as a peer to measure against.

It gets the options that the runtime gives it, speaks to the same scripted model over plain TCP, and
works in a fresh folder with a fresh configuration, as in a fresh sandbox. No SDK, no sandbox.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from processes import WITHIN_S
from served import PROMPT, Turn

_LINE_LIMIT = 16 * 1024 * 1024
_OPTIONS = (
    *("--output-format", "stream-json", "--verbose", "--input-format", "stream-json"),
    *("--include-partial-messages", "--permission-mode", "bypassPermissions"),
    *("--setting-sources=", "--strict-mcp-config", "--allow-dangerously-skip-permissions"),
)


class BareAgent:
    """A running binary. `began` is when it was spawned."""

    def __init__(self, process: asyncio.subprocess.Process, began: float) -> None:
        self.began = began
        self._process = process

    async def ready(self) -> None:
        """Wait until it has set itself up, as the SDK does before it gives it a message."""
        self._write({"type": "control_request", "request_id": "1", "request": {"subtype": "initialize"}})
        async with asyncio.timeout(WITHIN_S):
            async for _, native in self._lines():
                if native["type"] == "control_response":
                    return

    async def turn(self, *, since_spawn: bool = False) -> Turn:
        """Give it a message; the block is there when its line is on standard output."""
        sent = self.began if since_spawn else time.perf_counter()
        message = {"role": "user", "content": PROMPT}
        self._write({"type": "user", "message": message, "parent_tool_use_id": None})
        events: list[tuple[float, dict[str, Any]]] = []
        async with asyncio.timeout(WITHIN_S):
            async for arrived, native in self._lines():
                if native["type"] == "stream_event" and native["event"]["type"] == "content_block_start":
                    events.append(
                        (arrived, {"type": "block_start", "block": native["event"]["content_block"]})
                    )
                if native["type"] == "result":
                    events.append((arrived, {"type": "turn_end"}))
                    break
        return Turn(sent, sent, events)

    def _write(self, native: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(native).encode() + b"\n")

    async def _lines(self) -> AsyncIterator[tuple[float, dict[str, Any]]]:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            yield time.perf_counter(), json.loads(line)


@asynccontextmanager
async def bare_agent(model_url: str) -> AsyncIterator[BareAgent]:
    """Spawn it; it is ended with the block."""
    with TemporaryDirectory(prefix="agent-runtime-bench-bare-", ignore_cleanup_errors=True) as folder:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "CLAUDE_CONFIG_DIR": f"{folder}/claude",
            "CLAUDE_CODE_TMPDIR": folder,
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "IS_SANDBOX": "1",
            "ANTHROPIC_BASE_URL": model_url,
            "ANTHROPIC_API_KEY": "sk-ant-bench",
        }
        began = time.perf_counter()
        process = await asyncio.create_subprocess_exec(
            *(binary(), *_OPTIONS),
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env=env,
            cwd=folder,
            limit=_LINE_LIMIT,
        )
        try:
            yield BareAgent(process, began)
        finally:
            process.kill()
            await process.wait()


def binary() -> str:
    """The one that comes with the SDK: the same that runs in a sandbox."""
    spec = find_spec("claude_agent_sdk")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("claude-agent-sdk is not installed")
    return str(Path(spec.submodule_search_locations[0]) / "_bundled" / "claude")
