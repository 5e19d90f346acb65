"""What the command line logs: readable, on standard error, and without the variables of a failure."""

import subprocess
import sys

PROGRAM = """
import logging, structlog
from agent_runtime.cli.main import _log_to_stderr
_log_to_stderr(logging.INFO)
log = structlog.get_logger()
def fail(token):
    raise RuntimeError("something went wrong")
try:
    fail("a-secret-" + "token")
except RuntimeError:
    log.exception("task_failed", session_id="s-1")
"""


def test_a_traceback_names_the_place_and_never_the_variables() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    assert "task_failed" in done.stderr
    assert "session_id=s-1" in done.stderr
    assert "RuntimeError: something went wrong" in done.stderr
    assert "a-secret-token" not in done.stderr
