"""The peer of an idle viewer: stock python-socketio on aiohttp; its clients join a room and hear nothing."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import socketio
from aiohttp import web


async def main() -> None:
    """Serve until SIGTERM; say where on the first line."""
    server = socketio.AsyncServer(async_mode="aiohttp", cors_allowed_origins=[])
    app = web.Application()
    server.attach(app)

    async def join(sid: str, asked: Any) -> dict[str, Any]:
        await server.enter_room(sid, asked["sessionId"])
        return {"ok": True}

    server.on("session:join", join)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"url": f"http://127.0.0.1:{runner.addresses[0][1]}"}), flush=True)
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await over.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
