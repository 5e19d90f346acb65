"""The relay's address: taken, and told of in the environment, before anything is started that reads that.

Apart from `relay`, which serves it, because that needs asyncio and an agent may be started before.
"""

from __future__ import annotations

import socket
from typing import Final

from agent_runtime_sandbox import frames

MAX_CONNECTIONS: Final = 96
"""At a time. More wait until one ends; the gateway has bounds of its own."""
_LOOPBACK: Final = "127.0.0.1"
_NOT_BY_PROXY: Final = "localhost,127.0.0.1,::1"


class Door:
    """Listens from the moment it is made.

    Args:
        port: of the loopback; 0 takes one that is free.

    Raises:
        OSError: where the port is taken.
    """

    def __init__(self, port: int) -> None:
        self.listener = socket.create_server((_LOOPBACK, port), backlog=MAX_CONNECTIONS)
        self.listener.setblocking(False)
        self.url = f"http://{_LOOPBACK}:{self.listener.getsockname()[1]}"

    def environment(self, *, proxy: bool) -> dict[str, str]:
        """Variables that tell of it. `proxy`: also those by which tools leave through it on their own."""
        told = {frames.RELAY_ENV: self.url}
        if proxy:
            for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
                told[name] = told[name.lower()] = self.url
            told["NO_PROXY"] = told["no_proxy"] = _NOT_BY_PROXY
            told["NODE_USE_ENV_PROXY"] = "1"
        return told
