"""The workspace through the runner: every change of the agent is told once, and nothing escapes."""

import base64
import hashlib
import os
import time
from pathlib import Path

import pytest

from agent_runtime_sandbox.frames import INLINE_FILE_BYTES
from tests.sandbox_image.runner_client import RunnerClient, running

SECRET = Path("/etc/passwd")


def content_of(frame: dict[str, object]) -> bytes:
    content = str(frame["content"])
    return content.encode() if frame["encoding"] == "utf-8" else base64.b64decode(content)


async def changes_after_sync(client: RunnerClient) -> list[tuple[str, str]]:
    """What the agent changed since the last call, path by path.

    A look may fall between a file's making and its filling: created, then modified, is created.
    """
    await client.result("sync")
    net: dict[str, str] = {}
    for path, change in client.changes():
        if not (net.get(path) == "created" and change == "modified"):
            net[path] = change
    client.kept.clear()
    return sorted(net.items())


@pytest.mark.parametrize(
    ("name", "content", "encoding"),
    [
        ("plain.txt", b"hello\n", "utf-8"),
        ("deep/er/still/x.py", b"print(1)\n", "utf-8"),
        ("empty", b"", "utf-8"),
        ("binary", bytes(range(256)), "base64"),
        ("text with nul", b"a\0b", "base64"),
        ("ünïcode 漢字 🙂", "ünïcode 漢字 🙂".encode(), "utf-8"),
        ("new\nline", b"x", "utf-8"),
        ("-rf", b"x", "utf-8"),
    ],
)
async def test_a_new_file_is_told_with_its_content(name: str, content: bytes, encoding: str) -> None:
    async with running() as runner:
        client = await runner.attach()
        path = runner.workspace / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        frame = await client.until(lambda frame: frame["k"] == "file" and frame["size"] == len(content))
        assert (frame["path"], frame["change"], frame["encoding"]) == (name, "created", encoding)
        assert content_of(frame) == content
        assert frame["sha256"] == hashlib.sha256(content).hexdigest()
        assert abs(frame["mtime"] - time.time()) < 60


async def test_a_name_that_is_no_utf8_is_told_and_can_be_read_and_the_watch_goes_on() -> None:
    async with running() as runner:
        client = await runner.attach()
        (runner.workspace / os.fsdecode(b"\xff\xfe.txt")).write_bytes(b"odd")
        assert (await client.until_file("\udcff\udcfe.txt"))["content"] == "odd"
        assert await client.get("\udcff\udcfe.txt") == b"odd"
        (runner.workspace / "after").write_text("still watched")
        await client.until_file("after", "created")


async def test_modifying_renaming_and_deleting_are_told() -> None:
    async with running() as runner:
        client = await runner.attach()
        old, new = runner.workspace / "old", runner.workspace / "new"
        old.write_text("one")
        await client.until_file("old", "created")
        old.write_text("two")
        assert (await client.until_file("old", "modified"))["content"] == "two"
        old.rename(new)
        await client.until_file("old", "deleted")
        assert (await client.until_file("new", "created"))["content"] == "two"
        new.unlink()
        await client.until_file("new", "deleted")
        assert await client.result("list") == {"files": []}


async def test_a_directory_that_is_moved_or_removed_takes_its_files_along() -> None:
    async with running() as runner:
        client = await runner.attach()
        (runner.workspace / "a/b").mkdir(parents=True)
        (runner.workspace / "a/b/x").write_text("1")
        (runner.workspace / "a/y").write_text("2")
        assert await changes_after_sync(client) == [("a/b/x", "created"), ("a/y", "created")]
        (runner.workspace / "a").rename(runner.workspace / "c")
        await client.until_file("c/b/x", "created")
        await client.until_file("a/b/x", "deleted")
        await client.until_file("a/y", "deleted")
        await client.result("sync")
        assert [file["path"] for file in (await client.result("list"))["files"]] == ["c/b/x", "c/y"]


async def test_a_touched_file_has_not_changed() -> None:
    async with running() as runner:
        client = await runner.attach()
        path = runner.workspace / "x"
        path.write_text("same")
        assert await changes_after_sync(client) == [("x", "created")]
        os.utime(path, (1, 1))
        path.chmod(0o755)
        assert await changes_after_sync(client) == []


async def test_a_change_that_leaves_size_and_time_as_they_were_is_found() -> None:
    async with running() as runner:
        client = await runner.attach()
        path = runner.workspace / "x"
        for number in range(30):
            path.write_text(f"{number:04d}")
            await client.result("sync")
            assert client.of_kind("file")[-1]["content"] == f"{number:04d}"


async def test_sync_is_answered_after_the_frames_of_all_changes() -> None:
    async with running() as runner:
        client = await runner.attach()
        for number in range(500):
            (runner.workspace / f"f{number}").write_text(str(number))
        assert len(await changes_after_sync(client)) == 500


