"""`python -m agent_runtime_modal_local`: serve, print one JSON line about it, and end with a signal."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import signal
import sys
from pathlib import Path

from agent_runtime_modal_local.drift import Drifted, insist
from agent_runtime_modal_local.enclosure import NoEnclosure
from agent_runtime_modal_local.folders import usual_root
from agent_runtime_modal_local.server import serving


def main() -> int:
    """Serve until SIGINT or SIGTERM; the exit code."""
    parser = argparse.ArgumentParser(prog="agent_runtime_modal_local", description="A local Modal.")
    parser.add_argument("--root", type=Path, default=None, help="where its folder is made")
    parser.add_argument("--port", type=int, default=0, help="of the control plane; 0 takes any")
    parser.add_argument("--until-eof", action="store_true", help="end as well when stdin ends")
    options = parser.parse_args()
    _allow_many_descriptors()
    try:
        insist()
        asyncio.run(_serve(options.root or usual_root(), options.port, until_eof=options.until_eof))
    except (Drifted, NoEnclosure, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _serve(root: Path, port: int, *, until_eof: bool) -> None:
    over, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    if until_eof:
        loop.add_reader(sys.stdin.fileno(), over.set)
    async with serving(root, port) as running:
        sys.stdout.write(json.dumps(running.announcement()) + "\n")
        sys.stdout.flush()
        await over.wait()


def _allow_many_descriptors() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


if __name__ == "__main__":
    sys.exit(main())
