"""docs/promises.md and the tests agree: what is promised is proved, and what is proved is promised.

Only names are looked up here, nothing is run. A proof is written in one of three ways:

    `tests/path.py::test_name`, `tests/path.py::Class::test_name`
    `tests/path.test.mjs: title` (without a leading `${...}: `)
    `make target`
"""

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "promises.md"

PROOFS = (
    "tests/stories/test_*.py",
    "tests/chaos/test_*.py",
    "tests/defects/test_*.py",
    "tests/runtime/test_going_on.py",
    "tests/runtime/test_idle.py",
    "tests/runtime/test_rejoin_law.py",
    "tests/runtime/test_when_busy.py",
)
"""Every test in these files proves a promise, and must stand on the page."""

SECTIONS = (
    "Rejoin",
    "Slow viewers",
    "Sends",
    "Stop",
    "The runtime dies",
    "The sandbox dies",
    "Files",
    "Persistence fails",
    "Idle and hibernation",
    "Live equals rest",
    "Old data",
    "Chaos",
)
"""The page has at least these, each with promises."""

_PYTHON = re.compile(r"[\w/]+\.py(::\w+)?::test_\w+")
_NODE = re.compile(r"([\w/]+\.test\.mjs): (.+)")
_MAKE = re.compile(r"make ([a-z]+)")
_NODE_TITLE = re.compile(r"^\s*test\(([\"`'])(?:\$\{\w+\}: )?(.+?)\1,", re.MULTILINE)


def rows(page: str) -> Iterator[tuple[str, str, str]]:
    """Section, promise and proofs of every row of a table."""
    section = ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = line[3:].strip()
        elif line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if cells[0] == "promise" or set(cells[0]) <= set("-: "):
                continue
            promise, proofs = (*cells, "", "")[:2]
            yield section, promise, proofs


def what_is_wrong(page: str, *, root: Path = ROOT, proofs: Iterable[str] = PROOFS) -> list[str]:
    """Every disagreement between a page and the tests below `root`, in one sentence each."""
    wrong, named, promised = list[str](), set[str](), set[str]()
    for _, promise, cell in rows(page):
        if promise in promised:
            wrong.append(f"promised twice: {promise}")
        promised.add(promise)
        names = re.findall(r"`([^`]+)`", cell)
        if not names:
            wrong.append(f"nothing proves: {promise}")
        if rest := re.sub(r"`[^`]+`|[\s,]|<br>", "", cell):
            wrong.append(f"neither a test nor between two: {rest}")
        wrong += [f"no such test: {name}" for name in names if not exists(name, root)]
        named.update(names)
    kept = {test for pattern in proofs for path in root.glob(pattern) for test in defined_in(path, root)}
    return wrong + [f"promises nothing: {test}" for test in sorted(kept - named)]


def exists(name: str, root: Path) -> bool:
    if _PYTHON.fullmatch(name):
        path = root / name.partition("::")[0]
        return path.is_file() and name in defined_in(path, root)
    if found := _NODE.fullmatch(name):
        path = root / found[1]
        return path.is_file() and found[2] in {title for _, title in _NODE_TITLE.findall(path.read_text())}
    if found := _MAKE.fullmatch(name):
        return bool(re.search(rf"^{found[1]}:", (root / "Makefile").read_text(), re.MULTILINE))
    return False


def defined_in(path: Path, root: Path) -> set[str]:
    """The tests that a file defines, as pytest names them, without parameters."""
    file, found = str(path.relative_to(root)), set[str]()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{file}::{node.name}::{test}" for test in _functions(node.body)}
    return found | {f"{file}::{test}" for test in _functions(ast.parse(path.read_text()).body)}


def _functions(body: Iterable[ast.stmt]) -> set[str]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in body if isinstance(node, kinds) and node.name.startswith("test_")}


def test_every_promise_is_proved_and_every_proof_is_promised() -> None:
    assert what_is_wrong(PAGE.read_text()) == []


def test_every_section_promises_something() -> None:
    assert set(SECTIONS) <= {section for section, _, _ in rows(PAGE.read_text())}


# The check itself can fail.

A = "tests/stories/test_a.py"
B = "tests/b.test.mjs"
TESTS = """
def test_it_holds(): ...
class TestStore:
    async def test_it_is_kept(self): ...
"""
CLIENT = """
test("it folds", () => {});
  test(`${recording}: it folds again`, () => {});
"""
GOOD = f"""
## Rejoin
| promise | test |
|---|---|
| It holds. | `{A}::test_it_holds`, `make chaos` |
| It is kept \\| stored. | `{A}::TestStore::test_it_is_kept`<br>`{B}: it folds` |
| It folds. | `{B}: it folds again` |
"""


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    (tmp_path / "tests/stories").mkdir(parents=True)
    (tmp_path / A).write_text(TESTS)
    (tmp_path / B).write_text(CLIENT)
    (tmp_path / "Makefile").write_text("chaos: $(READY)\n\techo\n")
    return tmp_path


def test_a_page_that_agrees_is_found_right(sample: Path) -> None:
    assert what_is_wrong(GOOD, root=sample) == []
    assert what_is_wrong(GOOD.replace(", `make chaos`", ""), root=sample) == []


@pytest.mark.parametrize(
    ("right", "spoilt", "found"),
    [
        (f"{A}::test_it_holds", f"{A}::test_it_held", f"no such test: {A}::test_it_held"),
        (f"{A}::Test", "tests/c.py::Test", "no such test: tests/c.py::TestStore::test_it_is_kept"),
        ("::TestStore::", "::TestOther::", f"no such test: {A}::TestOther::test_it_is_kept"),
        ("::TestStore::", "::", f"no such test: {A}::test_it_is_kept"),
        ("make chaos", "make order", "no such test: make order"),
        ("it folds again", "it unfolds", f"no such test: {B}: it unfolds"),
        ("make chaos", "somebody says so", "no such test: somebody says so"),
        ("`make chaos`", "looked at once", "neither a test nor between two: lookedatonce"),
        (f"`{B}: it folds again`", "", "nothing proves: It folds."),
        ("| It folds.", "| It holds.", "promised twice: It holds."),
        (f"`{A}::test_it_holds`, ", "", f"promises nothing: {A}::test_it_holds"),
    ],
)
def test_a_page_that_disagrees_is_found_out(sample: Path, right: str, spoilt: str, found: str) -> None:
    assert right in GOOD
    assert found in what_is_wrong(GOOD.replace(right, spoilt), root=sample)


def test_a_new_story_without_a_promise_is_found_out(sample: Path) -> None:
    new = "tests/stories/test_new.py"
    (sample / new).write_text("async def test_something_else(): ...\n")
    assert what_is_wrong(GOOD, root=sample) == [f"promises nothing: {new}::test_something_else"]
