"""`deploy-image` against a local Modal: what is described is built, once, and named by its content."""

import asyncio
import os
import shlex
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import modal
import pytest

from agent_runtime.errors import SandboxFault
from agent_runtime.needs import Dependencies, SandboxNeeds
from agent_runtime.testing.sandbox_contract import gateway
from agent_runtime.testing.stories import refused
from agent_runtime_adapters.sandboxes.modal.image import Images, open_app
from agent_runtime_adapters.sandboxes.packages import recipe_for
from agent_runtime_modal_local import Do, Fault, LocalModal
from agent_runtime_sandbox.image import RUNNER_PARENT, VARIABLES, Apt, Shell, Variables, recipe
from tests.adapters.sandboxes.modal_world import modal_world, needs_users

COMMAND = str(Path(sys.executable).parent / "agent-runtime")
DEPENDENT = """
name: Analyst
sandbox:
  dependencies: {pip: ["Six==1.17.0"], npm: ["left-pad@1.3.0"], apt: [jq]}
"""
ALIKE = """
sandbox:
  dependencies: {apt: [JQ, jq], npm: ["left-pad@1.3.0"], pip: ["SIX==1.17.0"]}
"""


@dataclass
class Ended:
    code: int
    output: str
    errors: str


async def deploy(environment: Mapping[str, str], *arguments: str, data: Path) -> Ended:
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, "deploy-image", "--data", str(data), *arguments),
        stdout=PIPE,
        stderr=PIPE,
        env={**os.environ, **environment},
        cwd=data,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return Ended(process.returncode, output.decode(), errors.decode())


@asynccontextmanager
async def a_modal() -> AsyncIterator[LocalModal]:
    """The SDK of this process talks to it too, with a client that ends with it."""
    async with LocalModal() as server:
        with server.in_environment():
            yield server
            client = await modal.Client.from_env.aio()
            await client.close.aio()


def with_profiles(data: Path) -> Path:
    folder = data / "profiles"
    folder.mkdir()
    (folder / "analyst.yaml").write_text(DEPENDENT)
    (folder / "alike.yaml").write_text(ALIKE)
    return data


async def lines_of_the_largest(server: LocalModal) -> list[str]:
    """All lines of the image with the most layers."""
    return max((image["commands"] for image in await server.images()), key=len)


async def test_the_default_image_is_built_layer_by_layer_and_published(tmp_path: Path) -> None:
    async with a_modal() as server:
        done = await deploy(server.environment(), data=tmp_path)

        assert done.code == 0, done.errors
        assert done.output == f"{recipe().name}\n"
        shown = [line.split()[1:3] for line in done.errors.splitlines() if line.startswith("  ok ")]
        assert shown == [[layer.name, layer.digest[:12]] for layer in recipe().layers]
        assert (await server.calls())["ImagePublish"] == 1


async def test_what_modal_received_is_what_is_described(tmp_path: Path) -> None:
    async with a_modal() as server:
        done = await deploy(server.environment(), "--profile", "analyst", data=with_profiles(tmp_path))
        assert done.code == 0, done.errors
        lines = await lines_of_the_largest(server)

    wanted = recipe_for(Dependencies(pip=("six==1.17.0",), npm=("left-pad@1.3.0",), apt=("jq",)))
    assert lines[0].startswith("FROM python:3.12")
    described = []
    for layer in wanted.layers[1:]:
        match layer.step:
            case Apt(packages):
                described += [f"RUN apt-get install -y {' '.join(packages)}"]
            case Shell(commands):
                described += [f"RUN {command}" for command in commands]
            case Variables(env):
                described += [f"ENV {name}={shlex.quote(value)}" for name, value in env.items()]
    where = [lines.index(line) for line in described]
    assert where == sorted(where)
    assert lines[-1].startswith("COPY . /")
    assert not [line for line in lines if "image.py" in line]


async def test_what_is_published_is_neither_built_nor_published_again(tmp_path: Path) -> None:
    async with a_modal() as server:
        await deploy(server.environment(), "--profile", "analyst", data=with_profiles(tmp_path))
        await server.clear_faults()
        again = await deploy(server.environment(), "--profile", "alike", data=tmp_path)
        calls = await server.calls()

    assert again.code == 0
    assert "nothing to build" in again.errors
    assert not {"ImageGetOrCreate", "ImageJoinStreaming", "ImagePublish", "MountPutFile"} & calls.keys()


async def test_profiles_that_need_the_same_share_an_image(tmp_path: Path) -> None:
    profiles = [word for name in ("default", "alike", "analyst", "alike") for word in ("--profile", name)]
    async with a_modal() as server:
        done = await deploy(server.environment(), *profiles, data=with_profiles(tmp_path))

    assert done.code == 0, done.errors
    assert len(done.output.split()) == 2
    assert "for alike, analyst" in done.errors


async def test_only_what_changed_is_built(tmp_path: Path) -> None:
    async with a_modal() as server:
        await deploy(server.environment(), data=tmp_path)
        await server.clear_faults()
        await deploy(server.environment(), "--profile", "analyst", data=with_profiles(tmp_path))
        calls = await server.calls()

    # node, agents on top of it, apt, pip, npm, runner: the four layers below are the same
    assert calls["ImageJoinStreaming"] == 6


