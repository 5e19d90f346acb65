"""How tests run: an `async def test_*` gets its own loop and is bounded."""

import asyncio
import inspect

import pytest

TEST_BOUND_S = 60.0


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}

    async def bounded() -> None:
        async with asyncio.timeout(TEST_BOUND_S):
            await pyfuncitem.obj(**arguments)

    asyncio.run(bounded())
    return True
