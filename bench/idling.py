"""Idling: what is in memory while nobody says anything, and whether it stays so after much was said.

Sessions of 200 blocks that are loaded, sessions that are only known, viewers that hear nothing; then a
soak: sessions are made, looked at, joined, left and deleted while two others stream, as fast as it goes.
Peers: a session of 200 blocks as pydantic models and as dicts, a client of stock python-socketio.
All in `memory`, which tells it.
"""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from agent_runtime.blocks import BLOCK, AssistantText, Block, ToolResult, ToolStatus, ToolUse
from agent_runtime.ports import StoredBlock
from agent_runtime.records import SessionRecord
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from figures import table
from probed import probed
from processes import memory, process
from served import System, client, new_session, viewing

BLOCKS: Final = 200
LOADED: Final = 200
KNOWN: Final = 10_000
VIEWERS: Final = 1000
SETTLE_S: Final = 1.0
CHURN: Final = 4
TEXT: Final = "A paragraph as an agent writes it. " * 11
IDLE_PEER: Final = Path(__file__).with_name("idle_peer.py")


def block(number: int, at: datetime) -> Block:
    """One of a conversation: texts, and calls of tools with their results."""
    text = f"{TEXT}{number}"
    if number % 4 == 2:  # noqa: PLR2004 - every fourth
        name = f"toolu_{number}"
        return ToolUse(
            id=name,
            timestamp=at,
            tool_name="Read",
            tool_use_id=name,
            input={"file_path": f"src/{number}.py"},
            status=ToolStatus.SUCCESS,
        )
    if number % 4 == 3:  # noqa: PLR2004
        name = f"toolu_{number - 1}"
        return ToolResult(id=f"{name}:result", timestamp=at, tool_use_id=name, output=text)
    return AssistantText(id=f"msg_{number}:0", timestamp=at, content=text, model="claude")


def text_bytes() -> int:
    """Of the texts of all blocks of a session."""
    blocks = [block(n, datetime.now(UTC)) for n in range(BLOCKS)]
    return sum(len(getattr(b, "content", "") or getattr(b, "output", "")) for b in blocks)


async def fill(data: Path, sessions: int, blocks: int) -> None:
    """Sessions `s0`, `s1`, ... in a new store."""
    (data / "data").mkdir(parents=True)
    store = SqlitePersistence(data / "data" / "agent-runtime.db")
    await store.open()
    now = datetime.now(UTC)
    said = [StoredBlock(n, block(n, now)) for n in range(blocks)]

    async def one(number: int) -> None:
        record = SessionRecord(
            session_id=f"s{number}",
            owner="local",
            architecture="claude-agent-sdk",
            agent_profile_reference="default",
            created_at=now,
            last_activity=now,
        )
        await store.create_session(record)
        if said:
            await store.save_blocks(record.session_id, said)

    for at in range(0, sessions, 250):
        async with asyncio.TaskGroup() as tasks:
            for number in range(at, min(at + 250, sessions)):
                tasks.create_task(one(number))
    await store.close()


async def settled(pid: int) -> int:
    """PSS, once it has come to rest."""
    await asyncio.sleep(SETTLE_S)
    return memory(pid).pss


async def look(system: System, session_id: str) -> None:
    """Load a session."""
    async with system.http.get(f"/api/sessions/{session_id}") as response:
        response.raise_for_status()
        await response.read()


async def loaded_with_blocks(data: Path) -> float:
    """Bytes of each loaded session of 200 blocks."""
    await fill(data, LOADED + 10, BLOCKS)
    async with probed(data) as system:
        for number in range(10):
            await look(system, f"s{LOADED + number}")
        before = await settled(system.pid)
        for number in range(LOADED):
            await look(system, f"s{number}")
        return (await settled(system.pid) - before) / LOADED


def in_this_process(make: Callable[[], Any], count: int = 100) -> float:
    """Bytes of each of so many, made here and kept until it is known."""
    kept = [make()]
    gc.collect()
    before = memory(os.getpid()).pss
    kept += [make() for _ in range(count)]
    gc.collect()
    return (memory(os.getpid()).pss - before) / count


