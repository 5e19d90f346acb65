"""A profile's packages on this machine: installed once, seen inside, and nothing of them run outside."""

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import Dependencies, SandboxNeeds
from agent_runtime.ports import SandboxProvider
from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime_adapters.sandboxes.dependencies import DependencyStore
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.toolchain import find_node, toolchain_here
from agent_runtime_adapters.sandboxes.unsafe_subprocess import UnsafeSubprocess
from tests.adapters.sandboxes.machine import (
    OBEDIENT,
    Inside,
    as_ordinary_user,
    needs_local_sandboxes,
    needs_root,
    place,
)
from tests.adapters.sandboxes.registries import NpmRegistry, make_wheel, npm_registry, use_wheels_of

TOOLS = Dependencies(pip=("tinypy",), npm=("tinyjs",))
RUN = """
def said(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() or done.stderr
"""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[NpmRegistry]:
    """`tinypy` and `tinyjs`, and no other package anywhere."""
    make_wheel(tmp_path / "wheels", "tinypy", "1.0")
    use_wheels_of(tmp_path / "wheels", monkeypatch)
    with npm_registry(monkeypatch) as npm:
        npm.add("tinyjs", "1.0.0")
        yield npm


@contextmanager
def a_root() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "dependencies"


@asynccontextmanager
async def a_store(root: Path) -> AsyncIterator[DependencyStore]:
    store = DependencyStore(root, mounted=False)
    try:
        yield store
    finally:
        await store.close()


@asynccontextmanager
async def inside_with(provider: SandboxProvider, wanted: Dependencies, root: Path) -> AsyncIterator[Inside]:
    with gateway() as spec:
        sandbox = await provider.create(replace(spec, needs=SandboxNeeds(dependencies=wanted)))
        try:
            yield Inside(sandbox, root)
        finally:
            await sandbox.stop()
            await provider.close()


def names_in(root: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in root.iterdir() if path.suffix != ".lock")


async def fault_of(store: DependencyStore, wanted: Dependencies) -> SandboxFault:
    with pytest.raises(SandboxFault) as caught:
        await store.prepare(wanted, toolchain_here())
    return caught.value


@needs_local_sandboxes
async def test_the_agents_tools_have_what_the_profile_asks_for(registry: NpmRegistry) -> None:
    look = (
        RUN
        + """
print(json.dumps([
    said("python3", "-c", "import tinypy; tinypy.greet()"),
    said("tinypy-greet"),
    said("node", "-p", "require('tinyjs')"),
    said("tinyjs-greet"),
]))
"""
    )
    with place() as root:
        async with inside_with(LocalSandboxes(root, runner=("-c", OBEDIENT)), TOOLS, root) as there:
            assert await there.run(look) == ["hello from python"] * 2 + ["hello from node"] * 2


@needs_local_sandboxes
async def test_they_cannot_be_changed_from_inside_and_name_nothing_of_the_host(registry: NpmRegistry) -> None:
    look = """
def refused(path):
    try:
        open(path, "w")
    except OSError as error:
        return errno.errorcode[error.errno]
top = "/opt/agent-runtime/deps"
texts = [open(os.path.join(top, "python", "bin", name)).read() for name in ("python3", "tinypy-greet")]
texts.append(open(os.path.join(top, "python", "pyvenv.cfg")).read())
print(json.dumps([refused(f"{top}/python/bin/python3"), refused(f"{top}/node/x"), "".join(texts)]))
"""
    with place() as root:
        async with inside_with(LocalSandboxes(root, runner=("-c", OBEDIENT)), TOOLS, root) as there:
            first, second, texts = await there.run(look)
    assert (first, second) == ("EROFS", "EROFS")
    assert str(root) not in texts
    assert sys.executable not in texts


@needs_local_sandboxes
async def test_the_runner_has_nothing_of_them(registry: NpmRegistry) -> None:
    look = """
import importlib.util
print(json.dumps([sys.path, importlib.util.find_spec("tinypy") is None, os.environ.get("PYTHONPATH")]))
"""
    with place() as root:
        async with inside_with(LocalSandboxes(root, runner=("-c", OBEDIENT)), TOOLS, root) as there:
            path, unknown, variable = await there.run(look)
    assert unknown
    assert not [entry for entry in (*path, variable) if "deps" in entry]


