"""Database files of each published schema, and what is in them; kept for ever in `fixtures/`.

Before a new script is added to `sql/`, the code as it is keeps a file of its schema:

    python -m tests.adapters.persistence.kept_files

This writes `schema-NNNN.db` and `schema-NNNN.json` where they are missing, and never again: a file
that today's code wrote says nothing of what yesterday's wrote. The tests are in `test_kept_files`.
"""

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from agent_runtime.errors import PersistenceFault
from agent_runtime.ports import StoredBlock
from agent_runtime.records import SandboxRef, SessionRecord, Turn, TurnStatus
from agent_runtime.testing import samples
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.persistence.sqlite_database import load_scripts

FIXTURES = Path(__file__).parent / "fixtures"
ODD_ID = "odd-\udcff-🦊"
SANDBOX = SandboxRef(sandbox_id="sb-\ud83e-1", provider="local", isolation="none", started_at=samples.NOON)


async def fill(store: SqlitePersistence) -> dict[str, Any]:
    """Write something of everything; return it as plain JSON values."""
    told: dict[str, Any] = {"sessions": {}, "unfinished": [], "profiles": []}
    for record, turns in sessions():
        sid = record.session_id
        await store.create_session(record)
        told["sessions"][sid] = content = {"record": plain(record), "turns": [], "blocks": []}
        for turn in turns:
            await store.save_turn(sid, turn, [StoredBlock(turn.index, samples.text(f"block-{turn.index}"))])
            content["turns"].append(plain(turn))
            content["blocks"].append([turn.index, plain(samples.text(f"block-{turn.index}"))])
        going_on = any(turn.status in (TurnStatus.QUEUED, TurnStatus.RUNNING) for turn in turns)
        if going_on or record.sandbox is not None:
            told["unfinished"].append(sid)
        content |= {"transcript": {}, "files": []}
    await fill_one(store, told["sessions"]["full"], "full")
    await fill_one(store, {"blocks": []}, "deleted")
    await store.delete_session("deleted")
    del told["sessions"]["deleted"]
    told["unfinished"].remove("deleted")
    for profile in (samples.profile("critic"), samples.profile("writer")):
        await store.save_profile(profile)
        told["profiles"].append(plain(profile))
    return told


def sessions() -> list[tuple[SessionRecord, list[Turn]]]:
    """Of two owners: without turns, with turns of each status, with and without a sandbox."""
    ended = {"ended_at": samples.NOON}
    return [
        (samples.full_session("full"), []),
        (samples.session("bare", owner="bob"), []),
        (samples.session("deleted"), [samples.queued_turn(0)]),
        (samples.session("waiting"), [samples.full_turn(0), samples.queued_turn(1), samples.queued_turn(2)]),
        (
            samples.session("running", owner="bob", name=samples.ODD_TEXT),
            [
                samples.turn(0, status=TurnStatus.COMPLETED, **ended),
                samples.turn(1, status=TurnStatus.RUNNING, message_id=None),
            ],
        ),
        (
            samples.session("rested"),
            [
                samples.turn(0, status=TurnStatus.COMPLETED, **ended),
                samples.turn(1, status=TurnStatus.CANCELLED, stop_reason="interrupted", **ended),
                samples.full_turn(2),
            ],
        ),
        (samples.session(ODD_ID, owner="bob", sandbox=SANDBOX, metadata=samples.OPAQUE), []),
    ]


async def fill_one(store: SqlitePersistence, content: dict[str, Any], sid: str) -> None:
    """Blocks of all kinds, two threads of transcript, files of all kinds."""
    blocks = samples.stored(*samples.every_block(), start=len(content["blocks"]))
    await store.save_blocks(sid, blocks)
    content["blocks"] += [[stored.index, plain(stored.block)] for stored in blocks]
    content["transcript"] = {
        "main": [{"n": 0}, samples.OPAQUE, {"n": 2}],
        "subagents/agent-\udcff": [{"odd": samples.ODD_TEXT}],
    }
    for key, entries in content["transcript"].items():
        await store.append_transcript(sid, key, 0, entries)
    files = [
        samples.file("text", "naïve 🦊\r\n".encode()),
        samples.file("binary", bytes(range(256))),
        samples.file("empty", b""),
        *(samples.file(path, path.encode("utf-8", "surrogatepass")) for path in samples.ODD_PATHS),
    ]
    await store.save_files(sid, files)
    content["files"] = [plain(file) for file in sorted(files, key=lambda file: file.path)]


async def read_all(store: SqlitePersistence, sids: list[str]) -> dict[str, Any]:
    """What `fill` tells, as the store has it now."""
    found: dict[str, Any] = {"sessions": {}}
    for sid in sids:
        record = await store.load_session(sid)
        assert record is not None, sid
        manifest = await store.load_manifest(sid)
        files = [await store.load_file(sid, file.path) for file in manifest]
        found["sessions"][sid] = {
            "record": plain(record),
            "turns": [plain(turn) for turn in await store.load_turns(sid, limit=100)],
            "blocks": [
                [stored.index, plain(stored.block)]
                for stored in (await store.load_blocks(sid, limit=100)).blocks
            ],
            "transcript": await store.load_transcript(sid),
            "files": [plain(file) for file in files if file is not None],
        }
    found["unfinished"] = [record.session_id for record in await store.unfinished_sessions()]
    found["profiles"] = [plain(profile) for profile in await store.list_profiles()]
    return found


def plain(value: BaseModel) -> dict[str, Any]:
    """A value as JSON values, by a way that no store goes."""
    made: dict[str, Any] = json.loads(json.dumps(value.model_dump(by_alias=True), default=_plain_time))
    return made


def _plain_time(moment: datetime) -> str:
    return moment.isoformat()


def names(number: int) -> tuple[Path, Path]:
    """The database file of a schema and the account of its content."""
    return FIXTURES / f"schema-{number:04}.db", FIXTURES / f"schema-{number:04}.json"


async def keep() -> None:
    """Write the two files of the schema that the code has now."""
    database, account = names(len(load_scripts()))
    if database.exists():
        raise PersistenceFault(f"{database.name} is kept already.")
    FIXTURES.mkdir(exist_ok=True)
    store = SqlitePersistence(database)
    await store.open()
    told = await fill(store)
    await store.close()
    account.write_text(json.dumps(told, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    asyncio.run(keep())
