"""Files that earlier versions wrote: today's code opens them, reads all of them, and writes to them."""

import hashlib
import json
import shutil
import sqlite3
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from agent_runtime.records import TurnStatus
from agent_runtime.testing import samples
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from agent_runtime_adapters.persistence.sqlite_database import load_scripts
from tests.adapters.persistence import kept_files

PUBLISHED = {
    "schema-0001.sql": "50b8001ea1e4f5089c247f0aa61567fc7d022508ee47b99e3eabae8b70be3027",
    "schema-0002.sql": "7596c50acb2139d44fb5d5d36e53469ebfec98314d3564449c3ed5790d9562e2",
}
"""A script that was published runs on files all over the world: it never changes, a new one follows it."""

BEFORE_THE_LATEST = range(1, len(load_scripts()))


def test_published_scripts_have_not_changed() -> None:
    folder = resources.files("agent_runtime_adapters.persistence").joinpath("sql")
    found = {item.name: hashlib.sha256(item.read_bytes()).hexdigest() for item in folder.iterdir()}
    assert found == PUBLISHED


def test_a_file_is_kept_of_every_schema_before_the_latest() -> None:
    for number in BEFORE_THE_LATEST:
        database, account = kept_files.names(number)
        assert database.exists(), f"check out the code of schema {number} and run kept_files there"
        assert account.exists()
        with sqlite3.connect(f"file:{database}?immutable=1", uri=True) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (number,), "written by later code"
        db.close()


@pytest.mark.parametrize("number", BEFORE_THE_LATEST)
async def test_a_kept_file_is_brought_up_to_date_and_reads_as_it_was_written(
    tmp_path: Path, number: int
) -> None:
    store, told = await opened_copy(tmp_path, number)
    try:
        found = await kept_files.read_all(store, list(told["sessions"]))
        assert sorted(found.pop("unfinished")) == sorted(told.pop("unfinished"))
        check_contains(found, told)
        assert await store.load_session("deleted") is None
        for owner in ("ada", "bob"):
            listed = (await store.list_sessions(owner, limit=100)).sessions
            expected = {sid for sid, kept in told["sessions"].items() if kept["record"]["owner"] == owner}
            assert {record.session_id for record in listed} == expected
    finally:
        await store.close()


@pytest.mark.parametrize("number", BEFORE_THE_LATEST)
async def test_a_kept_file_can_be_written_to(tmp_path: Path, number: int) -> None:
    store, _ = await opened_copy(tmp_path, number)
    try:
        running, full = await store.load_session("running"), await store.load_session("full")
        assert running is not None
        assert full is not None
        ended = samples.turn(1, status=TurnStatus.COMPLETED, message_id=None)
        await store.save_turn("running", ended, samples.stored(samples.text("new"), start=2), record=running)
        await store.update_session(full.model_copy(update={"sandbox": None}))
        await store.append_transcript("full", "main", 3, [{"n": 3}])
        await store.save_files("full", [samples.file("binary", b"now text")])
        await store.delete_files("full", ["empty"])
        await store.delete_session("waiting")
        await store.create_session(samples.session("deleted", owner="bob"))

        assert (await store.load_turns("running", limit=1)) == (ended,)
        assert await store.block_index("running", "new") == 2
        assert [record.session_id for record in await store.unfinished_sessions()] == [kept_files.ODD_ID]
        assert (await store.load_transcript("full"))["main"][3] == {"n": 3}
        assert await store.load_file("full", "binary") == samples.file("binary", b"now text")
        assert await store.load_file("full", "empty") is None
        assert await store.load_session("waiting") is None
        assert await store.load_turns("deleted", limit=10) == ()
    finally:
        await store.close()


async def test_what_is_written_today_reads_as_the_account_of_it_says(tmp_path: Path) -> None:
    store = SqlitePersistence(tmp_path / "store.db")
    await store.open()
    try:
        told = json.loads(json.dumps(await kept_files.fill(store)))
        found = await kept_files.read_all(store, list(told["sessions"]))
        assert sorted(found.pop("unfinished")) == sorted(told.pop("unfinished"))
        check_contains(found, told)
    finally:
        await store.close()


async def opened_copy(folder: Path, number: int) -> tuple[SqlitePersistence, dict[str, Any]]:
    database, account = kept_files.names(number)
    shutil.copyfile(database, folder / "store.db")
    store = SqlitePersistence(folder / "store.db")
    await store.open()
    return store, json.loads(account.read_text())


def check_contains(found: Any, told: Any, at: str = "") -> None:
    """Fail where something told is not found. Fields that are new since then may stand beside it."""
    if isinstance(told, dict):
        assert isinstance(found, dict), at
        for key, value in told.items():
            assert key in found, f"{at}.{key} is lost"
            check_contains(found[key], value, f"{at}.{key}")
    elif isinstance(told, list):
        assert isinstance(found, list), at
        assert len(found) == len(told), at
        for place, value in enumerate(told):
            check_contains(found[place], value, f"{at}[{place}]")
    else:
        assert found == told, at
