"""Background work and its owner."""

import asyncio
import gc

from agent_runtime.tasks import Tasks, unhindered


async def test_work_that_is_cancelled_before_it_begins_leaves_no_warning() -> None:
    async def work() -> None:
        raise AssertionError("it never begins")

    tasks = Tasks()
    await tasks.open()
    tasks.spawn(work()).cancel()
    await tasks.close()
    gc.collect()  # a coroutine that nobody awaited would warn here, and warnings are errors


async def test_closing_ends_and_awaits_what_still_runs() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    tasks = Tasks()
    await tasks.open()
    tasks.spawn(work())
    await asyncio.sleep(0)
    await tasks.close()
    assert ended.is_set()


async def test_unhindered_work_is_done_to_its_end_however_often_it_is_cancelled() -> None:
    go_on, done = asyncio.Event(), []

    async def work() -> str:
        await go_on.wait()
        done.append("all of it")
        return "result"

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(unhindered(work()))
        for _ in range(3):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        go_on.set()
    assert task.cancelled()
    assert done == ["all of it"]
    assert await unhindered(work()) == "result"
