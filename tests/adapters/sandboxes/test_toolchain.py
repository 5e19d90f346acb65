"""What of this machine's Python goes into a sandbox."""

from importlib.util import cache_from_source
from pathlib import Path

import pytest

from agent_runtime_adapters.sandboxes.toolchain import runner_folder, write_bytecode


async def test_what_a_runner_imports_is_compiled_before_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the runtime itself is told to leave no bytecode behind."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    compiled = [
        Path(cache_from_source(str(runner_folder() / name))) for name in ("runner.py", "drivers/claude.py")
    ]
    for file in compiled:
        file.unlink(missing_ok=True)
    await write_bytecode()
    assert all(file.exists() for file in compiled)
