"""A session's workspace over REST."""

import base64

import pytest

from agent_runtime.profile import AgentProfile, FileRules
from tests.runtime.transport.world import World, world

PICTURE = bytes(range(256))


async def with_files(w: World) -> str:
    files = [
        {"path": "src/main.py", "content": "print('ü')\n"},
        {"path": "ä b/Ünï cödé.html", "content": "<script>alert(1)</script>"},
        {"path": "p.png", "content": base64.b64encode(PICTURE).decode(), "encoding": "base64"},
        {"path": "empty", "content": ""},
    ]
    return await w.session(workspaceFiles=files)


async def test_the_manifest_names_files_and_holds_no_content() -> None:
    async with world() as w:
        path = f"/api/sessions/{await with_files(w)}/files"
        _, manifest, _ = await w.call("GET", path)
        assert [file["path"] for file in manifest["files"]] == [
            "empty",
            "p.png",
            "src/main.py",
            "ä b/Ünï cödé.html",
        ]
        assert all("content" not in file for file in manifest["files"])


async def test_a_file_comes_back_byte_for_byte_and_harmless() -> None:
    async with world() as w:
        path = f"/api/sessions/{await with_files(w)}/files"
        assert (await w.call("GET", f"{path}/p.png"))[1] == PICTURE
        assert (await w.call("GET", f"{path}/empty"))[1] == b""
        status, data, headers = await w.call("GET", f"{path}/ä%20b/Ünï%20cödé.html")
        assert (status, data) == (200, b"<script>alert(1)</script>")
        assert headers["Content-Disposition"].startswith("attachment; filename*=UTF-8''%C3%9Cn")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "sandbox" in headers["Content-Security-Policy"]


async def test_a_file_may_be_had_as_an_object() -> None:
    async with world() as w:
        path = f"/api/sessions/{await with_files(w)}/files/src/main.py"
        _, file, headers = await w.call("GET", path, headers={"Accept": "application/json"})
        assert (file["path"], file["encoding"], file["content"]) == ("src/main.py", "utf-8", "print('ü')\n")
        assert headers["ETag"] == f'"{file["sha256"]}"'


@pytest.mark.parametrize("shown", ["{tag}", "W/{tag}", '"other", {tag}', "*"])
async def test_a_file_that_did_not_change_is_not_sent_again(shown: str) -> None:
    async with world() as w:
        path = f"/api/sessions/{await with_files(w)}/files/p.png"
        tag = (await w.call("GET", path))[2]["ETag"]
        status, data, headers = await w.call("GET", path, headers={"If-None-Match": shown.format(tag=tag)})
        assert (status, data, headers["ETag"]) == (304, b"", tag)


@pytest.mark.parametrize("shown", ['"other"', "", "nonsense", '"', ",,,"])
async def test_another_version_is_sent(shown: str) -> None:
    async with world() as w:
        path = f"/api/sessions/{await with_files(w)}/files/p.png"
        assert (await w.call("GET", path, headers={"If-None-Match": shown}))[0] == 200


@pytest.mark.parametrize(
    "path",
    ["nothing", "src", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd", "%00", "a%00b", "%ff", "x" * 3000, "%5C"],
)
async def test_what_is_no_file_of_the_workspace_is_refused(path: str) -> None:
    async with world() as w:
        status, problem, _ = await w.call("GET", f"/api/sessions/{await with_files(w)}/files/{path}")
        assert status in {404, 422}
        assert problem["category"] in {"not_found", "validation"}
        assert "/work" not in problem["detail"]


async def test_the_rules_are_shown_with_the_manifest() -> None:
    rules = FileRules(ignore=("build-*",), max_file_bytes=10, max_files=4)
    async with world(file_rules=rules) as w:
        path = f"/api/sessions/{await with_files(w)}/files"
        _, listed, _ = await w.call("GET", path)
        assert listed["rules"] == {"ignore": ["build-*"], "maxFileBytes": 10, "maxFiles": 4}
        assert listed["atLimit"], "four files are there"


async def test_a_profile_may_have_rules_of_its_own_and_never_higher_caps() -> None:
    own = AgentProfile(
        profile_id="own", name="Own", file_rules=FileRules(ignore=("x",), max_files=7, max_file_bytes=2**20)
    )
    async with world(file_rules=FileRules(max_file_bytes=10), profiles=(own,)) as w:
        session_id = await w.session(agentProfileRef="own")
        _, listed, _ = await w.call("GET", f"/api/sessions/{session_id}/files")
        assert listed["rules"] == {"ignore": ["x"], "maxFileBytes": 10, "maxFiles": 7}
        assert not listed["atLimit"]


@pytest.mark.parametrize("paths", [("a", "a/b"), ("x/y/z", "x"), ("same", "same")])
async def test_files_that_cannot_all_be_are_refused(paths: tuple[str, ...]) -> None:
    files = [{"path": path, "content": path} for path in paths]
    async with world() as w:
        body = {"agentProfileRef": "default", "workspaceFiles": files}
        status, problem, _ = await w.call("POST", "/api/sessions", json=body)
        assert (status, problem["code"]) == (422, "conflicting_paths")
        _, listed, _ = await w.call("GET", "/api/sessions")
        assert listed["sessions"] == []
