"""What holds for sandboxes with users of their own holds for those of an ordinary user, who shares his.

The very same tests are run by somebody who is not root. There a sandbox's processes are the runtime's own
user's, and only namespaces, the filter and the program that cannot be read are between them.
"""

import asyncio
from pathlib import Path

import pytest

from tests.adapters.sandboxes.machine import as_ordinary_user, needs_local_sandboxes, needs_root

ROOT = Path(__file__).parents[3]
SUITES = {
    "tests/adapters/sandboxes/test_local_isolation.py": 14,
    "tests/adapters/sandboxes/test_local_escapes.py": 14,
    "tests/stories/test_nobody_speaks.py": 10,
}
"""With the number of tests in each that must have been run: what is left out proves nothing."""


PROGRAM = """
import contextlib, io, os, sys, pytest

class Passed:
    count = 0
    def pytest_runtest_logreport(self, report):
        self.count += report.when == "call" and report.passed

sys.dont_write_bytecode = True
os.chdir(ROOT)
passed, said = Passed(), io.StringIO()
with contextlib.redirect_stdout(said):
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", ROOT, "-c", "pyproject.toml"]
    code = pytest.main([*options, SUITE], [passed])
if code:
    sys.exit(said.getvalue())
print(passed.count)
"""


@needs_root
@needs_local_sandboxes
@pytest.mark.timeout(400)
@pytest.mark.parametrize("suite", SUITES)
def test_it_holds_without_root_as_well(suite: str) -> None:
    program = f"ROOT, SUITE = {str(ROOT)!r}, {suite!r}\n{PROGRAM}"
    assert asyncio.run(as_ordinary_user(program)) >= SUITES[suite]
