"""One life of a runtime over Modal, for `tests.stories.test_killed_at_every_step`.

    python -m tests.killed_on_modal FOLDER N        one session; killed at the Nth turn of its loop
    python -m tests.killed_on_modal FOLDER          the life after it: what it has must be all that there is

A process of its own, because the SDK has threads and cannot be forked. The environment says which Modal
it is.
"""

import asyncio
import sys
from pathlib import Path

import modal

from agent_runtime_adapters.sandboxes.modal.options import ModalOptions
from agent_runtime_adapters.sandboxes.modal.provider import ModalSandboxes
from tests.killed_at_a_step import CountingLoop, Steps
from tests.stories.test_killed_at_every_step import RUNTIME_ID, Place, one_session, the_next_life

QUICK = ModalOptions(start_within_s=20, call_within_s=5)
SEEN_WITHIN_S = 10.0
LATE_S = 90.0
"""All of it takes some seconds; whoever reads of a failure wants to know what was waited for."""


async def lives(at: Place, folder: Path, steps: Steps) -> None:
    await one_session(at, folder, 0)(steps)
    await let_go()


async def follows(at: Place, folder: Path) -> None:
    """The server's list and the records say the same, now and when all is stopped."""
    async with the_next_life(at, folder) as live:
        await sees(live)
    await sees(set())
    await let_go()


async def sees(live: set[str]) -> None:
    """Another provider, which remembers nothing, sees these; one that was just being made may come late."""
    deadline = asyncio.get_running_loop().time() + SEEN_WITHIN_S
    while (seen := await everybody()) != live:
        assert asyncio.get_running_loop().time() < deadline, (seen, live)
        await asyncio.sleep(0.1)


async def everybody() -> set[str]:
    provider = ModalSandboxes(QUICK)
    try:
        return {ref.sandbox_id for ref in await provider.list(RUNTIME_ID)}
    finally:
        await provider.close()


async def let_go() -> None:
    client = await modal.Client.from_env.aio()
    await client.close.aio()


def told_what_is_waited_for() -> None:
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)


def main() -> None:
    folder, *dies_at = sys.argv[1:]
    at = Place(Path(folder), ModalSandboxes(QUICK))
    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        runner.get_loop().call_later(LATE_S, told_what_is_waited_for)
        steps = CountingLoop.steps = Steps(int(dies_at[0]) if dies_at else None)
        work = lives(at, Path(folder), steps) if dies_at else follows(at, Path(folder))
        runner.run(work)


if __name__ == "__main__":
    main()
