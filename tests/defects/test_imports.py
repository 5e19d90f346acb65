"""Importing is nothing but importing: no setting is asked for, nothing is begun, and the process lives."""

import os
import subprocess
import sys
from pathlib import Path

IMPORTS = """
import pkgutil, importlib, threading
import agent_runtime, agent_runtime_adapters, agent_runtime_sandbox
for package in (agent_runtime, agent_runtime_adapters, agent_runtime_sandbox):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
assert threading.active_count() == 1
print("alive")
"""


def test_every_module_can_be_imported_without_a_key_or_any_other_setting(tmp_path: Path) -> None:
    for environment in ({}, {"LOG_LEVEL": "silent", "ANTHROPIC_BASE_URL": "nonsense", "PORT": "x"}):
        done = subprocess.run(
            [sys.executable, "-c", IMPORTS],
            env=environment | {"PATH": os.environ["PATH"]},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")
    assert list(tmp_path.iterdir()) == []