async def test_without_isolation_they_are_the_same(registry: NpmRegistry) -> None:
    look = (
        RUN
        + """
greets = "import tinypy; tinypy.greet()"
print(json.dumps([said("tinypy-greet"), said("python3", "-c", greets), said("tinyjs-greet")]))
"""
    )
    with place() as root:
        async with inside_with(UnsafeSubprocess(root, runner=("-c", OBEDIENT)), TOOLS, root) as there:
            assert await there.run(look) == ["hello from python"] * 2 + ["hello from node"]


async def test_many_at_once_install_them_once(registry: NpmRegistry) -> None:
    with a_root() as root:
        async with a_store(root) as one, a_store(root) as other:
            stores = [one, other] * 5
            await asyncio.gather(*(store.prepare(TOOLS, toolchain_here()) for store in stores))
        assert names_in(root) == ["node", "python"]
    assert registry.fetched == ["/tinyjs/-/tinyjs-1.0.0.tgz"]


async def test_what_is_there_is_had_without_a_registry_and_in_any_spelling(
    registry: NpmRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with a_root() as root:
        async with a_store(root) as store:
            await store.prepare(TOOLS, toolchain_here())
        monkeypatch.setenv("PATH", "/nonexistent-but-for:" + str(_only("node", root.parent)))
        async with a_store(root) as later:
            await later.prepare(
                Dependencies(npm=("tinyjs", "tinyjs"), pip=("TinyPy", "tinypy")), toolchain_here()
            )
        assert names_in(root) == ["node", "python"]


async def test_whoever_gives_up_waiting_leaves_the_installation_to_the_next(registry: NpmRegistry) -> None:
    registry.gate.clear()
    with a_root() as root:
        async with a_store(root) as store:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await store.prepare(TOOLS, toolchain_here())
            assert await asyncio.to_thread(registry.asked.wait, 30)
            registry.gate.set()
            await store.prepare(TOOLS, toolchain_here())
        assert registry.fetched == ["/tinyjs/-/tinyjs-1.0.0.tgz"]


async def test_a_runtime_that_ends_in_the_middle_leaves_nothing_half(registry: NpmRegistry) -> None:
    registry.gate.clear()
    with a_root() as root:
        async with a_store(root) as store:
            preparing = asyncio.gather(
                store.prepare(Dependencies(npm=("tinyjs",)), toolchain_here()), return_exceptions=True
            )
            assert await asyncio.to_thread(registry.asked.wait, 30)
            await store.close()
            (outcome,) = await preparing
            assert isinstance(outcome, SandboxFault)
        assert list(root.iterdir()) == []


async def test_no_code_of_a_package_runs_here(
    registry: NpmRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trace = tmp_path / "it-ran"
    registry.add("eager", "1.0.0", scripts={"preinstall": f"touch {trace}", "postinstall": f"touch {trace}"})
    sources = tmp_path / "sources"
    (sources / "eagerpy-1.0").mkdir(parents=True)
    (sources / "eagerpy-1.0" / "setup.py").write_text(f"open({str(trace)!r}, 'w')\n")
    shutil.make_archive(str(sources / "eagerpy-1.0"), "gztar", sources, "eagerpy-1.0")
    use_wheels_of(sources, monkeypatch)
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    monkeypatch.setenv("npm_config_ignore_scripts", "false")

    with a_root() as root:
        async with a_store(root) as store:
            await store.prepare(Dependencies(npm=("eager",)), toolchain_here())
            fault = await fault_of(store, Dependencies(pip=("eagerpy",)))
    assert fault.code == "dependencies_failed"
    assert fault.detail == "pip: there is no wheel of eagerpy for this Python."
    assert not trace.exists()


@pytest.mark.parametrize(
    "elsewhere", ["file:/etc", "git+https://127.0.0.1:9/x.git", "http://127.0.0.1:9/x.tgz"]
)
async def test_what_a_package_depends_on_comes_from_the_registry_too(
    registry: NpmRegistry, elsewhere: str
) -> None:
    registry.add("sly", "1.0.0", dependencies={"inner": elsewhere})
    with a_root() as root:
        async with a_store(root) as store:
            fault = await fault_of(store, Dependencies(npm=("sly",)))
        assert fault.code == "dependencies_failed"
        assert list(root.iterdir()) == []


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (Dependencies(pip=("absent==3",)), "pip: there is no wheel of absent==3 for this Python."),
        (Dependencies(npm=("absent",)), "npm: a package, or that version of it, is not in the registry."),
        (Dependencies(npm=("tinyjs@9",)), "npm: a package, or that version of it, is not in the registry."),
    ],
)
async def test_a_package_that_is_not_there_is_named_and_leaves_nothing(
    registry: NpmRegistry, wanted: Dependencies, told: str
) -> None:
    with a_root() as root:
        async with a_store(root) as store:
            fault = await fault_of(store, wanted)
        assert (fault.code, fault.detail, fault.retryable) == ("dependencies_failed", told, False)
        assert list(root.iterdir()) == []


