"""The options of bubblewrap and the toolchain: what goes in, and what never does."""

import sys
from pathlib import Path

import pytest

import agent_runtime_sandbox
from agent_runtime.errors import SandboxFault
from agent_runtime_adapters.sandboxes import bubblewrap
from agent_runtime_adapters.sandboxes.toolchain import Mount, find_toolchain


def options(*mounts: Mount, **env: str) -> list[str]:
    return bubblewrap.arguments(mounts, env).decode().split("\0")[:-1]


def test_nothing_but_the_options_own_descriptor_and_the_command_is_on_the_command_line() -> None:
    command = bubblewrap.command("/usr/bin/bwrap", "script", ("python", "-m", "runner"))
    assert command[1:4] == ("--args", str(bubblewrap.ARGUMENTS_PLACE), "--")
    assert command[-3:] == ("python", "-m", "runner")


def test_every_namespace_is_its_own_and_no_other_can_be_made() -> None:
    given = options()
    for option in ("--unshare-user", "--unshare-all", "--disable-userns", "--new-session", "--clearenv"):
        assert option in given
    assert "--share-net" not in given
    assert given[given.index("--cap-drop") + 1] == "ALL"


def test_the_root_becomes_read_only_after_the_last_mount() -> None:
    given = options(Mount("/a", "/workspace", writable=True), Mount("/b", "/opt/b"))
    last_mount = max(
        place for place, option in enumerate(given) if option in {"--bind", "--ro-bind", "--tmpfs"}
    )
    assert [given[place + 1] for place, option in enumerate(given) if option == "--remount-ro"] == [
        "/dev",
        "/",
    ]
    assert given.index("--remount-ro") > last_mount


def test_mounts_are_read_only_unless_they_say_otherwise() -> None:
    given = options(Mount("/a", "/workspace", writable=True), Mount("/b", "/opt/b"))
    assert given[given.index("/a") - 1] == "--bind"
    assert given[given.index("/b") - 1] == "--ro-bind"
    assert given.count("--bind") == 1


def test_only_the_given_variables_are_set() -> None:
    given = options(HOME="/home/agent", LANG="C.UTF-8")
    assert given.count("--setenv") == 2
    place = given.index("--setenv")
    assert given[place + 1 : place + 3] == ["HOME", "/home/agent"]


@pytest.mark.parametrize("folder", ["/run", "/var", "/home", "/root", "/etc", "/sys", "/"])
def test_no_folder_of_the_host_with_private_things_is_mounted(folder: str) -> None:
    given = options()
    sources = [given[place + 1] for place, option in enumerate(given) if option.startswith("--ro-bind")]
    assert folder not in sources


def test_the_toolchain_lies_at_neutral_places_and_shows_only_the_runners_package() -> None:
    toolchain = find_toolchain()
    runner = next(mount for mount in toolchain.mounts if mount.target.endswith("agent_runtime_sandbox"))
    assert runner.source == str(Path(agent_runtime_sandbox.__path__[0]).resolve())
    for mount in toolchain.mounts:
        assert mount.target.startswith("/opt/agent-runtime/")
        assert not mount.writable
    assert toolchain.python.startswith(("/opt/agent-runtime/python/bin/", "/usr/"))
    assert str(Path.home()) not in toolchain.env["PYTHONPATH"]


def test_an_interpreter_whose_folder_holds_a_home_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in (Path.home(), Path.home() / ".local", Path("/")):
        monkeypatch.setattr(sys, "base_prefix", str(prefix))
        with pytest.raises(SandboxFault) as caught:
            find_toolchain()
        assert caught.value.code == "sandbox_unavailable"
        assert str(Path.home()) not in caught.value.detail
