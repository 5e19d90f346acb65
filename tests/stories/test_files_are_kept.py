"""What an agent does to its files is in the store when its turn ends, and nearly so at any moment before."""

import asyncio
import hashlib
import os
import signal
import stat
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from agent_runtime.profile import FileRules
from agent_runtime.records import WorkspaceFile
from agent_runtime.testing.script import Call, Reply, Say
from agent_runtime.workspace import content_of, shown_path
from agent_runtime_adapters.persistence.sqlite import SqlitePersistence
from tests.seen_from_outside import files_of
from tests.stories.serving import Server, serving
from tests.stories.test_bad_luck import KEEPER, send
from tests.stories.viewer import Viewer, get, new_session, viewing

RULES = FileRules(ignore=(".git", "node_modules", ".venv", "build-*"), max_file_bytes=2**20, max_files=10_100)

CHANGES = r"""
import os
def write(name, data):
    os.makedirs(os.path.dirname(name) or b".", exist_ok=True)
    with open(name, "wb") as file:
        file.write(data)
for name in [b"with space", b"new\nline", b"bad\xff\xfe", rb"like\xff", b"deep/er/and/deeper/x", b"-rf"]:
    write(name, b"in " + name)
write(b"empty", b"")
write(b"binary", bytes(range(256)) * 3)
write(b"large.bin", os.urandom(900_000))
write(b"large.txt", b"line\n" * 100_000)
write(b"too large", bytes(2**20 + 1))
write(b"closed before it was seen", b"secret")
os.chmod(b"closed before it was seen", 0)
write(b"build-1/out", b"ignored")
write(b"node_modules", b"a file of an ignored name is a file")
write(b"moved over", b"old")
write(b"moving", b"new")
os.rename(b"moving", b"moved over")
write(b"was a folder/with", b"x")
os.remove(b"was a folder/with")
os.rmdir(b"was a folder")
write(b"was a folder", b"and is a file")
write(b"was a file", b"x")
os.remove(b"was a file")
write(b"was a file/and", b"is a folder")
write(b"closing/kept", b"as it was seen")
write(b"gone", b"x")
os.remove(b"gone")
os.symlink(b"/etc/passwd", b"a link")
"""

LATER = r"""
import os, shutil
os.rename("deep", "moved folder")
os.remove("with space")
os.remove("large.bin")
with open("large.txt", "ab") as file:
    file.write(b"and more")
with open("binary", "r+b") as file:
    file.truncate(0)
os.chmod("-rf", 0)
os.chmod("closing", 0)
with open("too large", "wb") as file:
    file.write(b"small now")
shutil.rmtree("was a file")
os.rename("was a folder", "was a file")
"""

BURST = """
import os
for number in range(10_000):
    if number % 100 == 0:
        os.makedirs(f"burst/{number}/deeper")
    with open(f"burst/{number // 100 * 100}/deeper/{number}", "w") as file:
        file.write(str(number))
"""

GIT = """
set -e
export HOME=/tmp GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
mkdir repository && cd repository && git init -q -b main
mkdir src && echo one > src/both && echo main > src/only-main && echo x > turns
git add -A && git commit -q -m one
git checkout -q -b other
git rm -q src/only-main turns && mkdir turns && echo y > turns/folder && echo two > src/both
git add -A && git commit -q -m two
for n in 1 2 3; do git checkout -q main; git checkout -q other; done
"""

INSTALL = """
set -e
mkdir -p lib/part && cd lib
echo '{"name": "lib", "version": "1.0.0", "main": "index.js"}' > package.json
echo 'module.exports = 7' > index.js && echo x > part/data.txt
mkdir ../app && cd ../app && echo '{"name": "app", "version": "1.0.0"}' > package.json
mkdir -p node_modules/lib && cp -r ../lib/. node_modules/lib/
echo '{"lockfileVersion": 3}' > package-lock.json
cd .. && python3 -m venv --without-pip .venv && python3 -m venv --without-pip env
python3 - <<'END'
import pathlib, subprocess, sys
for env in (".venv", "env"):
    (site,) = pathlib.Path(env).glob("lib/python*/site-packages")
    (site / "made").mkdir()
    for number in range(200):
        (site / "made" / f"module_{number}.py").write_text(f"VALUE = {number}")
    subprocess.run([f"{env}/bin/python", "-c", "import made.module_7"], check=True)
END
"""

