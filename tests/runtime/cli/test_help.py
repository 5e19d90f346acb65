"""What `--help` says: every option with its default."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "agent-runtime")


@pytest.mark.parametrize(
    ("command", "told"),
    [("serve", ["[8700]", "[127.0.0.1]"]), ("deploy-image", ["[agent-runtime]"])],
)
def test_defaults_are_told(command: str, told: list[str]) -> None:
    done = subprocess.run([COMMAND, command, "--help"], capture_output=True, text=True, check=True)
    for default in told:
        assert default in done.stdout
