"""The script of the demonstration: a small project is written, changed, run, tested and reviewed.

What is said here was written beforehand; what is done is real: files, commands and the child agent
are the agent's own, and the last words are drawn from what the tools gave back. It takes some ten
seconds at the pace that it is written for.
"""

from __future__ import annotations

from typing import Final

from agent_runtime.testing.script import Ask, Call, Part, Reply, Say, Think

_PACE_S: Final = 0.04
_FOLDER: Final = "life"

_RULES: Final = '''\
"""Conway's Game of Life on a plane without edges."""

Cell = tuple[int, int]


def neighbours(cell: Cell) -> set[Cell]:
    x, y = cell
    return {(x + dx, y + dy) for dx in (-1, 0, 1) for dy in (-1, 0, 1)} - {cell}


def step(alive: set[Cell]) -> set[Cell]:
    """The next generation: three neighbours give life, two keep it."""

    def lives(cell: Cell) -> bool:
        count = len(neighbours(cell) & alive)
        return count == 3 or (count == 2 and cell in alive)

    return {cell for cell in alive.union(*map(neighbours, alive)) if lives(cell)}
'''

_SHOW: Final = '''\
"""Print a glider on its way."""

from life import step

GENERATIONS = 2
GLIDER = {(1, 0), (2, 1), (0, 2), (1, 2), (2, 2)}


def picture(alive: set[tuple[int, int]], size: int = 6) -> str:
    rows = ("".join("#" if (x, y) in alive else "." for x in range(size)) for y in range(size))
    return "\\n".join(rows)


alive = GLIDER
for generation in range(GENERATIONS + 1):
    print(f"generation {generation}\\n{picture(alive)}\\n")
    alive = step(alive)
'''

_TESTS: Final = """\
import unittest

from life import step

GLIDER = {(1, 0), (2, 1), (0, 2), (1, 2), (2, 2)}


class Life(unittest.TestCase):
    def test_a_block_stays_as_it_is(self):
        block = {(0, 0), (0, 1), (1, 0), (1, 1)}
        self.assertEqual(step(block), block)

    def test_a_blinker_turns(self):
        self.assertEqual(step({(0, 1), (1, 1), (2, 1)}), {(1, 0), (1, 1), (1, 2)})

    def test_a_glider_is_one_cell_further_after_four_steps(self):
        alive = GLIDER
        for _ in range(4):
            alive = step(alive)
        self.assertEqual(alive, {(x + 1, y + 1) for x, y in GLIDER})

    def test_nothing_comes_from_nothing(self):
        self.assertEqual(step(set()), set())
"""


def demo(ask: Ask) -> Reply:
    """Write, change, run, test, have it reviewed, sum up."""
    steps = [_begin(ask), _complete(ask), _change(ask), _run(), _check()]
    if ask.tools & {"Agent", "Task"}:
        steps.append(_review())
    return steps[ask.step] if ask.step < len(steps) else [_say(_conclusion(ask))]


def inspect(ask: Ask) -> Reply:
    """The child's part in the demonstration: look at the project and report."""
    if ask.step == 0:
        return [
            _think(
                "I should look at the sizes first and read the rules, because everything else stands on them."
            ),
            _say("I look at the files."),
            _bash(f"wc -l {_FOLDER}/*.py", "Count lines"),
            Call("Read", {"file_path": f"{ask.cwd}/{_FOLDER}/life.py"}),
        ]
    counted = next((result.text for result in ask.results if "total" in result.text), "(nothing was counted)")
    return [
        _say(
            f"Review of `{_FOLDER}/`:\n\n```\n{counted}\n```\n\n"
            "- `life.py` is pure: a set goes in, a set comes out.\n"
            "- `show.py` runs on import; fine for a script, not for a library.\n"
            "- The tests cover a still life, an oscillator, a spaceship and the empty plane.\n\n"
            "Nothing has to change."
        )
    ]


def _begin(ask: Ask) -> list[Part]:
    return [
        _think(
            "A small project shows best what happens here. Conway's Game of Life: the rules fit into a few "
            "lines, a glider is nice to look at, and tests can prove it. First the rules, then a picture, "
            "then tests."
        ),
        _say(
            "I am a scripted model, so my words were written beforehand; the agent, its tools and the files "
            "are real. I will build **Conway's Game of Life** in Python: write it, change it, run it, test "
            "it, and have a child agent review it.\n\nFirst the rules:"
        ),
        _write(ask, "life.py", _RULES),
    ]


def _complete(ask: Ask) -> list[Part]:
    return [
        _say("Now something to see it with, and tests."),
        _write(ask, "show.py", _SHOW),
        _write(ask, "test_life.py", _TESTS),
    ]


def _change(ask: Ask) -> list[Part]:
    edit = {
        "file_path": f"{ask.cwd}/{_FOLDER}/show.py",
        "old_string": "GENERATIONS = 2",
        "new_string": "GENERATIONS = 4",
    }
    return [
        _think("After two generations a glider looks broken. It takes four to have its shape again."),
        _say("A glider needs four generations to find its shape again; two are too few. I change that."),
        Call("Edit", edit, delay_s=_PACE_S),
    ]


def _run() -> list[Part]:
    return [_say("Let us watch it."), _bash(f"python3 -B {_FOLDER}/show.py", "Run the picture")]


def _check() -> list[Part]:
    return [
        _say("It glides. Tests and file sizes, at the same time:"),
        _bash(f"python3 -B -m unittest discover -v -s {_FOLDER}", "Run the tests"),
        _bash(f"ls -l {_FOLDER} && du -sh {_FOLDER}", "List the files"),
    ]


def _review() -> list[Part]:
    task = {
        "description": "Review the project",
        "prompt": f"Review the small project in `{_FOLDER}/` and report in a few lines. [[script:inspect]]",
        "subagent_type": "general-purpose",
        "run_in_background": False,
    }
    return [
        _say("A second pair of eyes never harms, so I ask a child agent to review it."),
        Call("Agent", task),
    ]


def _conclusion(ask: Ask) -> str:
    failed = sum(result.is_error for result in ask.results)
    outcome = (
        f"All {len(ask.results)} tool calls worked."
        if not failed
        else f"{failed} of {len(ask.results)} tool calls failed; their results say why."
    )
    return (
        f"That is it. {outcome}\n\n| file | what it is |\n|---|---|\n| `{_FOLDER}/life.py` | the rules |\n"
        f"| `{_FOLDER}/show.py` | a glider, drawn |\n| `{_FOLDER}/test_life.py` | four tests |\n\n"
        "Write `[[script:hello]]` to see what else I can play."
    )


def _say(text: str) -> Say:
    return Say(text, delay_s=_PACE_S)


def _think(text: str) -> Think:
    return Think(text, delay_s=_PACE_S)


def _bash(command: str, description: str) -> Call:
    return Call("Bash", {"command": command, "description": description})


def _write(ask: Ask, name: str, content: str) -> Call:
    path = f"{ask.cwd}/{_FOLDER}/{name}"
    return Call("Write", {"file_path": path, "content": content}, delay_s=_PACE_S, chunk=60)