WRITES_EVERY_S = 0.02
WRITING = f"""
import os, time
number = 0
while True:
    with open(f"n{{number}}", "w") as file:
        file.write(str(time.time()))
    with open("latest.next", "w") as file:
        file.write(str(time.time()))
    os.rename("latest.next", "latest")
    number += 1
    time.sleep({WRITES_EVERY_S})
"""


def bash(command: str) -> list[Reply]:
    return [[Call("Bash", {"command": command, "description": "Change files"})], [Say("Done.")]]


def python(program: str) -> list[Reply]:
    return bash(f"python3 - <<'END'\n{program}\nEND")


async def test_at_the_end_of_each_turn_the_store_has_what_the_workspace_has() -> None:
    scripts = {
        "changes": python(CHANGES),
        "later": python(LATER),
        "burst": python(BURST),
        "git": bash(f"({GIT})"),
        "install": bash(f"({INSTALL})"),
    }
    async with serving(scripts=scripts, file_rules=RULES) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            first = await kept_after(server, viewer, session_id, "changes")
            second = await kept_after(server, viewer, session_id, "later")
            versioned = await kept_after(server, viewer, session_id, "git")
            installed = await kept_after(server, viewer, session_id, "install")
            burst = await kept_after(server, viewer, session_id, "burst")
        listed = await get(server, f"/api/sessions/{session_id}/files")
        answers = [await status(server, session_id, path) for path in ("empty", "closed before it was seen")]

    assert {path: file.omitted for path, file in first.items() if file.omitted} == {
        "too large": "too_large",
        "closed before it was seen": "unreadable",
    }
    assert {r"bad\xff\xfe", r"like\x5cxff", "new\nline", "node_modules", "was a file/and"} <= first.keys()
    assert second["-rf"].sha256 == first["-rf"].sha256, "what can be read no longer is kept as it was read"
    assert second["too large"].omitted is None
    assert {path for path in versioned if path.startswith("repository")} == {
        "repository/src/both",
        "repository/turns/folder",
    }
    assert "app/package-lock.json" in installed
    assert not any("node_modules/" in path or ".venv/" in path for path in installed)
    assert sum("/site-packages/made/module_" in path for path in installed) >= 200
    assert sum(path.startswith("burst/") for path in burst) >= 9_000
    assert [file["path"] for file in listed["files"]] == sorted(burst)
    assert listed["rules"] == RULES.to_json()
    assert listed["atLimit"], "there are more files than are kept"
    (left_out,) = [block for block in viewer.blocks("system") if block["subtype"] == "files_left_out"]
    assert left_out["turnId"]
    assert answers == [(200, None), (409, "file_omitted")]


async def test_what_is_kept_without_its_content_is_named_when_the_workspace_is_put_back() -> None:
    make = "echo small > small; head -c 2000 /dev/zero > large"
    rules = FileRules(max_file_bytes=1000)
    async with serving(scripts={"make": bash(make)}, file_rules=rules) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:make]]", "one")
            await viewer.turns_ended(1)
            (told,) = [event["file"] for event in viewer.of("file_changed") if tells_of(event, "large")]
            async with server.http.post(f"/api/sessions/{session_id}/stop", json={}) as response:
                assert response.status == 200
            await viewer.send(session_id, "[[script:text]]", "two")
            await viewer.turns_ended(2)
        after = await stored(server, session_id)

    assert (told["sizeBytes"], told["omitted"], told["sha256"]) == (2000, "too_large", "")
    (restored,) = viewer.of("workspace_restored")
    assert (restored["restoredFiles"], restored["lostPaths"]) == (1, ["large"])
    assert after.keys() == {"small"}
    assert [e["file"]["path"] for e in viewer.of("file_changed") if e["change"] == "deleted"] == ["large"]


