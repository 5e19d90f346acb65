"""The script for people with an account, as far as it goes against a local Modal."""

import asyncio
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

from tests.adapters.sandboxes.modal_world import modal_world, needs_users

SCRIPT = Path(__file__).parents[3] / "examples" / "modal_check.py"
HERE = (
    "runner",
    "users",
    "signals",
    "network",
    "journal",
    "reattach",
    "snapshot",
    "streams",
    "output",
    "stdin",
)
"""What a local Modal is like the real one in; the rest is what the script is for."""


@needs_users
async def test_the_checks_pass_here_as_far_as_they_can_and_leave_nothing() -> None:
    async with modal_world() as it:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), *HERE, stdout=PIPE, stderr=PIPE
        )
        output, errors = await process.communicate()
        sys.stderr.write(output.decode() + errors.decode()[-2000:])
        told = [line.split(maxsplit=2) for line in output.decode().splitlines()]
        assert [(mark, name) for mark, name, _ in told] == [("ok", name) for name in HERE]
        assert process.returncode == 0
        assert await it.living() == []


@needs_users
async def test_without_a_valid_token_it_says_one_line() -> None:
    async with modal_world() as it:
        environment = {**it.environment(), "MODAL_TOKEN_SECRET": "as-somebody-else"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(SCRIPT), "runner", stdout=PIPE, stderr=PIPE, env=environment
        )
        output, _ = await process.communicate()
        assert output.decode().count("\n") == 1
        assert "modal token new" in output.decode()
        assert process.returncode == 1