@pytest.mark.parametrize("registry_of", ["pip", "npm"])
async def test_a_registry_that_cannot_be_reached_is_said_without_its_address(
    monkeypatch: pytest.MonkeyPatch, registry_of: str
) -> None:
    address = "http://someone:a-secret@127.0.0.1:9/simple"
    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", address)
    monkeypatch.setenv("npm_config_registry", address)
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    with a_root() as root:
        async with a_store(root) as store:
            fault = await fault_of(store, Dependencies.model_validate({registry_of: ["tiny"]}))
        assert fault.detail == f"{registry_of}: the registry cannot be reached from this machine."
        assert (fault.code, fault.retryable) == ("dependencies_failed", True)
        assert list(root.iterdir()) == []


async def test_a_broken_registry_is_a_fault_without_a_path_or_address(registry: NpmRegistry) -> None:
    registry.broken = True
    with a_root() as root:
        async with a_store(root) as store:
            fault = await fault_of(store, Dependencies(npm=("tinyjs",)))
        assert fault.detail == "npm: the packages could not be installed (E500)."


@needs_local_sandboxes
async def test_a_node_that_lies_outside_of_the_system_is_brought_in(
    registry: NpmRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = RUN + "print(json.dumps([said('sh', '-c', 'command -v node'), said('tinyjs-greet')]))"
    with place() as root, tempfile.TemporaryDirectory() as prefix:
        put_node_into(Path(prefix), monkeypatch)
        async with inside_with(
            LocalSandboxes(root, runner=("-c", OBEDIENT)), Dependencies(npm=("tinyjs",)), root
        ) as there:
            assert await there.run(look) == ["/opt/agent-runtime/node/bin/node", "hello from node"]


def test_a_node_among_private_files_is_not_brought_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_node_into(tmp_path, monkeypatch)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(SandboxFault, match="private files") as caught:
        find_node()
    assert str(tmp_path) not in caught.value.detail


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="this machine is no Debian")
async def test_the_packages_of_the_distribution_are_those_of_the_machine() -> None:
    async with a_store(Path("/nonexistent/never-made")) as store:
        await store.prepare(Dependencies(apt=("dpkg", "Coreutils")), toolchain_here())
        fault = await fault_of(store, Dependencies(apt=("dpkg", "no-such-thing", "dpkg=0.1")))
    assert fault.code == "dependency_missing"
    assert fault.detail == "Not installed on this machine: `apt-get install dpkg=0.1 no-such-thing`."


async def test_tools_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    async with a_store(tmp_path / "never-made") as store:
        node = await fault_of(store, Dependencies(npm=("tinyjs",)))
        apt = await fault_of(store, Dependencies(apt=("jq",)))
    assert (node.code, apt.code) == ("dependency_missing", "dependency_missing")
    assert "apt-get install nodejs npm" in node.detail
    assert apt.detail == "jq: apt packages can only be had on Debian and its kin, or on Modal."


async def test_what_is_no_package_is_refused_before_anything_is_asked() -> None:
    async with a_store(Path("/nonexistent/never-made")) as store:
        fault = await fault_of(store, Dependencies(pip=("git+https://example.com/x",)))
    assert (fault.code, fault.retryable) == ("invalid_dependency", False)


