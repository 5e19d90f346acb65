"""Profiles in files: what is read, what is refused and how that is said."""

import os
from pathlib import Path

import pytest

from agent_runtime.profile import AgentProfile, SubagentProfile
from agent_runtime_adapters.profiles import files
from agent_runtime_adapters.profiles.files import FileProfiles

REVIEWER = AgentProfile(
    profile_id="reviewer",
    name="Reviewer",
    instructions="Be kind.\nBe brief.",
    tools=("Read", "Grep"),
    subagents={"critic": SubagentProfile(description="Finds faults", prompt="Find faults.")},
    files={"docs/a.md": "# A\n"},
    options={"maxTurns": 3},
)

YAML = """\
name: Reviewer
instructions: |-
  Be kind.
  Be brief.
tools: [Read, Grep]
subagents:
  critic: {description: Finds faults, prompt: Find faults.}
files:
  docs/a.md: |
    # A
options: {maxTurns: 3}
"""

MARKDOWN = """\
---
name: Reviewer
tools: [Read, Grep]
subagents:
  critic: {description: Finds faults, prompt: Find faults.}
files: {docs/a.md: "# A\\n"}
options: {maxTurns: 3}
---

Be kind.
Be brief.
"""


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("reviewer.yaml", YAML),
        ("reviewer.yml", "\ufeff" + YAML),
        ("reviewer.json", REVIEWER.model_dump_json(by_alias=True)),
        ("other.json", REVIEWER.model_dump_json(by_alias=False)),
        ("reviewer.md", MARKDOWN),
        ("reviewer.md", MARKDOWN.replace("\n", "\r\n")),
    ],
)
def test_a_profile_reads_the_same_from_every_kind_of_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_bytes(text.encode())
    store = FileProfiles(tmp_path)
    assert store.problems() == ()
    (profile,) = store.profiles()
    lines = (profile.instructions or "").splitlines()
    assert profile.model_copy(update={"instructions": "\n".join(lines)}) == REVIEWER


def test_id_and_name_default_to_the_files_stem(tmp_path: Path) -> None:
    (tmp_path / "quick-helper.md").write_text("---\n---\nHelp quickly.")
    (tmp_path / "empty.yaml").write_text("")
    empty, helper = FileProfiles(tmp_path).profiles()
    assert (helper.profile_id, helper.name, helper.instructions) == (
        "quick-helper",
        "quick-helper",
        "Help quickly.",
    )
    assert empty == AgentProfile(profile_id="empty", name="empty")


def test_other_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x: y")
    (tmp_path / ".hidden.yaml").write_text("nonsense: 1")
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "dangling.yaml").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.yaml")
    store = FileProfiles(tmp_path)
    assert store.profiles() == ()
    assert store.problems() == ()


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\noptions: {c: [*b,*b,*b,*b]}\n"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.yaml", "tool: [Read]", "a.yaml: tool: there is no such field."),
        ("a.yaml", "tools: Read", "a.yaml: tools: input should be a valid tuple."),
        ("a.yaml", "subagents: {x: {prompt: p}}", "a.yaml: subagents.x.description: field required."),
        ("a.yaml", "profileId: ''", "a.yaml: profileId: string should have at least 1 character."),
        ("a.yaml", "- 1", "a.yaml: does not hold fields with names."),
        ("a.yaml", "1: x", "a.yaml: does not hold fields with names."),
        ("a.yaml", "name: x\n  y: [", "a.yaml: is not YAML (line 2: "),
        ("a.yaml", "name: !!python/object/apply:os.getcwd []", "a.yaml: is not YAML (line 1: "),
        ("a.yaml", "a: 1\n---\nb: 2", "a.yaml: is not YAML (line 2: "),
        ("a.yaml", BOMB, "a.yaml: uses a YAML alias (line 2); write the value out."),
        ("a.yaml", "options: {x: 2025-13-45}", "a.yaml: is not YAML that can be read."),
        ("a.yaml", "options: " + "[" * 40 + "]" * 40, "a.yaml: is nested too deep."),
        ("a.json", "[" * 100_000, "a.json: is nested too deep."),
        ("a.json", "{", "a.json: is not JSON (line 1: "),
        ("a.md", "# A readme", "a.md: has no front matter between two --- lines."),
        ("a.md", "---\nname: x\n", "a.md: has no front matter between two --- lines."),
        (
            "a.md",
            "---\ninstructions: a\n---\nb",
            "a.md: instructions are given in the front matter and again",
        ),
        ("a.yaml", "name: " + "x" * files.MAX_FILE_BYTES, "a.yaml: is larger than 256 KiB."),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence_and_harms_no_other(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    (tmp_path / name).write_text(text)
    (tmp_path / "good.yaml").write_text("name: Good")
    store = FileProfiles(tmp_path)
    assert [profile.profile_id for profile in store.profiles()] == ["good"]
    (problem,) = store.problems()
    assert problem.startswith(sentence)
    assert problem.endswith(".")
    assert "\n" not in problem
    assert str(tmp_path) not in problem


def test_a_file_that_is_no_text_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(b"name: \xff\xfe")
    assert FileProfiles(tmp_path).problems() == ("a.yaml: is not UTF-8 text.",)


def test_two_files_with_one_id_keep_the_first_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("profileId: same\nname: A")
    (tmp_path / "b.yaml").write_text("profileId: same\nname: B")
    store = FileProfiles(tmp_path)
    assert [profile.name for profile in store.profiles()] == ["A"]
    assert store.problems() == ("b.yaml: profileId is taken by a.yaml.",)


def test_changes_are_seen_at_the_next_call(tmp_path: Path) -> None:
    store = FileProfiles(tmp_path)
    assert store.profiles() == ()
    path = tmp_path / "a.yaml"
    path.write_text("name: One")
    first = store.profiles()
    assert [profile.name for profile in first] == ["One"]
    assert store.profiles()[0] is first[0], "what did not change is not read again"
    path.write_text("name: Three")
    assert [profile.name for profile in store.profiles()] == ["Three"]
    path.write_text("nam: Three")
    assert store.profiles() == ()
    assert len(store.problems()) == 1
    path.unlink()
    assert store.problems() == ()


def test_a_folder_that_is_missing_or_overfull_is_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = FileProfiles(tmp_path / "nowhere")
    assert missing.profiles() == ()
    assert missing.problems() == ("The folder of profiles cannot be read: no such file or directory.",)
    monkeypatch.setattr(files, "MAX_FILES", 1)
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("")
    assert FileProfiles(tmp_path).problems() == ("The folder of profiles holds more than 1 files.",)
