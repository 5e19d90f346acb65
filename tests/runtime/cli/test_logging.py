"""What is logged of a failure: readable, where it belongs, and without the variables."""

import json
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

HOST = """
import structlog
{configured}
from pathlib import Path
from agent_runtime.runtime import AgentRuntime
from tests.runtime.transport.world import quiet_config
AgentRuntime(quiet_config())
def fail(token):
    raise RuntimeError("something went wrong")
try:
    fail("a-secret-" + "token")
except RuntimeError:
    structlog.get_logger().exception("task_failed")
"""


MISCHIEF = """
import logging, structlog
from agent_runtime.cli.main import _log_to_stderr
_log_to_stderr(logging.INFO)
clear = "\\x1b[2J\\x1b]0;title\\x07\\x9b2J\\u202egnp"
structlog.get_logger().info("agent_stderr", text=clear, number=7)
try:
    raise RuntimeError(clear)
except RuntimeError:
    structlog.get_logger().exception("task_failed")
"""


def test_a_host_that_configured_nothing_gets_tracebacks_without_variables() -> None:
    done = told_by(HOST.format(configured=""))

    assert "RuntimeError: something went wrong" in done
    assert "a-secret-token" not in done


def test_a_hosts_own_configuration_stays() -> None:
    chosen = "structlog.configure(processors=[structlog.processors.JSONRenderer()])"
    done = told_by(HOST.format(configured=chosen))

    assert json.loads(done) == {"event": "task_failed", "exc_info": True}


def told_by(program: str) -> str:
    """What it prints."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_a_traceback_names_the_place_and_never_the_variables() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)

    assert done.stdout == ""
    assert "task_failed" in done.stderr
    assert "session_id=s-1" in done.stderr
    assert "RuntimeError: something went wrong" in done.stderr
    assert "a-secret-token" not in done.stderr


def test_what_an_agent_says_does_not_move_the_terminal_of_whoever_reads_the_log() -> None:
    done = subprocess.run([sys.executable, "-c", MISCHIEF], capture_output=True, text=True, check=True)

    lines = done.stderr.splitlines()
    assert all(line.isprintable() for line in lines), "nothing in it is obeyed, or turns text around"
    assert lines[0].endswith(r"number=7 text=\x1b[2J\x1b]0;title\x07\x9b2J\u202egnp")
    assert lines[-1] == r"RuntimeError: \x1b[2J\x1b]0;title\x07\x9b2J\u202egnp"
