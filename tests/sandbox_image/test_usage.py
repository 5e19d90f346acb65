"""What files take on the disk, as a runner counts it that has to watch it itself."""

import asyncio
import os
from pathlib import Path

from agent_runtime_sandbox.usage import taken_by, until_over

MIB = 1024 * 1024


def test_a_file_counts_once_whatever_its_names_and_by_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * MIB)
    once = taken_by([tmp_path], 1 << 40)
    os.link(tmp_path / "one", tmp_path / "two")
    (tmp_path / "link").symlink_to("/usr")
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(1 << 30)
    again = taken_by([tmp_path, tmp_path], 1 << 40)
    assert MIB <= once < 2 * MIB
    assert again - once < MIB / 4


def test_folders_below_count_and_odd_ones_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * MIB)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "shut").mkdir(mode=0)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")).write_bytes(b"x" * MIB)
    assert 2 * MIB <= taken_by([tmp_path, tmp_path / "absent"], 1 << 40) < 3 * MIB


def test_counting_ends_where_it_is_enough(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "file").write_bytes(b"x" * MIB)
    assert MIB < taken_by([tmp_path], MIB) < 4 * MIB


async def test_the_watch_returns_as_soon_as_there_is_too_much(tmp_path: Path) -> None:
    watching = asyncio.ensure_future(until_over(MIB, [tmp_path]))  # noqa: TID251 - awaited below
    (tmp_path / "big").write_bytes(b"x" * 2 * MIB)
    assert await watching > MIB
