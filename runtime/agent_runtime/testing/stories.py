"""Stories: the async test methods of the contract suites, for a pytest that knows nothing of asyncio.

A suite is a plain class. A host derives from it, says in `adapter` how to get a fresh adapter, and lets
pytest collect the result. Each story gets its own event loop, its own adapter and a bound in time.
No test framework is imported here, so the suites run under any.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from agent_runtime.errors import RuntimeFault

Adapter = TypeVar("Adapter")
Fault = TypeVar("Fault", bound=RuntimeFault)

STORY_BOUND_S: Final = 60.0


def story(tell: Callable[[Any, Adapter], Awaitable[None]]) -> Callable[[Any], None]:
    """Make a test method of `async def (self, adapter)`: synchronous, bounded, with a fresh adapter.

    The class that it stands in gives the adapter: `adapter()` returns an async context manager.
    """
    return _test(tell, None)


def long_story(
    bound_s: float,
) -> Callable[[Callable[[Any, Adapter], Awaitable[None]]], Callable[[Any], None]]:
    """The same, for one that needs more time than others."""
    return lambda tell: _test(tell, bound_s)


def _test(tell: Callable[[Any, Adapter], Awaitable[None]], bound_s: float | None) -> Callable[[Any], None]:
    async def run(suite: Any) -> None:
        async with asyncio.timeout(bound_s or STORY_BOUND_S), suite.adapter() as adapter:
            await tell(suite, adapter)

    def test(self: Any) -> None:
        asyncio.run(run(self))

    # Not functools.wraps: through `__wrapped__` pytest would take `adapter` for a fixture.
    test.__name__, test.__qualname__, test.__doc__ = tell.__name__, tell.__qualname__, tell.__doc__
    return test


async def refused(call: Awaitable[object], fault: type[Fault], code: str) -> None:
    """Await a call that must raise this fault with this code."""
    try:
        await call
    except fault as error:
        if error.code == code:
            return
        raise AssertionError(f"the code is {error.code}, not {code}") from error
    raise AssertionError(f"{fault.__name__} ({code}) was not raised")
