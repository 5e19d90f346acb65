"""The outside as tunnels see it: names become addresses here, on the host, and nowhere else.

Names are looked up in threads of their own, so that a slow name server holds up nobody's store.
Tests put another network in its place, by code; no setting leads here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

from agent_runtime.gateway import hosts

_THREADS: Final = 8


class Network(Protocol):
    """Where names point to, and where one may go."""

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """The numeric addresses of a name; empty where it has none. Raises `OSError`."""
        ...

    def may_go_to(self, address: str) -> bool:
        """Whether an address can be connected to on a sandbox's behalf."""
        ...

    def close(self) -> None:
        """Release everything. Idempotent."""


class PublicInternet:
    """The system's own resolver, and public addresses only."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """See `Network`."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="gateway-names")
        return await asyncio.get_running_loop().run_in_executor(self._threads, _look_up, host, port)

    def may_go_to(self, address: str) -> bool:
        """See `Network`."""
        return hosts.is_public(address)

    def close(self) -> None:
        """See `Network`; a look-up that hangs is not waited for."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int) -> Sequence[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))
