"""Images: what is put into a layer is inside, what a layer would run is recorded, a snapshot is an image."""

import os
import shutil
from pathlib import Path

import modal
import pytest
from modal.exception import ImageBuildError, InvalidError, NotFoundError

from tests.modal_local.account import account, both_backends, python, run


@pytest.mark.parametrize("copy", [False, True])
@both_backends
async def test_files_that_are_added_are_inside(tmp_path: Path, backend: str, copy: bool) -> None:
    local = tmp_path / "local"
    (local / "deep").mkdir(parents=True)
    (local / "deep" / "program").write_text("#!/bin/sh\necho runs\n")
    (local / "deep" / "program").chmod(0o755)
    async with account(tmp_path / "server", backend) as mine:
        image = modal.Image.debian_slim().add_local_dir(local, "/workspace/tools", copy=copy)
        image = image.add_local_file(local / "deep" / "program", "/var/lib/one", copy=copy)
        sandbox = await mine.create(image=image)
        assert await run(sandbox, "/workspace/tools/deep/program") == "runs"
        assert await run(sandbox, "/var/lib/one") == "runs"


@both_backends
async def test_what_a_layer_runs_is_recorded_and_not_run(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        image = modal.Image.debian_slim().pip_install("requests").apt_install("jq")
        image = image.run_commands("touch /workspace/ran", "npm install left-pad")
        sandbox = await mine.create(image=image)
        assert await run(sandbox, "ls", "/workspace") == ""
        lines = "\n".join(line for known in await mine.server.images() for line in known["commands"])
        assert all(word in lines for word in ("requests", "jq", "RUN npm install left-pad"))


@both_backends
async def test_environment_and_folder_of_an_image_hold_inside(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        image = modal.Image.debian_slim().env({"SET": "by $the image"}).workdir("/var/lib/app")
        image = image.dockerfile_commands("ENV PATH=/somewhere:$PATH")
        sandbox = await mine.create(image=image)
        told = await run(sandbox, "sh", "-c", "echo $SET; pwd; echo $PATH")
        assert told.splitlines()[:2] == ["by $the image", "/var/lib/app"]
        assert told.splitlines()[2].startswith("/somewhere:/usr/local/bin:")
        assert await run(sandbox, "printenv", "SET", env={"SET": "by a call"}) == "by a call"


async def test_a_known_layer_is_not_built_again(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        for _ in range(2):
            await modal.Image.debian_slim().env({"A": "1"}).build.aio(mine.app)
        assert (await mine.server.calls())["ImageJoinStreaming"] == 2
        await modal.Image.debian_slim().run_commands("true", force_build=True).build.aio(mine.app)
        await modal.Image.debian_slim().run_commands("true", force_build=True).build.aio(mine.app)
        assert (await mine.server.calls())["ImageJoinStreaming"] == 4


async def test_files_that_are_the_same_are_kept_once(tmp_path: Path) -> None:
    local = tmp_path / "file"
    local.write_text("x")
    async with account(tmp_path / "server") as mine:
        for _ in range(3):
            await mine.create(image=modal.Image.debian_slim().add_local_file(local, "/workspace/file"))
        assert len(list((tmp_path / "server").glob("*/mounts/*"))) == 1
        assert (await mine.server.calls())["MountPutFile"] == 1


async def test_an_image_that_was_published_is_found_by_its_name(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        built = await modal.Image.debian_slim().env({"IT": "is this one"}).build.aio(mine.app)
        await built.publish.aio("agents:3", client=mine.client)
        sandbox = await mine.create(image=modal.Image.from_name("agents:3", client=mine.client))
        assert await run(sandbox, "printenv", "IT") == "is this one"
        with pytest.raises(NotFoundError):
            await mine.create(image=modal.Image.from_name("agents:4", client=mine.client))


async def test_a_layer_that_cannot_be_built_says_why(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        await mine.server.fail_builds("no such package")
        with pytest.raises(ImageBuildError, match="no such package"):
            await modal.Image.debian_slim().pip_install("nothing").build.aio(mine.app)
        await mine.server.clear_faults()
        await modal.Image.debian_slim().pip_install("nothing").build.aio(mine.app)


@both_backends
async def test_a_snapshot_brings_the_files_back_in_another_sandbox(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        image = modal.Image.debian_slim().env({"STAYS": "set"})
        first = await mine.create(image=image)
        await run(first, "sh", "-c", "mkdir -m 700 /home/agent/x && echo then > /home/agent/x/file")
        if "agent" in mine.server.users:
            await run(first, "chown", "-R", "agent", "/home/agent/x")
        snapshot = await first.snapshot_filesystem.aio()
        await run(first, "sh", "-c", "echo later > /home/agent/x/file")
        await first.terminate.aio()
        again = await mine.create(image=modal.Image.from_id(snapshot.object_id, client=mine.client))
        assert await run(again, "cat", "/home/agent/x/file") == "then"
        assert await run(again, "printenv", "STAYS") == "set"
        owner = "agent" if "agent" in mine.server.users else "root"
        assert await run(again, "stat", "-c", "%U %a", "/home/agent/x") == f"{owner} 700"
        third = await mine.create(image=await again.snapshot_filesystem.aio())
        assert await run(third, "cat", "/home/agent/x/file") == "then"


async def test_a_snapshot_that_was_deleted_is_gone(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        snapshot = await sandbox.snapshot_filesystem.aio()
        await modal.experimental.image_delete.aio(snapshot.object_id, client=mine.client)
        with pytest.raises(NotFoundError):
            await mine.create(image=modal.Image.from_id(snapshot.object_id, client=mine.client))
        assert not any(snapshot.object_id in folder for folder, _, _ in os.walk(tmp_path))


async def test_links_that_a_snapshot_holds_lead_nowhere_on_this_machine(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("of this machine")
    async with account(tmp_path / "server") as mine:
        sandbox = await mine.create()
        await run(
            sandbox, "sh", "-c", f"ln -s {outside} /workspace/link; ln -s {outside}/secret /var/lib/file"
        )
        await run(sandbox, "sh", "-c", f"rm -rf /home /tmp && ln -s {outside} /home && ln -s {outside} /tmp")
        # The places of the interpreter are mounted: only what is beside them can be moved, before a start.
        snapshot = await sandbox.snapshot_filesystem.aio()
        (tree,) = (tmp_path / "server").glob(f"*/images/{snapshot.object_id}")
        shutil.rmtree(tree / "opt/agent-runtime")
        (tree / "opt/agent-runtime").symlink_to(outside)
        again = await mine.create(image=snapshot)
        assert await python(again, "print(1)") == "1"
        process = await again.exec.aio("cat", "/workspace/link/secret", "/var/lib/file", "/home/secret")
        assert "of this machine" not in await process.stdout.read.aio()
        assert await run(again, "sh", "-c", "test -d /home/agent && test ! -L /tmp && echo whole") == "whole"
        assert [names for _, _, names in os.walk(outside)] == [["secret"]]


async def test_a_path_that_leads_out_of_an_image_is_refused(tmp_path: Path) -> None:
    local = tmp_path / "file"
    local.write_text("x")
    async with account(tmp_path / "server") as mine:
        with pytest.raises(InvalidError):
            await mine.create(image=modal.Image.debian_slim().add_local_file(local, "/a/../../../escaped"))
        assert not any("escaped" in names for _, _, names in os.walk(tmp_path))
