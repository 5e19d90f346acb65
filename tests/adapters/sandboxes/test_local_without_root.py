"""What holds for sandboxes with users of their own holds for those of an ordinary user, who shares his.

The very same tests are run by somebody who is not root. There a sandbox's processes are the runtime's own
user's, and only namespaces, the filter and the program that cannot be read are between them.
"""

import asyncio
import re
from pathlib import Path

import pytest

from tests.adapters.sandboxes.machine import needs_local_sandboxes, needs_root
from tests.adapters.sandboxes.ordinary_user import run_as_ordinary_user

ROOT = Path(__file__).parents[3]
SUITES = {
    "tests/adapters/sandboxes/test_local_isolation.py": 14,
    "tests/adapters/sandboxes/test_local_escapes.py": 14,
    "tests/stories/test_nobody_speaks.py": 10,
}
"""With the number of tests in each that must have been run: what is left out proves nothing."""


@needs_root
@needs_local_sandboxes
@pytest.mark.timeout(400)
@pytest.mark.parametrize("suite", SUITES)
def test_it_holds_without_root_as_well(suite: str) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    program = f"""
import os, sys, pytest
sys.dont_write_bytecode = True
os.chdir({str(ROOT)!r})
sys.exit(pytest.main({[*options, str(ROOT / suite)]!r}))
"""
    told = asyncio.run(run_as_ordinary_user(program, {}))
    passed = re.search(r"(\d+) passed", told)
    assert passed is not None, told
    assert int(passed[1]) >= SUITES[suite], told
