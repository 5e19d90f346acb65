"""Bulk: one very long line out of an agent, and sessions with a very long past, and what else stands still.

A line goes the whole way: scripted driver, journal, channel, frames, the Claude agent's translator, log,
socket. Beside time and most memory, the longest time is told that the server's loop did not come round
(`probed`). Peer of the lines: `json.loads` of the same line. Peer of loading: reading the whole past,
as one has to whose sessions are their transcripts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
import uuid
from collections.abc import Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import socketio

from agent_runtime.blocks import AssistantText
from agent_runtime.ports import StoredBlock
from agent_runtime.records import SessionRecord
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from figures import save, summary, table
from picture import Bar, Panel
from probed import probed, seen
from processes import SERVER_CORE, WITHIN_S
from rounds import rounds
from served import System, Viewer, new_session, viewing

MIB: Final = 1 << 20
LINES_MIB: Final = (1, 8, 32)
PASTS_MIB: Final = (1, 10, 50)
BLOCK_BYTES: Final = 524
BLOCKS_A_MIB: Final = MIB // BLOCK_BYTES
"""50 MiB are 100,000 blocks."""
ENTRY_TEXT: Final = "What the agent wrote down for itself. " * 26
BATCH: Final = 5000
IDLE_S: Final = 0.1
"""Sessions leave memory so soon, to be loaded again."""
OLDER_PAGES: Final = 20
NEWEST, OLDER, JOIN, WHOLE = "newest page", "an older page", "join", "peer: all of it, json.loads"
LINE, PEER = "a text", "peer: json.loads"

Sample = dict[str, float]


# One long line.


def tool_result(filling: object) -> dict[str, Any]:
    """A tool's output, as the Claude agent prints it."""
    content = [{"type": "tool_result", "tool_use_id": "toolu_long", "content": filling}]
    return {"type": "user", "uuid": "u-long", "message": {"role": "user", "content": content}}


def piece(filling: object) -> str:
    """A message that has the agent print a long line, and remember the same."""
    call = {"type": "tool_use", "id": "toolu_long", "name": "Read", "input": {"file_path": "long.txt"}}
    said = {"type": "assistant", "message": {"id": "msg_long", "role": "assistant", "content": [call]}}
    end = {"type": "result", "subtype": "success", "is_error": False, "user_message_uuids": "$MESSAGES"}
    steps = [{"line": {"type": "system", "subtype": "init", "session_id": str(uuid.uuid4())}}, {"line": said}]
    steps += [{"line": tool_result(filling)}, {"remember": [tool_result(filling)]}]
    return "play " + json.dumps({"steps": steps, "end": end, "interrupted": end})


async def long_line(system: System, viewer: Viewer, filling: str) -> Sample:
    """Seconds until its block is seen and until the turn's end; what the server's loop and memory did."""
    before = await seen(system)
    turn = await viewer.turn(piece(filling))
    after = await seen(system)
    shown = turn.at("block_complete", lambda event: event["block"]["type"] == "tool_result")
    return {
        "shown_s": shown,
        "end_s": turn.end,
        "blocked_ms": after["blocked_ms"],
        "busy_ms": after["busy_ms"],
        "grown_mib": after["peak_mib"] - before["rss_mib"],
    }


async def loads(mib: int) -> Sample:
    """The same line read in one go."""
    line = json.dumps(tool_result("x" * (mib * MIB))).encode()
    began = time.perf_counter()
    json.loads(line)
    taken = time.perf_counter() - began
    return {
        "shown_s": taken,
        "end_s": taken,
        "blocked_ms": taken * 1000,
        "busy_ms": taken * 1000,
        "grown_mib": 0.0,
    }


async def lines(data: Path, count: int) -> dict[str, list[Sample]]:
    """Rounds of lines of all sizes, each size in a session of its own."""
    variants: dict[str, Any] = {}
    async with probed(data) as system, AsyncExitStack() as stack:
        for mib in LINES_MIB:
            viewer = await stack.enter_async_context(viewing(system, await new_session(system)))
            await viewer.turn(piece("short"))
            variants[f"{LINE}, {mib} MiB"] = partial(long_line, system, viewer, f"$TEXT:{mib * MIB}")
            variants[f"{PEER}, {mib} MiB"] = partial(loads, mib)
        return await rounds(variants, count)


# A long past.


