"""How tests run: an `async def test_*` gets its own loop and is bounded; in CI nothing is skipped."""

import asyncio
import inspect
import os
import shutil
import tempfile
from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

TEST_BOUND_S = 60.0
_CACHE = pytest.StashKey[str]()
# An example that took long on a busy machine found nothing; what hangs is ended by the bound above.
settings.register_profile(
    "any machine", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """What is cached for the user of this machine is cached for these tests alone."""
    config.stash[_CACHE] = folder = tempfile.mkdtemp(prefix="agent-runtime-cache-")
    os.environ["XDG_CACHE_HOME"] = folder


def pytest_unconfigure(config: pytest.Config) -> None:
    if (folder := config.stash.get(_CACHE, None)) is not None:
        shutil.rmtree(folder, ignore_errors=True)


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a machine lacks may be passed over where a person sees it, and nowhere else."""
    report = yield
    if report.skipped and "CI" in os.environ and isinstance(report.longrepr, tuple):
        report.outcome = "failed"
        report.longrepr = f"CI skips nothing, and something is missing here: {report.longrepr[2]}"
    return report
