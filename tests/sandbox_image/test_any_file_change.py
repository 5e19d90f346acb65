"""Whatever an agent does to its files: after a look, what was told is what is there, by hash."""

# Paths are bytes here.
# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH108, PTH112, PTH114, PTH116, PTH118, PTH120, PTH123
import asyncio
import base64
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from agent_runtime_sandbox import frames
from agent_runtime_sandbox.beneath import FileRefused, Root, decode_path
from agent_runtime_sandbox.files import WorkspaceFiles, send_chunks
from agent_runtime_sandbox.journal import Journal
from agent_runtime_sandbox.manifest import Rules, Scope
from agent_runtime_sandbox.outbox import Outbox

NOBODY = 65534
NAMES = st.sampled_from([b"a", b"b c", b"n\nl", b"\xff\xfe", b"dist", b"tmp-1"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
CONTENTS = st.tuples(st.sampled_from(["x", "y", "\xff", "\0"]), st.sampled_from([0, 1, 8, 50, 51, 70_000]))
"""A letter, and how often."""
PLACES = st.integers(0, 30)
"""Which of the names that are there."""
MODES = st.sampled_from([0o000, 0o100, 0o400, 0o444, 0o644, 0o755])
MAX_FILE_BYTES = 50

Content = tuple[str, int]
Known = tuple[int, str | None, str | None]
"""Size, hash, why it is omitted."""


@contextmanager
def as_nobody() -> Iterator[None]:
    """Root can read everything; an agent is not root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


class Workspace(RuleBasedStateMachine):
    """The runner's file engine on a real folder; `told` is what somebody knows who only hears of it."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.loop.set_default_executor(ThreadPoolExecutor(1))
        self.folder = Path(tempfile.mkdtemp(prefix="any-change-"))
        self.path = os.fsencode(self.folder / "workspace")
        os.mkdir(self.path)
        if os.geteuid() == 0:
            self.folder.chmod(0o755)
            os.chown(self.path, NOBODY, NOBODY)
        self.journal = (self.folder / "journal").open("w+b")
        self.outbox = Outbox(Journal(self.journal.fileno()))
        self.root = Root(Path(os.fsdecode(self.path)))
        self.told: dict[bytes, Known] = {}
        self.written: set[bytes] = set()
        self.heard = 0
        self.left_out = 0

    @initialize(
        max_files=st.sampled_from([4, 1000]),
        files=st.lists(st.tuples(PATHS, CONTENTS), min_size=3, max_size=12),
        looks=st.booleans(),
    )
    def begin(self, max_files: int, files: list[tuple[bytes, Content]], looks: bool) -> None:
        self.max_files = max_files
        rules = Rules(("dist", "tmp-*"), MAX_FILE_BYTES, max_files)
        self.files = WorkspaceFiles(self.root, self.outbox, rules)
        for path, content in files:
            self.write(path, content)
        if looks:
            self.look()

    def at(self, path: bytes) -> bytes:
        return self.path + b"/" + path

    def there(self, place: int) -> bytes:
        """The path of something in the workspace, or of nothing."""
        beneath = len(self.path) + 1
        found = [
            os.path.join(directory, name)[beneath:]
            for directory, folders, names in os.walk(self.path)
            for name in (*folders, *names)
        ]
        return sorted(found)[place % len(found)] if found else b"nothing"

    @contextmanager
    def agent(self) -> Iterator[None]:
        """What cannot be done is not done."""
        with as_nobody(), suppress(OSError, shutil.Error):
            yield

    @rule(path=PATHS, content=CONTENTS)
    def write(self, path: bytes, content: Content) -> None:
        with self.agent():
            os.makedirs(os.path.dirname(self.at(path)), exist_ok=True)
            Path(os.fsdecode(self.at(path))).write_bytes(raw(content))

    @rule(place=PLACES, content=CONTENTS)
    def append(self, place: int, content: Content) -> None:
        with self.agent(), open(self.at(self.there(place)), "ab") as file:
            file.write(raw(content))

    @rule(path=PATHS)
    def make_directory(self, path: bytes) -> None:
        with self.agent():
            os.makedirs(self.at(path))

    @rule(place=PLACES, new=PATHS)
    def rename(self, place: int, new: bytes) -> None:
        with self.agent():
            os.rename(self.at(self.there(place)), self.at(new))

    @rule(place=PLACES, over=PLACES)
    def rename_over(self, place: int, over: int) -> None:
        with self.agent():
            os.rename(self.at(self.there(place)), self.at(self.there(over)))

    @rule(place=PLACES)
    def delete(self, place: int) -> None:
        with self.agent():
            self._remove(self.there(place))

    @rule(place=PLACES, content=CONTENTS)
    def replace_by_a_file(self, place: int, content: Content) -> None:
        path = self.there(place)
        with self.agent():
            self._remove(path)
            Path(os.fsdecode(self.at(path))).write_bytes(raw(content))

    def _remove(self, path: bytes) -> None:
        if os.path.isdir(self.at(path)) and not os.path.islink(self.at(path)):
            shutil.rmtree(self.at(path))
        else:
            os.unlink(self.at(path))

    @rule(path=PATHS, place=PLACES, hard=st.booleans())
    def link(self, path: bytes, place: int, hard: bool) -> None:
        with self.agent():
            (os.link if hard else os.symlink)(self.at(self.there(place)), self.at(path))

    @rule(place=PLACES, mode=MODES)
    def change_mode(self, place: int, mode: int) -> None:
        path = self.there(place)
        with self.agent():
            if not os.path.islink(self.at(path)):
                os.chmod(self.at(path), mode)

    @rule(place=PLACES, deep=st.booleans())
    def a_hint_is_followed(self, place: int, deep: bool) -> None:
        path = self.there(place)
        if not ignored(path):
            self._look(Scope(path if os.path.isdir(self.at(path)) else path.rpartition(b"/")[0], deep))

    @rule(path=PATHS, content=CONTENTS)
    def the_runtime_writes(self, path: bytes, content: Content) -> None:
        with as_nobody(), suppress(FileRefused):
            self.loop.run_until_complete(self.files.write(decode_path(path), raw(content), append=False))
            self.written.add(path)
            if not ignored(path.rpartition(b"/")[0]):
                self.told[path] = (content[1], hashlib.sha256(raw(content)).hexdigest(), None)

    @rule(place=PLACES)
    def somebody_reads(self, place: int) -> None:
        """Who is given a content takes it for the newest, whatever was reported before."""
        path = self.there(place)
        before = self.told.get(path)
        given: list[bytes] = []

        async def send(data: str, last: bool) -> None:
            given.append(base64.b64decode(data))

        with as_nobody(), suppress(FileRefused):
            told = self.loop.run_until_complete(send_chunks(self.files, decode_path(path), send))
            if before is not None and before[1] is not None:
                assert told["sha256"] == hashlib.sha256(b"".join(given)).hexdigest()
                self.told[path] = (told["size"], told["sha256"], None)

    @rule(place=PLACES, content=CONTENTS)
    def somebody_reads_in_between(self, place: int, content: Content) -> None:
        """A file is other than it was reported, and then as before again."""
        path = Path(os.fsdecode(self.at(self.there(place))))
        with self.agent():
            before = path.read_bytes()
            path.write_bytes(raw(content))
            self.somebody_reads(place)
            path.write_bytes(before)

    @invariant()
    def nothing_false_is_known(self) -> None:
        for frame in self._frames():
            path = os.fsencode(frame["path"])
            if frame["change"] == "deleted":
                del self.told[path]
                continue
            assert (path in self.told) == (frame["change"] == "modified")
            self.told[path] = (frame["size"], frame["sha256"], frame.get("omitted"))

    @rule()
    def look(self) -> None:
        before = self.told.copy()
        self._look(Scope(b"", deep=True))
        self.nothing_false_is_known()
        there, hidden, directories = self._truth()
        for path, (size, sha256, omitted) in self.told.items():
            if any(path.startswith(closed + b"/") for closed in hidden):
                continue  # nobody can see in there; what was known of it stays
            true = there[path]
            assert size == len(true)
            if omitted is None:
                assert sha256 == hashlib.sha256(true).hexdigest(), path
            elif omitted == "too_large":
                assert (sha256, size > MAX_FILE_BYTES) == (None, True)
            else:
                assert os.lstat(self.at(path)).st_mode & stat.S_IRUSR == 0
        assert before.keys() & there.keys() <= self.told.keys(), "what is there is not forgotten"
        assert len(self.told) <= self.max_files + len(self.written)
        seen = {path for path in there if not any(path.startswith(closed + b"/") for closed in hidden)}
        if directories < self.max_files and len(there) <= self.max_files:
            assert seen <= self.told.keys()
        elif directories < self.max_files and not hidden:
            assert len(self.told) >= self.max_files
        assert seen <= self.told.keys() or self.left_out

    def _look(self, scope: Scope) -> None:
        with as_nobody():
            self.loop.run_until_complete(self.files.look([scope]))

    def _frames(self) -> list[dict[str, Any]]:
        lines, _ = self.outbox.read(self.heard, 2**30)
        read = [frames.decode(line) for line in lines.splitlines()]
        self.heard = self.outbox.head
        self.left_out += sum(frame["k"] == "fault" for frame in read)
        return [frame for frame in read if frame["k"] == "file"]

    def _truth(self) -> tuple[dict[bytes, bytes], list[bytes], int]:
        """Contents by path; directories that the agent's user cannot look into; how many others."""
        there: dict[bytes, bytes] = {}
        hidden: list[bytes] = []
        directories = 0
        for directory, folders, names in os.walk(self.path):
            folders[:] = [name for name in folders if not ignored(name)]
            beneath = directory[len(self.path) + 1 :]
            directories += 1
            if beneath and os.stat(directory).st_mode & 0o500 != 0o500:
                hidden.append(beneath)
            for name in names:
                if stat.S_ISREG(os.lstat(os.path.join(directory, name)).st_mode):
                    path = beneath + b"/" + name if beneath else name
                    there[path] = self._content(os.path.join(directory, name))
        return there, hidden, directories

    @staticmethod
    def _content(path: bytes) -> bytes:
        mode = os.lstat(path).st_mode
        if os.geteuid() != 0:
            os.chmod(path, mode | stat.S_IRUSR)
        try:
            return Path(os.fsdecode(path)).read_bytes()
        finally:
            if os.geteuid() != 0:
                os.chmod(path, mode)

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()
        self.root.close()
        self.journal.close()
        for directory, _, _ in os.walk(self.path):
            os.chmod(directory, 0o700)
        shutil.rmtree(self.folder)


def raw(content: Content) -> bytes:
    return content[0].encode("latin-1") * content[1]


def ignored(path: bytes) -> bool:
    return any(name == b"dist" or name.startswith(b"tmp-") for name in path.split(b"/"))


def test_whatever_is_done_to_files_what_was_told_is_what_is_there() -> None:
    run_state_machine_as_test(
        Workspace,
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
