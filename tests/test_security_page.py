"""docs/security.md and the tests agree: each row of its table of attacks names tests that exist.

How a test is named, and how that is looked up, is in `test_promises`. A row has the attack, what holds
against it, and its tests; what does not hold has no row there but a section of its own.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_promises import ROOT, exists

PAGE = ROOT / "docs" / "security.md"
FIRST_CELL = "attack"


def attacks(page: str) -> Iterator[tuple[str, str, str]]:
    """Attack, what holds, and tests of every row of every table of attacks."""
    in_table = False
    for line in page.splitlines():
        if not line.startswith("|"):
            in_table = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        if cells[0] == FIRST_CELL:
            in_table = True
        elif in_table and not set(cells[0]) <= set("-: "):
            attack, holds, tests = (*cells, "", "", "")[:3]
            yield attack, holds, tests


def what_is_wrong(page: str, root: Path = ROOT) -> list[str]:
    """One sentence for each row that does not say what it must."""
    wrong, seen = list[str](), set[str]()
    for attack, holds, tests in attacks(page):
        if attack in seen:
            wrong.append(f"told twice: {attack}")
        seen.add(attack)
        if not holds:
            wrong.append(f"nothing holds: {attack}")
        names = re.findall(r"`([^`]+)`", tests)
        if not names:
            wrong.append(f"nothing attacks: {attack}")
        if rest := re.sub(r"`[^`]+`|[\s,]|<br>", "", tests):
            wrong.append(f"neither a test nor between two: {rest}")
        wrong += [f"no such test: {name}" for name in names if not exists(name, root)]
    return wrong if seen else ["there is no table of attacks"]


def test_each_row_names_the_test_that_attacks() -> None:
    assert what_is_wrong(PAGE.read_text()) == []


HERE = "tests/test_security_page.py::test_each_row_names_the_test_that_attacks"
GOOD = f"| attack | what holds | test |\n|---|---|---|\n| Reads a file. | It is not there. | `{HERE}` |\n"


@pytest.mark.parametrize(
    ("right", "spoilt", "found"),
    [
        ("_that_attacks`", "_that_attack`", f"no such test: {HERE[:-1]}"),
        (f"`{HERE}`", "", "nothing attacks: Reads a file."),
        ("It is not there.", "", "nothing holds: Reads a file."),
        (f"`{HERE}`", f"`{HERE}` and more", "neither a test nor between two: andmore"),
        ("| attack |", "| what |", "there is no table of attacks"),
    ],
)
def test_a_page_that_disagrees_is_found_out(right: str, spoilt: str, found: str) -> None:
    assert what_is_wrong(GOOD) == []
    assert found in what_is_wrong(GOOD.replace(right, spoilt))
