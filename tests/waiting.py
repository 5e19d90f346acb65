"""Bounded waiting for something to become true, instead of sleeping and hoping."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(probe: Callable[[], T], within: float = 20.0) -> T:
    """Return the first truthy value of `probe()`; fail when there is none within so many seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while not (value := probe()):
        assert asyncio.get_running_loop().time() < deadline, f"not true within {within} s"
        await asyncio.sleep(0.01)
    return value