async def test_an_installer_gets_no_secret_of_the_runtime(
    registry: NpmRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    spy = tmp_path / "spy" / "npm"
    spy.parent.mkdir()
    spy.write_text(f'#!/bin/sh\nenv > "{told}"\nexit 1\n')
    spy.chmod(0o755)
    monkeypatch.setenv("PATH", f"{spy.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-the-real-one")
    monkeypatch.setenv("NODE_OPTIONS", "--require=/tmp/evil.js")
    with a_root() as root:
        async with a_store(root) as store:
            fault = await fault_of(store, Dependencies(npm=("tinyjs",)))
    assert fault.detail == "npm: the packages could not be installed."
    assert registry.url in told.read_text()
    assert "sk-the-real-one" not in told.read_text()
    assert "NODE_OPTIONS" not in told.read_text()


ELSEWHERE = """
import asyncio, json, os, tempfile, time
from dataclasses import replace
from pathlib import Path
from agent_runtime.needs import Dependencies, SandboxNeeds
from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime_adapters.sandboxes.local import LocalSandboxes
from agent_runtime_adapters.sandboxes.package_folders import KEPT_FOR_S, PackageFolders
from agent_runtime_adapters.sandboxes.tiers import Tier
from tests.adapters.sandboxes.machine import OBEDIENT, Inside, place
SAID = "lambda *command: subprocess.run(command, capture_output=True, text=True).stdout.strip()"
LOOK = f'''
said = {SAID}
import glob
open_to_all = [path for path in glob.glob(others + "/*") if os.access(path, os.R_OK)]
print(json.dumps([said("tinypy-greet"), said("python3", "-c", "import tinypy; tinypy.greet()"),
    said("tinyjs-greet"), open_to_all]))
'''
async def main():
    with place() as root, gateway() as spec:
        provider = LocalSandboxes(root, runner=("-c", OBEDIENT), tiers=TIERS)
        others = root / "dependencies" / "python-of-others"
        others.mkdir(parents=True)
        (others / "file").write_text("x")
        needs = SandboxNeeds(dependencies=Dependencies(pip=("tinypy",), npm=("tinyjs",)))
        sandbox = await provider.create(replace(spec, needs=needs))
        try:
            said = await Inside(sandbox, root).run(LOOK, others=str(others))
            kept = [path for path in (root / "dependencies").iterdir() if path.is_dir() and path != others]
            for path in kept:
                os.utime(path, times=(time.time() - 2 * KEPT_FOR_S,) * 2)
            PackageFolders(root / "dependencies").sweep()
            told = json.dumps([said, len(kept), all(path.exists() for path in kept)])
        finally:
            await sandbox.stop()
            await provider.close()
    print(told)
os.environ.update(SETTINGS)
asyncio.run(main())
"""


@needs_root
@pytest.mark.parametrize(
    ("tiers", "is_root"),
    [
        ("(Tier.BUBBLEWRAP,)", False),
        ("(Tier.LANDLOCK_CGROUP, Tier.LANDLOCK)", True),
        ("(Tier.LANDLOCK,)", False),
    ],
)
async def test_other_users_and_sandboxes_without_namespaces_have_them_too(
    monkeypatch: pytest.MonkeyPatch, tiers: str, is_root: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder, npm_registry(monkeypatch) as npm:
        Path(folder).chmod(0o755)  # noqa: ASYNC240
        make_wheel(Path(folder) / "wheels", "tinypy", "1.0")
        npm.add("tinyjs", "1.0.0")
        settings = {
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": f"{folder}/wheels",
            "npm_config_registry": npm.url,
        }
        program = ELSEWHERE.replace("TIERS", tiers).replace("SETTINGS", repr(settings))
        said, installed, kept = await as_ordinary_user(program, is_root=is_root)
    assert said == ["hello from python"] * 2 + ["hello from node", []]
    assert installed == 2
    assert kept or tiers == "(Tier.LANDLOCK,)"  # there nobody can see what the sandbox sees


@needs_local_sandboxes
async def test_small_packages_of_the_real_registries(tmp_path: Path) -> None:
    wanted = Dependencies(pip=("six==1.17.0",), npm=("left-pad@1.3.0",))
    look = (
        RUN
        + """
print(json.dumps([
    said("python3", "-c", "import six; print(six.__version__)"),
    said("node", "-p", "require('left-pad')('x', 3, '.')"),
]))
"""
    )
    with place() as root:
        async with inside_with(LocalSandboxes(root, runner=("-c", OBEDIENT)), wanted, root) as there:
            assert await there.run(look) == ["1.17.0", "..x"]


def put_node_into(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on Node is found there, as a version manager would have it."""
    program = prefix / "bin" / "node"
    program.parent.mkdir()
    prefix.chmod(0o755)
    program.write_text(f'#!/bin/sh\nexec {shutil.which("node")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def _only(program: str, folder: Path) -> Path:
    """A folder in which this program is found and no other."""
    there = folder / "programs"
    there.mkdir()
    (there / program).symlink_to(str(shutil.which(program)))
    return there