async def test_at_any_moment_the_store_is_hardly_older_than_the_sync_interval() -> None:
    interval = 0.3
    async with serving(scripts={"write": python(WRITING)}, sync_interval_s=interval) as server:
        session_id = await new_session(server)
        async with viewing(server, session_id) as viewer:
            await viewer.send(session_id, "[[script:write]]", "write")
            await viewer.until(lambda event: event["type"] == "file_changed", within=30)
            for number in (15, 50, 80, 110, 140):
                await viewer.until(lambda event, name=f"n{number}": tells_of(event, name))
                moment = time.time()
                assert_no_older(await stored(server, session_id), times(workspace(server)), moment, interval)
            folder, moment = workspace(server), time.time()
            truth = times(folder)
            slack = slack_of(truth)
            send(signal.SIGKILL, KEEPER, server)
            await viewer.turns_ended(1)
        after = await stored(server, session_id)
        known = {path: written_at(file) for path, file in after.items()}
        assert {path for path, written in truth.items() if written < moment - slack} <= known.keys()
        assert known["latest"] >= moment - slack


def assert_no_older(
    kept: dict[str, WorkspaceFile], truth: dict[str, float], moment: float, interval: float
) -> None:
    """All that was written longer ago than this is in the store; and what is rewritten is so new there."""
    since = moment - interval - slack_of(truth)
    old = {path for path, written in truth.items() if written < since}
    assert old - {"latest.next"} <= kept.keys()
    assert not old or written_at(kept["latest"]) >= since


def slack_of(truth: dict[str, float]) -> float:
    """A second; and on a busy machine as much as the writer itself was held up, for each of ten hands."""
    written = sorted(moment for path, moment in truth.items() if path.startswith("n"))
    return 1.0 + 10 * max(after - before - WRITES_EVERY_S for before, after in pairwise(written))


def tells_of(event: dict[str, Any], name: str) -> bool:
    return event["type"] == "file_changed" and event["file"]["path"] == name


def times(folder: Path) -> dict[str, float]:
    """When each file of the workspace was written, by its own content."""
    found = {}
    for file in folder.iterdir():
        try:
            found[file.name] = float(file.read_text())
        except (FileNotFoundError, ValueError):
            continue  # it is being written
    return found


def written_at(file: WorkspaceFile) -> float:
    content = content_of(file)
    return float(content) if content else time.time()


async def kept_after(
    server: Server, viewer: Viewer, session_id: str, script: str
) -> dict[str, WorkspaceFile]:
    """Play a turn; what the store has at its end, after comparing it with what is there."""
    done = len(viewer.of("turn_end"))
    await viewer.send(session_id, f"[[script:{script}]]", script)
    turns = await viewer.turns_ended(done + 1)
    assert turns[-1]["status"] == "completed"
    results = [block for block in viewer.blocks("tool_result") if block["isError"]]
    assert results == []
    kept = await stored(server, session_id)
    there = truth(workspace(server), RULES)
    if len(there) <= RULES.max_files:
        assert kept.keys() == there.keys()
    assert len(kept) == min(len(there), RULES.max_files)
    for path, file in kept.items():
        assert file.size_bytes == there[path][0], path
        if file.omitted is None:
            assert (path, file.sha256) == (path, there[path][1])
            assert hashlib.sha256(content_of(file)).hexdigest() == file.sha256
    return kept


async def stored(server: Server, session_id: str) -> dict[str, WorkspaceFile]:
    """What another reader of the store finds at this moment."""
    store = SqlitePersistence(server.data / "agent-runtime.db")
    await store.open()
    try:
        manifest = await store.load_manifest(session_id)
        files = await asyncio.gather(*(store.load_file(session_id, file.path) for file in manifest))
        return {file.path: file for file in files if file is not None}
    finally:
        await store.close()


def workspace(server: Server) -> Path:
    (found,) = (server.data / "sandboxes").glob("*/workspace")
    return files_of(found.parent)


def truth(folder: Path, rules: FileRules) -> dict[str, tuple[int, str]]:
    """Size and hash of every file that is to be kept."""
    ignored = set(rules.ignore) - {"build-*"}
    found = {}
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in ignored and not name.startswith("build-")]
        for name in names:
            file = Path(directory, name)
            if stat.S_ISREG(file.lstat().st_mode):
                data = file.read_bytes()
                path = shown_path(str(file.relative_to(folder)))
                found[path] = (len(data), hashlib.sha256(data).hexdigest())
    return found


async def status(server: Server, session_id: str, path: str) -> tuple[int, Any]:
    async with server.http.get(f"/api/sessions/{session_id}/files/{path}") as response:
        problem = await response.json() if response.status != 200 else {}
        return response.status, problem.get("code")