async def test_a_burst_of_files_in_new_directories_arrives_whole_without_a_sync() -> None:
    async with running() as runner:
        client = await runner.attach()
        expected = {f"d{number % 50}/e/{number}.txt" for number in range(2000)}
        for name in sorted(expected):
            path = runner.workspace / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        found: dict[str, str] = {}
        while found != {name: name for name in expected}:
            frame = await client.until_kind("file")
            assert frame["change"] == ("modified" if frame["path"] in found else "created")
            found[frame["path"]] = frame["content"]
            client.kept.remove(frame)


async def test_ignored_directories_are_not_told_but_can_be_read() -> None:
    async with running(ignore=("secret_cache",)) as runner:
        client = await runner.attach()
        for folder in ("secret_cache", "a/secret_cache", "node_modules"):
            (runner.workspace / folder).mkdir(parents=True)
            (runner.workspace / folder / "x").write_text("x")
        assert await changes_after_sync(client) == [("node_modules/x", "created")]
        assert await client.get("a/secret_cache/x") == b"x"
        await client.put("secret_cache/y", b"y")
        (runner.workspace / "secret_cache").rename(runner.workspace / "open")
        assert await changes_after_sync(client) == [("open/x", "created"), ("open/y", "created")]


async def test_ignored_names_may_be_patterns_and_a_file_of_such_a_name_is_told_soon() -> None:
    async with running(ignore=("build-*", "?x")) as runner:
        client = await runner.attach()
        for folder in ("build-1", "a/build-2", "ax", "axx", "build"):
            (runner.workspace / folder).mkdir(parents=True)
            (runner.workspace / folder / "x").write_text("x")
        assert await changes_after_sync(client) == [("axx/x", "created"), ("build/x", "created")]
        (runner.workspace / "build-3").write_text("no directory")
        await client.until_file("build-3", "created")


async def test_with_as_many_files_as_are_allowed_those_that_are_known_go_on_to_be_told() -> None:
    async with running(max_files=20) as runner:
        client = await runner.attach()
        for number in range(30):
            (runner.workspace / f"f{number}").write_text("x")
        assert len(await changes_after_sync(client)) == 20
        known = [file["path"] for file in (await client.result("list"))["files"]]
        (runner.workspace / known[0]).write_text("changed")
        (runner.workspace / known[1]).unlink()
        told = dict(await changes_after_sync(client))
        assert (told.pop(known[0]), told.pop(known[1])) == ("modified", "deleted")
        assert list(told.values()) == ["created"], "there is room for one more"
        for path in runner.workspace.iterdir():
            path.unlink()
        assert len(await changes_after_sync(client)) == 20
        (runner.workspace / "new").write_text("x")
        await client.until_file("new", "created")


async def test_that_files_are_left_out_is_told_once_and_again_when_it_comes_again() -> None:
    async with running(max_files=3) as runner:
        client = await runner.attach()
        for _ in range(2):
            for number in range(5):
                (runner.workspace / f"f{number}").write_text("x")
            await client.result("sync")
            await client.result("sync")
            assert [frame["code"] for frame in client.of_kind("fault")] == ["too_many_files"]
            client.kept.clear()
            for path in runner.workspace.iterdir():
                path.unlink()
            await client.result("sync")


async def test_ten_thousand_files_at_once_are_told_by_hash() -> None:
    async with running() as runner:
        client = await runner.attach()
        expected = {}
        for number in range(10_000):
            path = runner.workspace / f"d{number % 100}" / f"f{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(str(number))
            expected[f"d{number % 100}/f{number}"] = hashlib.sha256(str(number).encode()).hexdigest()
        await client.result("sync")
        assert {frame["path"]: frame["sha256"] for frame in client.of_kind("file")} == expected
        assert all(hashlib.sha256(content_of(x)).hexdigest() == x["sha256"] for x in client.of_kind("file"))


async def test_what_only_travels_on_request_is_marked_by_having_no_content() -> None:
    async with running() as runner:
        client = await runner.attach()
        data = os.urandom(INLINE_FILE_BYTES + 1)
        (runner.workspace / "large").write_bytes(data)
        with (runner.workspace / "huge").open("wb") as huge:
            huge.truncate(2**40)
        await client.result("sync")
        large, huge_frame = await client.until_file("large"), await client.until_file("huge")
        assert "content" not in large
        assert large["sha256"] == hashlib.sha256(data).hexdigest()
        assert (huge_frame["size"], huge_frame["sha256"], huge_frame["omitted"]) == (2**40, None, "too_large")
        assert await client.get("large") == data
        assert await client.refusal("read", path="huge") == "file_too_large"


async def test_links_and_special_files_are_neither_followed_nor_told() -> None:
    async with running() as runner:
        client = await runner.attach()
        (runner.workspace / "link").symlink_to(SECRET)
        (runner.workspace / "folder").symlink_to("/etc")
        os.mkfifo(runner.workspace / "fifo")
        (runner.workspace / "real").write_text("x")
        assert await changes_after_sync(client) == [("real", "created")]
        for path in ("link", "folder/passwd", "fifo"):
            assert await client.refusal("read", path=path) == "not_a_file"
        assert client.chunks == []