def peers() -> dict[str, float]:
    """Bytes of 200 blocks as they are read back: models, and dicts.

    In a process of their own: here they would fit into what other benchmarks have left.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(peers_here).result()


def peers_here() -> dict[str, float]:
    """The same, in this process."""
    now = datetime.now(UTC)
    texts = [block(n, now).model_dump_json(by_alias=True, exclude_none=True) for n in range(BLOCKS)]
    return {
        "pydantic": in_this_process(lambda: [BLOCK.validate_json(text) for text in texts]),
        "dicts": in_this_process(lambda: [json.loads(text) for text in texts]),
    }


async def many(data: Path) -> dict[str, float]:
    """Bytes: a runtime that knows 10,000 sessions; each of 1,000 viewers, all of one session and one each."""
    await fill(data, KNOWN, 0)
    async with probed(data) as system:
        await look(system, "s0")
        known = await settled(system.pid)
        async with idle_viewers(system.url, system.token, ["s0"] * VIEWERS):
            together = await settled(system.pid)
        async with idle_viewers(system.url, system.token, [f"s{n}" for n in range(VIEWERS)]):
            apart = await settled(system.pid)
    return {"known": known, "together": (together - known) / VIEWERS, "apart": apart}


async def stock_viewer() -> float:
    """Bytes of each of 1,000 clients of stock python-socketio."""
    async with process(sys.executable, str(IDLE_PEER)) as (server, ready):
        async with idle_viewers(ready["url"], "", ["warm"] * 10):
            before = await settled(server.pid)
        async with idle_viewers(ready["url"], "", ["room"] * VIEWERS):
            return (await settled(server.pid) - before) / VIEWERS


@asynccontextmanager
async def idle_viewers(url: str, token: str, sessions: list[str]) -> AsyncIterator[None]:
    """One connection for each, joined; they answer no pings, so they last for twenty seconds."""
    async with client(url, token) as http, AsyncExitStack() as stack:

        async def join(session_id: str) -> None:
            socket = await stack.enter_async_context(
                http.ws_connect("/socket.io/?EIO=4&transport=websocket", max_msg_size=0)
            )
            await socket.receive()
            await socket.send_str(f"40{json.dumps({'token': token})}")
            await socket.receive()
            await socket.send_str(f"420{json.dumps(['session:join', {'sessionId': session_id}])}")
            await socket.receive()

        for at in range(0, len(sessions), 50):
            async with asyncio.TaskGroup() as tasks:
                for session_id in sessions[at : at + 50]:
                    tasks.create_task(join(session_id))
        yield


async def soak(data: Path, seconds: float) -> dict[str, float]:
    """MiB after a third of the time, and how much more at its end; and how often what was done."""
    async with probed(data) as system, AsyncExitStack() as stack:
        viewers = [
            await stack.enter_async_context(viewing(system, await new_session(system))) for _ in (1, 2)
        ]
        counts = {"turns": 0, "lives": 0}
        until = time.monotonic() + seconds

        async def stream(viewer: Any) -> None:
            while time.monotonic() < until:
                await viewer.turn(turn_of_lines())
                viewer.forget()
                counts["turns"] += 1

        async def live() -> None:
            while time.monotonic() < until:
                session_id = await new_session(system)
                await look(system, session_id)
                async with idle_viewers(system.url, system.token, [session_id] * 3):
                    pass
                async with system.http.delete(f"/api/sessions/{session_id}") as response:
                    response.raise_for_status()
                counts["lives"] += 1

        samples: list[int] = []
        async with asyncio.TaskGroup() as tasks:
            for viewer in viewers:
                tasks.create_task(stream(viewer))
            for _ in range(CHURN):
                tasks.create_task(live())
            while time.monotonic() < until:
                await asyncio.sleep(seconds / 60)
                samples.append(memory(system.pid).rss)
    third = len(samples) // 3
    warm, end = statistics.median(samples[third : 2 * third]), statistics.median(samples[2 * third :])
    return {"warm": warm, "end": end, "most": max(samples), **{name: float(n) for name, n in counts.items()}}


def turn_of_lines() -> str:
    """A turn that streams a message of 500 pieces."""
    delta = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "$TEXT:200"}}
    begin = {"type": "message_start", "message": {"id": f"msg_{time.monotonic_ns()}", "role": "assistant"}}
    block_begin = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    end = {"type": "result", "subtype": "success", "is_error": False, "user_message_uuids": "$MESSAGES"}
    steps: list[dict[str, Any]] = [{"line": {"type": "system", "subtype": "init", "session_id": "soak"}}]
    steps += [{"line": {"type": "stream_event", "event": event}} for event in (begin, block_begin)]
    steps += [{"line": {"type": "stream_event", "event": delta}, "times": 500}]
    steps += [
        {"line": {"type": "stream_event", "event": {"type": "content_block_stop", "index": 0}}},
        {"line": {"type": "stream_event", "event": {"type": "message_stop"}}},
    ]
    return "play " + json.dumps({"steps": steps, "end": end, "interrupted": end})


async def measure_idling(soak_s: float) -> dict[str, Any]:
    """All of it, in bytes."""
    with TemporaryDirectory(prefix="agent-runtime-bench-", ignore_cleanup_errors=True) as folder:
        data = Path(folder)
        (data / "blocks").mkdir()
        (data / "many").mkdir()
        (data / "soak").mkdir()
        found: dict[str, Any] = {"loaded_200": await loaded_with_blocks(data / "blocks"), "peers": peers()}
        found |= {"stock_viewer": await stock_viewer(), "many": await many(data / "many")}
        found["soak"] = await soak(data / "soak", soak_s)
    return found


def tell_idling(found: Mapping[str, Any]) -> None:
    """Print it."""
    text = text_bytes()
    blocks = {"ours, loaded and idle": found["loaded_200"], **found["peers"]}
    rows = [[name, size / 1000, (size - text) / 1000] for name, size in blocks.items()]
    table(f"A session of {BLOCKS} blocks, kB", ["what", "all", "beyond its text"], rows)
    many_ = found["many"]
    table(
        "Many, kB",
        ["what", "kB"],
        [
            [f"a runtime that knows {KNOWN} sessions", many_["known"] / 1000],
            [f"the same with {VIEWERS} viewers of a loaded session each", many_["apart"] / 1000],
            [f"each of {VIEWERS} viewers of one session", many_["together"] / 1000],
            ["a client of stock python-socketio", found["stock_viewer"] / 1000],
        ],
    )
    table("A soak", ["what", "figure"], [[name, value] for name, value in found["soak"].items()])
