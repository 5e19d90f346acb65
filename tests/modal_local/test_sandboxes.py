"""The unmodified SDK makes sandboxes, runs things in them, finds them again and ends them."""

import asyncio
import os
import time
from pathlib import Path

import modal
import pytest
from modal.exception import AlreadyExistsError, ConflictError, InvalidError, NotFoundError

from tests.modal_local.account import account, both_backends, client_of, run


@both_backends
async def test_what_a_process_prints_is_heard_and_its_code_is_known(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("sh", "-c", "echo out; echo err >&2; exit 7")
        assert await process.stdout.read.aio() == "out\n"
        assert await process.stderr.read.aio() == "err\n"
        assert await process.wait.aio() == 7
        assert await process.poll.aio() == 7


@both_backends
async def test_a_process_is_talked_with(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("cat", text=False)
        heard = aiter(process.stdout)
        for word in (b"one\n", b"two\n"):
            process.stdin.write(word)
            await process.stdin.drain.aio()
            assert await anext(heard) == word
        process.stdin.write_eof()
        await process.stdin.drain.aio()
        assert await process.wait.aio() == 0


async def test_an_answer_comes_at_once(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("cat", text=False)
        heard, took = aiter(process.stdout), list[float]()
        for _ in range(50):
            began = time.monotonic()
            process.stdin.write(b"word\n")
            await process.stdin.drain.aio()
            await anext(heard)
            took.append(time.monotonic() - began)
        # A connection that collects small packets has none of these below 40 ms; a busy machine has some.
        assert min(took) < 0.03


@both_backends
async def test_much_goes_through_whole(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("sh", "-c", "tee /tmp/copy | sha256sum; wc -c < /tmp/copy")
        for _ in range(16):
            process.stdin.write(b"0123456789abcdef" * 65536)
            await process.stdin.drain.aio()
        process.stdin.write_eof()
        await process.stdin.drain.aio()
        assert (await process.stdout.read.aio()).split()[-1] == str(16 * 16 * 65536)
        copy = await sandbox.exec.aio("cat", "/tmp/copy", text=False)
        assert await copy.stdout.read.aio() == b"0123456789abcdef" * 65536 * 16


async def test_a_process_that_a_signal_ended_says_which(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("sh", "-c", "kill -TERM $$")
        assert await process.wait.aio() == 128 + 15


async def test_a_process_has_so_much_time(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("sleep", "600", timeout=1)
        assert await process.wait.aio() == -1
        while "sleep 600" in await run(sandbox, "ps", "-eo", "args"):
            pass  # the client's own clock may be the earlier one, and a signal takes a moment


async def test_a_command_that_is_not_there_ends_with_127(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("no-such-command")
        assert "no-such-command" in await process.stderr.read.aio()
        assert await process.wait.aio() == 127
        nowhere = await sandbox.exec.aio("true", workdir="/no/such/folder")
        assert await nowhere.wait.aio() == 125


@both_backends
async def test_a_process_at_a_terminal_is_at_one(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("bash", "-c", "[ -t 0 ] && read word; echo got $word", pty=True)
        process.stdin.write(b"yes\n")
        await process.stdin.drain.aio()
        assert "got yes" in await process.stdout.read.aio()
        assert await process.wait.aio() == 0


@both_backends
async def test_environment_secrets_and_folder_are_as_asked(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        named = {"NAMED": "from a name"}
        await modal.Secret.objects.create.aio("keys", named, client=mine.client)
        secrets = [modal.Secret.from_name("keys", client=mine.client), modal.Secret.from_dict({"OPEN": "2"})]
        sandbox = await mine.create(env={"PLAIN": "1"}, secrets=secrets, workdir="/workspace")
        told = await run(sandbox, "sh", "-c", "echo $PLAIN $OPEN $NAMED $MORE; pwd", env={"MORE": "3"})
        assert told == "1 2 from a name 3\n/workspace"
        assert await run(sandbox, "pwd", workdir="/tmp") == "/tmp"
        assert "from a name" not in str(await mine.server.sandboxes())


@both_backends
async def test_sandboxes_are_listed_by_their_tags(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        first = await mine.create(tags={"owner": "one", "kind": "x"})
        second = await mine.create(tags={"owner": "two", "kind": "x"})
        assert await mine.listed() == await mine.listed(kind="x") == {first.object_id, second.object_id}
        assert await mine.listed(owner="one") == {first.object_id}
        await second.set_tags.aio({"owner": "one"})
        assert await second.get_tags.aio() == {"owner": "one"}
        assert await mine.listed(owner="one") == {first.object_id, second.object_id}
        await first.terminate.aio()
        assert await mine.listed(owner="one") == {second.object_id}


async def test_there_may_be_more_than_a_page_of_them(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        async with asyncio.TaskGroup() as making:
            made = [making.create_task(mine.create()) for _ in range(101)]
        assert await mine.listed() == {task.result().object_id for task in made}


@both_backends
async def test_another_process_finds_it_again(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create(name="mine")
        await run(sandbox, "sh", "-c", "echo kept > /tmp/file")
        async with client_of(mine.server, backend) as another:
            found = await modal.Sandbox.from_id.aio(sandbox.object_id, client=another)
            assert await run(found, "cat", "/tmp/file") == "kept"
            named = await modal.Sandbox.from_name.aio("tests", "mine", client=another)
            assert named.object_id == sandbox.object_id
        with pytest.raises(AlreadyExistsError):
            await mine.create(name="mine")


@both_backends
async def test_one_that_was_ended_is_gone_with_all_that_ran(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()
        process = await sandbox.exec.aio("sleep", "600")
        again = await mine.again(sandbox)
        await sandbox.terminate.aio()
        assert await sandbox.poll.aio() == 137
        await sandbox.terminate.aio()
        with pytest.raises(NotFoundError):
            await process.wait.aio()
        with pytest.raises(NotFoundError):
            await sandbox.exec.aio("true")
        with pytest.raises((NotFoundError, ConflictError)):
            await again.exec.aio("true")
        assert not any(sandbox.object_id in folder for folder, _, _ in os.walk(tmp_path))


async def test_streams_of_one_that_was_ended_can_end_quietly_too(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        await mine.server.at_death("eof")
        sandbox = await mine.create()
        process = await sandbox.exec.aio("sh", "-c", "echo begun; sleep 600")
        heard = aiter(process.stdout)
        assert await anext(heard) == "begun\n"
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(process.wait.aio())
            while (await mine.server.calls()).get("TaskExecWait", 0) == 0:
                await asyncio.sleep(0.01)
            await mine.server.end(sandbox.object_id, "terminated")
        assert waiting.result() == 137
        assert [piece async for piece in heard] == []


@both_backends
async def test_an_entrypoint_is_heard_and_ends_its_sandbox(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create("sh", "-c", "read word; echo $word; exit 5")
        sandbox.stdin.write("hello\n")
        sandbox.stdin.write_eof()
        await sandbox.stdin.drain.aio()
        assert await sandbox.stdout.read.aio() == "hello\n"
        await sandbox.wait.aio(raise_on_termination=False)
        assert sandbox.returncode == 5


@both_backends
async def test_files_are_written_read_listed_and_removed(tmp_path: Path, backend: str) -> None:
    async with account(tmp_path, backend) as mine:
        sandbox = await mine.create()  # a handle for files does not keep that of its sandbox
        files = sandbox.filesystem
        await files.write_bytes.aio(b"\0\xff" * 100_000, "/workspace/new/file")
        assert await files.read_bytes.aio("/workspace/new/file") == b"\0\xff" * 100_000
        assert (await files.stat.aio("/workspace/new/file")).size == 200_000
        await files.make_directory.aio("/workspace/other")
        assert [entry.name for entry in await files.list_files.aio("/workspace")] == ["new", "other"]
        await files.remove.aio("/workspace/new", recursive=True)
        with pytest.raises(modal.exception.SandboxFilesystemNotFoundError):
            await files.read_text.aio("/workspace/new/file")
        with pytest.raises(modal.exception.SandboxFilesystemIsADirectoryError):
            await files.read_text.aio("/workspace/other")


async def test_what_is_only_recorded_is_recorded(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        allowed = {"outbound_cidr_allowlist": ["10.0.0.0/8"], "outbound_domain_allowlist": ["example.org"]}
        sandbox = await mine.create(cpu=0.5, memory=(256, 512), region="eu", idle_timeout=60, **allowed)
        asked = (await mine.report(sandbox))["asked"]
        resources = asked["resources"]
        assert (resources["milliCpu"], resources["memoryMb"], resources["memoryMbMax"]) == (500, 256, 512)
        assert asked["schedulerPlacement"] == {"regions": ["eu"]}
        assert asked["networkAccess"]["allowedCidrs"] == ["10.0.0.0/8"]
        assert asked["networkAccess"]["allowedDomains"] == ["example.org"]
        assert asked["idleTimeoutSecs"] == 60


async def test_many_processes_at_once_are_kept_apart(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        sandbox = await mine.create()
        async with asyncio.TaskGroup() as running:
            told = [running.create_task(run(sandbox, "echo", str(number))) for number in range(50)]
        assert [task.result() for task in told] == [str(number) for number in range(50)]


async def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    async with account(tmp_path) as mine:
        with pytest.raises(NotFoundError):
            await modal.App.lookup.aio("unknown", client=mine.client)
        with pytest.raises(NotFoundError):
            await modal.Sandbox.from_id.aio("sb-unknown", client=mine.client)
        with pytest.raises(NotFoundError):
            await mine.create(secrets=[modal.Secret.from_name("unknown", client=mine.client)])
        with pytest.raises(InvalidError):
            await mine.create(timeout=24 * 3600 + 1)
        with pytest.raises(modal.exception.UnimplementedError):
            await modal.Volume.from_name("v", create_if_missing=True, client=mine.client).hydrate.aio(
                mine.client
            )
        for asked in (
            {"encrypted_ports": [80]},
            {"readiness_probe": modal.Probe.with_tcp(80)},
            {"gpu": "any"},
        ):
            with pytest.raises(modal.exception.UnimplementedError, match="does not offer"):
                await mine.create(**asked)
        assert await mine.listed() == set()