async def remember(data: Path, past: Mapping[str, int]) -> None:
    """Write sessions with so many MiB of blocks, and as much transcript, into a new store."""
    (data / "data").mkdir()
    store = SqlitePersistence(data / "data" / "agent-runtime.db")
    await store.open()
    now = datetime.now(UTC)
    for session_id, mib in past.items():
        record = SessionRecord(
            session_id=session_id,
            owner="local",
            architecture="claude-agent-sdk",
            agent_profile_reference="default",
            created_at=now,
            last_activity=now,
        )
        await store.create_session(record)
        text = "A paragraph as an agent writes it. " * 11
        for at in range(0, mib * BLOCKS_A_MIB, BATCH):
            many = range(at, min(at + BATCH, mib * BLOCKS_A_MIB))
            blocks = [StoredBlock(n, AssistantText(id=f"b{n}", timestamp=now, content=text)) for n in many]
            await store.save_blocks(session_id, blocks)
            await store.append_transcript(session_id, "main", at // 2, [entry(n) for n in many[::2]])
    await store.close()


def entry(number: int) -> dict[str, Any]:
    """A KiB of transcript."""
    return {"type": "assistant", "uuid": f"e{number}", "message": {"id": f"m{number}", "content": ENTRY_TEXT}}


async def newest(system: System, session_id: str) -> Sample:
    """A session that is not in memory, looked at."""
    await away(system, session_id)
    await seen(system)
    began = time.perf_counter()
    await get(system, f"/api/sessions/{session_id}")
    return await looked(system, began)


async def older(system: System, session_id: str) -> Sample:
    """A page of history far back, mean of some; the place is found by the block before which it ends."""
    snapshot = await get(system, f"/api/sessions/{session_id}")
    before = snapshot["blocks"][0]["id"]
    await seen(system)
    began = time.perf_counter()
    for _ in range(OLDER_PAGES):
        page = await get(system, f"/api/sessions/{session_id}/blocks?limit=50&before={before}")
        before = page["blocks"][0]["id"]
    sample = await looked(system, began)
    return sample | {"s": sample["s"] / OLDER_PAGES}


async def join(system: System, session_id: str, connection: socketio.AsyncClient) -> Sample:
    """A session that is not in memory, joined over a connection that stands."""
    await away(system, session_id)
    await seen(system)
    began = time.perf_counter()
    ack = await connection.call("session:join", {"sessionId": session_id}, timeout=WITHIN_S)
    assert ack["ok"], ack
    sample = await looked(system, began)
    await connection.call("session:leave", {"sessionId": session_id}, timeout=WITHIN_S)
    return sample


async def whole(file: Path) -> Sample:
    """All of the past read in one go: a line an entry."""
    began = time.perf_counter()
    [json.loads(line) for line in file.read_bytes().splitlines()]  # noqa: ASYNC240 - in one go, as it says
    taken = time.perf_counter() - began
    return {"s": taken, "blocked_ms": taken * 1000, "busy_ms": taken * 1000, "grown_mib": 0.0}


async def looked(system: System, began: float) -> Sample:
    taken = time.perf_counter() - began
    after = await seen(system)
    return {
        "s": taken,
        "blocked_ms": after["blocked_ms"],
        "busy_ms": after["busy_ms"],
        "grown_mib": after["peak_mib"] - after["rss_mib"],
    }


async def get(system: System, path: str) -> Any:
    async with system.http.get(path) as response:
        response.raise_for_status()
        return await response.json(loads=json.loads)


async def away(system: System, session_id: str) -> None:
    """Return when the session is not in memory."""
    async with asyncio.timeout(WITHIN_S):
        while True:
            page = await get(system, "/api/sessions")
            shown = {each["sessionId"]: each["runtime"]["isLoaded"] for each in page["sessions"]}
            if not shown[session_id]:
                return
            await asyncio.sleep(IDLE_S / 4)


async def pasts(data: Path, count: int) -> dict[str, list[Sample]]:
    """Rounds of loading sessions with pasts of all sizes."""
    known = {f"past-{mib}": mib for mib in PASTS_MIB}
    await remember(data, known)
    async with probed(data, SERVER_CORE, session_idle_timeout_s=IDLE_S) as system:
        connection = socketio.AsyncClient(reconnection=False)
        await connection.connect(system.url, auth={"token": system.token}, transports=["websocket"])
        variants: dict[str, Any] = {}
        for session_id, mib in known.items():
            file = data / f"{session_id}.jsonl"
            file.write_text("".join(json.dumps(entry(n)) + "\n" for n in range(mib * BLOCKS_A_MIB // 2)))
            variants[f"{NEWEST}, {mib} MiB"] = partial(newest, system, session_id)
            variants[f"{JOIN}, {mib} MiB"] = partial(join, system, session_id, connection)
            variants[f"{OLDER}, {mib} MiB"] = partial(older, system, session_id)
            variants[f"{WHOLE}, {mib} MiB"] = partial(whole, file)
        try:
            return await rounds(variants, count)
        finally:
            await connection.disconnect()


async def measure(
    line_rounds: int, load_rounds: int
) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Both halves."""
    with TemporaryDirectory(prefix="agent-runtime-bench-", ignore_cleanup_errors=True) as folder:
        (first := Path(folder) / "lines").mkdir()
        (second := Path(folder) / "pasts").mkdir()
        return await lines(first, line_rounds), await pasts(second, load_rounds)


def tell(said: Mapping[str, list[Sample]], scales: Mapping[str, float], title: str) -> dict[str, Any]:
    """Print it; return what is kept."""
    kept = {
        name: {key: summary([each[key] for each in samples], scale) for key, scale in scales.items()}
        for name, samples in said.items()
    }
    rows = [
        [name, *(figures[key]["median"] for key in scales), figures["blocked_ms"]["max"]]
        for name, figures in kept.items()
    ]
    table(title, ["", *scales, "blocked max"], rows)
    return kept


def main(argv: list[str] | None = None) -> None:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(prog="bulk", description=__doc__)
    parser.add_argument("--lines", type=int, default=5, help="rounds of long lines (default: 5)")
    parser.add_argument("--loads", type=int, default=7, help="rounds of loading (default: 7)")
    options = parser.parse_args(argv)
    said, loaded = asyncio.run(measure(options.lines, options.loads))
    kept = tell(
        said,
        {"shown_s": 1.0, "end_s": 1.0, "blocked_ms": 1.0, "busy_ms": 1.0, "grown_mib": 1.0},
        "One long line",
    )
    found = tell(
        loaded, {"s": 1000.0, "blocked_ms": 1.0, "busy_ms": 1.0, "grown_mib": 1.0}, "A long past, ms"
    )
    ours = (LINE, NEWEST, JOIN, OLDER)
    panels = [
        Panel(title, [Bar.of(name, told[key], ours=name.startswith(ours)) for name, told in half.items()])
        for title, half, key in (
            ("One long line: the loop's longest gap, ms of the process's time", kept, "busy_ms"),
            ("A session that is not in memory, ms", found, "s"),
        )
    ]
    save("bulk", {"lines": kept, "pasts": found}, *panels)


if __name__ == "__main__":
    main()
