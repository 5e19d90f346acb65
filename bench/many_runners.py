"""Many runners in one process: the real `Runner`, once for each session.

    python many_runners.py FOLDER COUNT

Runner N listens in FOLDER/N. Its agents are no processes, so that no runner takes another's child away. What
it saves beside one process a runner is memory (23 MiB each) and the start of five hundred Pythons; what a
line costs is the same code, on one loop instead of on many: fewer wake-ups, if anything.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import sys
import tempfile
from pathlib import Path

from agent_runtime.profile import FileRules
from agent_runtime_adapters.sandboxes import channel
from agent_runtime_sandbox.drivers import Places
from agent_runtime_sandbox.manifest import Rules
from agent_runtime_sandbox.runner import Runner, Settings


def runner(folder: Path) -> Runner:
    workspace, home = folder / "workspace", folder / "home"
    workspace.mkdir(parents=True)
    home.mkdir()
    with tempfile.TemporaryFile(dir=folder, buffering=0) as journal:
        descriptor = os.dup(journal.fileno())
    places = Places(workspace=workspace, home=home, gateway=None)
    told = FileRules()
    rules = Rules(told.ignore, told.max_file_bytes, told.max_files)
    return Runner(channel.listen(folder), descriptor, Settings(places, 600.0, rules, preload=""))


async def serve(folder: Path, count: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(runner(folder / str(number)).run())
        await asyncio.sleep(0)  # each takes the signal for itself when it begins; it is for all of them
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
        print(json.dumps({"ready": True}), flush=True)


def main() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(serve(Path(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