async def test_it_goes_into_the_app_and_the_environment_that_are_named(tmp_path: Path) -> None:
    async with a_modal() as server:
        done = await deploy(server.environment(), "--app", "mine", "--environment", "staging", data=tmp_path)
        assert done.code == 0, done.errors
        app = await open_app("mine", "staging")
        assert await Images(app, environment="staging").published(recipe()) is not None
        assert await Images(app, environment="main").published(recipe()) is None


@needs_users
async def test_what_is_deployed_is_what_sandboxes_begin_with_and_nothing_is_built(tmp_path: Path) -> None:
    analyst = Dependencies(pip=("six==1.17.0",), npm=("left-pad@1.3.0",), apt=("jq",))
    async with modal_world() as it:
        await deploy(it.local.environment(), "--profile", "analyst", data=with_profiles(tmp_path))
        await it.local.clear_faults()
        with gateway() as spec:
            sandbox = await it.provider().create(replace(spec, needs=SandboxNeeds(dependencies=analyst)))
            calls = await it.local.calls()
            said = await it.inside(
                sandbox, f"ls {RUNNER_PARENT}/agent_runtime_sandbox; echo $PATH $NODE_PATH"
            )
            await sandbox.stop()

    assert not {"ImageGetOrCreate", "ImageJoinStreaming", "ImagePublish", "MountPutFile"} & calls.keys()
    assert "runner.py" in said
    assert "image.py" not in said
    assert f"{VARIABLES['PATH']} {VARIABLES['NODE_PATH']}" in said


async def test_a_layer_that_cannot_be_built_is_one_line(tmp_path: Path) -> None:
    async with a_modal() as server:
        await server.fail_builds("E: /home/somebody/secret: no such package")
        done = await deploy(server.environment(), data=tmp_path)

    assert done.code == 2
    assert done.output == ""
    last = done.errors.splitlines()[-1]
    assert last.startswith("agent-runtime: The layer 'base' of the image could not be built.")
    assert "modal image logs im-" in last
    assert "secret" not in done.errors
    assert "Traceback" not in done.errors


@pytest.mark.parametrize(
    "account",
    [
        {"MODAL_TOKEN_ID": "", "MODAL_TOKEN_SECRET": ""},
        {"MODAL_TOKEN_ID": "ak-nobody", "MODAL_TOKEN_SECRET": "as-nothing"},
    ],
)
async def test_no_account_or_a_wrong_one_is_one_line(tmp_path: Path, account: dict[str, str]) -> None:
    async with a_modal() as server:
        done = await deploy({**server.environment(), **account}, data=tmp_path)

    assert done.code == 2
    assert done.output == ""
    assert len(done.errors.splitlines()) == 1
    assert "modal token new" in done.errors


async def test_ctrl_c_ends_it_without_many_words(tmp_path: Path) -> None:
    async with a_modal() as server:
        await server.set_fault(Fault("ImageJoinStreaming", Do.HANG, times=None))
        process = await asyncio.create_subprocess_exec(
            *(COMMAND, "deploy-image", "--data", str(tmp_path)),
            stdout=PIPE,
            stderr=PIPE,
            env={**os.environ, **server.environment()},
        )
        async with asyncio.timeout(30):
            while "ImageJoinStreaming" not in await server.calls():
                assert process.returncode is None
        process.send_signal(signal.SIGINT)
        output, errors = await process.communicate()

    assert (process.returncode, output) == (130, b"")
    assert b"Traceback" not in errors


async def test_a_package_that_is_none_is_refused_before_modal_is_asked(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "bad.yaml").write_text('sandbox: {dependencies: {npm: ["file:/etc"]}}\n')
    done = await deploy({"MODAL_SERVER_URL": "http://127.0.0.1:9"}, "--profile", "bad", data=tmp_path)

    assert done.code == 2
    assert done.errors == "agent-runtime: npm: 'file:/etc' is not a package of the registry with a version.\n"


async def test_a_profile_with_an_image_of_its_own_has_nothing_to_build(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "own.yaml").write_text("sandbox: {image: 'mine:v1'}\n")
    done = await deploy({"MODAL_SERVER_URL": "http://127.0.0.1:9"}, "--profile", "own", data=tmp_path)

    assert done.code == 2
    assert done.errors.startswith("agent-runtime: the profile 'own' names an image of its own")


async def test_modal_that_does_not_answer_is_a_fault(tmp_path: Path) -> None:
    async with a_modal() as server:
        await server.set_fault(Fault("ImageGetByTag", Do.FAIL, times=None))
        app = await open_app("agent-runtime")
        await refused(Images(app).of(recipe()), SandboxFault, "sandbox_unavailable")


async def test_many_who_want_an_image_at_once_build_it_once(tmp_path: Path) -> None:
    async with a_modal() as server:
        images = Images(await open_app("agent-runtime"))
        made = await asyncio.gather(*(images.of(recipe()) for _ in range(8)))
        calls = await server.calls()

    assert all(isinstance(image, modal.Image) for image in made)
    assert len({image.object_id for image in made}) == 1
    assert calls["ImageJoinStreaming"] == len(recipe().layers)
    assert calls["ImagePublish"] == 1
