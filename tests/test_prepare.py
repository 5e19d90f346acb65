"""The Makefile's helper: it names what is missing and how to get it, and never passes silently."""

import subprocess
import sys
from pathlib import Path

PREPARE = Path(__file__).resolve().parents[1] / "tools" / "prepare.py"


def prepare(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PREPARE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": path})


def test_a_target_that_nobody_knows_gets_one_clear_line(tmp_path: Path) -> None:
    done = prepare("dance", path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "usage: prepare.py python|demo|test|bench\n"


def test_what_is_missing_is_named_with_the_command_that_brings_it(tmp_path: Path) -> None:
    done = prepare("test", path=str(tmp_path))
    assert done.returncode == 1
    for package in ("bubblewrap", "chromium", "nodejs", "npm", "curl", "git"):
        assert f"apt-get install {package}" in done.stderr


def test_a_machine_that_has_everything_is_left_alone(tmp_path: Path) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\n")
    bwrap.chmod(0o755)
    done = prepare("demo", path=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
