"""Quickstart: create a session, send a message, print what the agent says. Needs `agent-runtime serve`.

AGENT_RUNTIME_TOKEN=... python examples/quickstart.py "What files are here?"
"""

import asyncio
import os
import sys

import aiohttp
import socketio

URL = os.environ.get("AGENT_RUNTIME_URL", "http://127.0.0.1:8700")
TOKEN = os.environ["AGENT_RUNTIME_TOKEN"]


async def main(message: str) -> None:
    """Run one turn."""
    headers, over, client = {"Authorization": f"Bearer {TOKEN}"}, asyncio.Event(), socketio.AsyncClient()
    async with (
        aiohttp.ClientSession(URL, headers=headers) as http,
        http.post("/api/sessions", json={"agentProfileRef": "default"}) as response,
    ):
        session_id = (await response.json())["sessionId"]
    client.on("text_delta", lambda event: print(event["delta"], end="", flush=True))
    client.on("turn_end", lambda _: over.set())
    await client.connect(URL, auth={"token": TOKEN})
    await client.call("session:join", {"sessionId": session_id})
    await client.call("session:send", {"sessionId": session_id, "content": message, "messageId": "1"})
    await over.wait()
    await client.disconnect()
    print()


asyncio.run(main(" ".join(sys.argv[1:]) or "Say hello."))
