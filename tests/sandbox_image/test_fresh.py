"""A folder for one agent process: new each time, whatever was left where it is to be."""

import os
import stat
from pathlib import Path

import pytest

from agent_runtime_sandbox.drivers import DriverError
from agent_runtime_sandbox.drivers.fresh import fresh_folders


def test_folders_are_new_private_and_empty_each_time(tmp_path: Path) -> None:
    first = fresh_folders(tmp_path)
    (first.config / "settings.json").write_text("{}")
    second = fresh_folders(tmp_path)
    assert second.config != first.config
    assert list(second.config.iterdir()) == list(second.scratch.iterdir()) == []
    assert {stat.S_IMODE(path.stat().st_mode) for path in (second.config, second.scratch)} == {0o700}
    assert not first.config.exists()


def test_links_and_files_with_such_names_lead_nowhere(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    home.mkdir()
    other.mkdir()
    (other / "kept").write_text("x")
    (home / "agent-link").symlink_to(other)
    (home / "agent-file").write_text("x")
    made = fresh_folders(home)
    assert (other / "kept").exists()
    assert made.config.parent.parent == home
    assert [path.name for path in home.iterdir() if path.is_symlink()] == []


def test_what_is_too_deep_to_be_removed_is_no_hindrance(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("agent-deep", dir_fd=here)
    at = os.open("agent-deep", os.O_RDONLY, dir_fd=here)
    for _ in range(1500):
        os.mkdir("d", dir_fd=at)
        below = os.open("d", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    os.close(here)
    try:
        assert fresh_folders(tmp_path).config.is_dir()
    finally:
        os.system(f"rm -rf {tmp_path}/agent-deep")


@pytest.mark.parametrize("left", ["a file", "nothing"])
def test_a_home_that_is_none_is_a_refusal(tmp_path: Path, left: str) -> None:
    home = tmp_path / "home"
    if left == "a file":
        home.write_text("x")
    with pytest.raises(DriverError) as refused:
        fresh_folders(home)
    assert refused.value.code == "agent_failed"
    assert str(tmp_path) not in str(refused.value)