async def test_a_file_that_becomes_a_link_is_deleted() -> None:
    async with running() as runner:
        client = await runner.attach()
        path = runner.workspace / "x"
        path.write_text("x")
        assert await changes_after_sync(client) == [("x", "created")]
        path.unlink()
        path.symlink_to(SECRET)
        assert await changes_after_sync(client) == [("x", "deleted")]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "..",
        "../x",
        "a/../../x",
        "a/./b",
        "a//b",
        "a/",
        "x\0y",
        "x" * 300,
        "a/" * 3000 + "b",
        "\ud800",
        7,
        None,
    ],
)
async def test_a_path_that_leads_out_is_refused(path: object) -> None:
    async with running() as runner:
        client = await runner.attach()
        assert await client.refusal("read", path=path) == "invalid_path"
        assert await client.refusal("write", path=path, data="eA==") == "invalid_path"
        assert await client.refusal("delete", path=path) == "invalid_path"
        assert [item.name for item in runner.directory.iterdir() if item.name == "x"] == []


async def test_writing_and_deleting_through_links_is_refused_and_replaces_a_link_itself() -> None:
    async with running() as runner:
        client = await runner.attach()
        outside = runner.directory / "outside"
        outside.mkdir()
        (outside / "precious").write_text("precious")
        (runner.workspace / "folder").symlink_to(outside)
        (runner.workspace / "link").symlink_to(outside / "precious")
        (runner.workspace / "a directory").mkdir()
        data = base64.b64encode(b"evil").decode()
        assert await client.refusal("write", path="folder/new", data=data) == "not_a_file"
        assert await client.refusal("write", path="link", data=data, append=True) == "not_a_file"
        assert await client.refusal("write", path="a directory", data=data) == "not_a_file"
        assert await client.refusal("delete", path="folder/precious") == "not_a_file"
        assert await client.refusal("delete", path="a directory") == "not_a_file"
        await client.result("write", path="link", data=data)
        assert (runner.workspace / "link").read_bytes() == b"evil"
        assert [(item.name, item.read_text()) for item in outside.iterdir()] == [("precious", "precious")]


async def test_what_the_runtime_writes_is_not_told_as_a_change_of_the_agent() -> None:
    async with running() as runner:
        client = await runner.attach()
        data = os.urandom(1_500_000)
        told = await client.put("deep/folder/data.bin", data)
        assert told == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        await client.put("empty", b"")
        await client.put("text", b"one")
        await client.put("text", b"two")
        assert await changes_after_sync(client) == []
        listed = {file["path"]: file["size"] for file in (await client.result("list"))["files"]}
        assert listed == {"deep/folder/data.bin": len(data), "empty": 0, "text": 3}
        assert await client.get("deep/folder/data.bin") == data
        assert await client.get("empty") == b""
        assert await client.result("delete", path="text") == {"deleted": True}
        assert await client.result("delete", path="text") == {"deleted": False}
        assert await changes_after_sync(client) == []


async def test_what_the_agent_does_to_a_written_file_is_told() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.put("x", b"ours")
        (runner.workspace / "x").write_text("mine")
        assert (await client.until_file("x", "modified"))["content"] == "mine"
        (runner.workspace / "x").unlink()
        await client.until_file("x", "deleted")


async def test_appending_to_a_file_that_the_agent_changed_meanwhile_gives_the_true_hash() -> None:
    async with running() as runner:
        client = await runner.attach()
        await client.put("x", b"ours ")
        (runner.workspace / "x").write_text("mine ")
        told = await client.result("write", path="x", data=base64.b64encode(b"more").decode(), append=True)
        assert told["sha256"] == hashlib.sha256(b"mine more").hexdigest()


async def test_writing_keeps_the_mode_of_a_file_that_is_there() -> None:
    async with running() as runner:
        client = await runner.attach()
        script = runner.workspace / "run.sh"
        script.write_text("x")
        script.chmod(0o755)
        await client.put("run.sh", b"y")
        assert script.stat().st_mode & 0o777 == 0o755


async def test_missing_files_are_not_found() -> None:
    async with running() as runner:
        client = await runner.attach()
        assert await client.refusal("read", path="no/such") == "not_found"
        appended = await client.refusal("write", path="none", data="eA==", append=True)
        assert appended == "not_found"


async def test_files_that_were_there_before_the_runner_are_told() -> None:
    async with running() as runner:
        first = await runner.attach()
        (runner.workspace / "x").write_text("x")
        await first.until_file("x")
        assert (await (await runner.attach()).result("list"))["files"][0]["path"] == "x"


async def test_a_tree_that_is_too_deep_ends_where_it_is_too_deep() -> None:
    async with running() as runner:
        client = await runner.attach()
        fd = os.open(runner.workspace, os.O_RDONLY)
        for _ in range(300):
            os.mkdir("d", dir_fd=fd)
            deeper = os.open("d", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        os.close(os.open("deep", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.close(fd)
        (runner.workspace / "shallow").write_text("x")
        assert await changes_after_sync(client) == [("shallow", "created")]
