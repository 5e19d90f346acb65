"""Runs a script with Node and gives back what it reports, or says in a sentence why it could not."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

CLIENTS = Path(__file__).parent / "clients"
_TOLD = 4000


async def node(*arguments: str | Path, within: float) -> str:
    """Run Node to its end; return its standard output. Fails with its words when it exits non-zero."""
    found = shutil.which("node")
    assert found, "Node.js is not installed: install nodejs and npm, or run `make test`, which sees to it"
    process = await asyncio.create_subprocess_exec(
        found, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(within):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = f"{err.decode()[-_TOLD:]}\n{out.decode()[-_TOLD:]}"
    assert process.returncode == 0, f"node {arguments[0]} failed:\n{said}"
    return out.decode()


async def story(script: str, *arguments: str, within: float = 50) -> dict[str, Any]:
    """Run a story of tests/clients; return the results that it prints as its last line, in JSON."""
    installed = CLIENTS / "node_modules" / "socket.io-client"
    assert installed.is_dir(), "The stories' packages are missing: run `npm ci --prefix tests/clients`"
    printed = await node(CLIENTS / script, *arguments, within=within)
    result: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return result
