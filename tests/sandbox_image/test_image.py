"""The description of the image: what is in it, in which order, and when two are the same."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from agent_runtime_sandbox import image
from agent_runtime_sandbox.image import Apt, BadRequirement, Base, Files, Packages, Shell, recipe

ROOT = Path(__file__).parents[2]
PINNED = re.compile(r"[^=<>~!]+==[0-9][\w.]*")


def layer_names(of: image.Recipe) -> list[str]:
    return [layer.name for layer in of.layers]


def commands_of(of: image.Recipe, name: str) -> str:
    (step,) = [layer.step for layer in of.layers if layer.name == name]
    assert isinstance(step, Shell)
    return "\n".join(step.commands)


def test_layers_go_from_what_changes_rarely_to_what_changes_often() -> None:
    assert layer_names(recipe()) == ["base", "system", "user", "places", "agents", "runner"]
    everything = Packages.of(pip=["six"], npm=["left-pad"], apt=["jq"])
    assert layer_names(recipe(everything)) == [
        *("base", "system", "user", "places", "node", "agents", "apt", "pip", "npm", "runner")
    ]


def test_order_and_spelling_and_repetition_are_no_difference() -> None:
    once = Packages.of(pip=["pyyaml[a,b]<7,>=6", "six==1.17.0"], npm=["left-pad@1.3.0"], apt=["jq", "tree=2"])
    again = Packages.of(
        pip=["six == 1.17.0", "PyYAML[B,A]>=6,<7", "SIX==1.17.0"],
        npm=["left-pad@1.3.0"] * 2,
        apt=["tree=2", "JQ"],
    )

    assert once == again
    assert once.pip == ("pyyaml[a,b]<7,>=6", "six==1.17.0")
    assert recipe(once) == recipe(again)
    assert recipe(once).name == recipe(again).name


def test_a_difference_counts_from_its_layer_upward_and_not_below() -> None:
    one = recipe(Packages.of(apt=["jq"], pip=["six==1.17.0"], npm=["left-pad"]))
    other = recipe(Packages.of(apt=["jq"], pip=["six==1.16.0"], npm=["left-pad"]))

    same = [a.name for a, b in zip(one.layers, other.layers, strict=True) if a.digest == b.digest]

    assert same == ["base", "system", "user", "places", "node", "agents", "apt"]
    assert one.name != other.name


def test_a_changed_runner_is_another_last_layer(tmp_path: Path) -> None:
    there = Path(image.__file__).parent
    copy = tmp_path / there.name
    shutil.copytree(there, copy, ignore=shutil.ignore_patterns("image.py"))
    assert image.runner_files(copy) == image.runner_files(there)

    (copy / "runner.py").write_text("changed = True\n")
    changed = image.runner_files(copy)

    assert [name for name, digest in image.runner_files(there).items() if changed[name] != digest] == [
        "runner.py"
    ]


def test_the_runner_goes_in_as_files_and_its_description_stays_out() -> None:
    (runner,) = [layer.step for layer in recipe().layers if layer.name == "runner"]
    assert isinstance(runner, Files)
    assert runner.target == "/opt/agent-runtime/lib/agent_runtime_sandbox"
    assert {"__main__.py", "drivers/claude.py", "py.typed"} <= runner.digests.keys()
    files = {
        path for path in runner.folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__"
    }
    assert runner.digests.keys() == {str(path.relative_to(runner.folder)) for path in files} - {"image.py"}


@pytest.mark.parametrize(
    ("registry", "text"),
    [
        ("pip", "git+https://example.com/x"),
        ("pip", "x@https://example.com/x.whl"),
        ("pip", "./local"),
        ("pip", "--index-url=http://example.com"),
        ("pip", "x y"),
        ("npm", "https://example.com/x.tgz"),
        ("npm", "x@file:/etc"),
        ("npm", "x@npm:y"),
        ("npm", "user/repository"),
        ("npm", "../x"),
        ("npm", "--prefix=/"),
        ("npm", "x;id"),
        ("apt", "x/stable"),
        ("apt", "-o=x"),
        ("apt", "./x.deb"),
        ("apt", "x$(id)"),
    ],
)
def test_what_is_no_package_of_a_registry_is_refused(registry: str, text: str) -> None:
    with pytest.raises(BadRequirement, match=f"^{registry}: "):
        Packages.of(**{registry: [text]})


def test_what_a_shell_would_read_is_quoted() -> None:
    commands = commands_of(recipe(Packages.of(pip=["six>=1,<2"], npm=["@scope/x@^1"])), "pip")
    assert commands.endswith(" 'six<2,>=1'")
    assert commands_of(recipe(Packages.of(npm=["x@>=1||<0.5"])), "npm").endswith(" 'x@>=1||<0.5'")


def test_no_code_of_a_package_runs_while_it_is_installed() -> None:
    both = recipe(Packages.of(pip=["six"], npm=["left-pad"]), agents=["opencode"])
    for name in ("agents", "pip", "node"):
        assert "--only-binary=:all:" in commands_of(both, name)
    for name in ("npm", "opencode"):
        assert "npm install --ignore-scripts " in commands_of(both, name)


def test_the_agent_is_the_one_of_the_project_and_can_be_run_but_not_read() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (pin,) = [line for line in project["dependencies"] if line.startswith("claude-agent-sdk")]
    agents = commands_of(recipe(), "agents")

    assert f" {pin} " in agents
    assert image.agent_versions() == {"claude-agent-sdk": pin.partition("==")[2]}
    assert (
        "chmod 0711 /opt/agent-runtime/lib/python3.12/site-packages/claude_agent_sdk/_bundled/claude"
        in agents
    )


def test_every_package_is_pinned_to_one_version() -> None:
    for pin in (*image.PYTHON_LOCK, image.NODE_WHEEL):
        assert PINNED.fullmatch(pin), pin
    for package in image.OTHER_AGENTS.values():
        assert re.fullmatch(r".+@[0-9]+\.[0-9]+\.[0-9]+", package), package


def test_the_lock_is_all_that_the_runner_imports_in_the_versions_that_are_tested() -> None:
    program = (
        "import sys, importlib.metadata as m, watchfiles, agent_runtime_sandbox.__main__,"
        " agent_runtime_sandbox.drivers.claude\n"
        "tops = m.packages_distributions()\n"
        "names = {d for module in sys.modules for d in tops.get(module.split('.')[0], ())}\n"
        "print(*names)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {re.sub(r"[-_.]+", "-", name).lower() for name in done.stdout.split()}
    constraints = (ROOT / "constraints.txt").read_text()
    tested = {re.sub(r"[-_.]+", "-", line).lower() for line in constraints.split()}

    locked = {pin.partition("==")[0] for pin in image.PYTHON_LOCK}
    assert imported - {"claude-agent-sdk", "agent-runtime", "setuptools"} <= locked
    assert {re.sub(r"[-_.]+", "-", pin).lower() for pin in image.PYTHON_LOCK} <= tested


def test_other_agents_are_in_an_image_only_when_asked_for() -> None:
    assert "node" not in layer_names(recipe())
    both = recipe(agents=["gemini-cli", "codex", "codex", "claude-agent-sdk"])
    assert layer_names(both) == [
        "base",
        "system",
        "user",
        "places",
        "node",
        "agents",
        "codex",
        "gemini-cli",
        "runner",
    ]
    assert commands_of(both, "codex").endswith(
        "--prefix /opt/agent-runtime/agents/codex @openai/codex@0.169.0"
    )
    with pytest.raises(BadRequirement, match="no agent called 'x'"):
        recipe(agents=["x"])


def test_the_base_is_a_small_debian_with_the_tools_of_the_agent() -> None:
    base, system, *_ = recipe().layers
    assert base.step == Base("3.12")
    assert system.step == Apt(("ca-certificates", "curl", "git", "ripgrep"))
