"""Programs run as a user who is nobody in particular; only root can do that."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress

import pytest

UID = 1500
IMPORTS = "import sys, pydantic_core, agent_runtime; print(sys.version_info[:2])"


async def run_as_ordinary_user(program: str, environment: Mapping[str, str]) -> str:
    """What a Python program prints that ends well, with our packages and nothing of our environment."""
    done = await asyncio.to_thread(_run, _python(), program, {"PATH": os.environ["PATH"], **environment})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    return done.stdout


def _python() -> str:
    """One of our version that another user may run, with our packages."""
    for python in (sys.executable, "/usr/bin/python3"):
        with suppress(OSError):
            if _run(python, IMPORTS, {}).stdout.strip() == str(sys.version_info[:2]):
                return python
    wanted = ".".join(map(str, sys.version_info[:2]))
    why = f"no Python {wanted} can be run by other users: install one below /usr (apt-get install python3)"
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


def _run(python: str, program: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-c", program],
        env={
            "PYTHONPATH": ":".join(path for path in sys.path if path),
            "HOME": "/nonexistent",
            **environment,
        },
        user=UID,
        group=UID,
        extra_groups=[],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
