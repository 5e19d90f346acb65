"""What a client makes of what it is told: docs/wire.md sections 4 and 5, written down once more. Pure.

On purpose nothing of the runtime's own fold is used here.
"""

import json
from typing import Any

Told = dict[str, Any]
KEPT = {"id", "type", "content", "conversationId", "toolUseId"}


class Hole(Exception):
    """A live event did not follow the one before: join again."""


class Folded:
    """The state of one session as one viewer knows it; `ends` counts the `turn_end`s that it was told.

    `home` is the sandbox with an agent that it knows of, `left` the one that `workspace_restored` told of
    last, `moved` counts these, `hibernated` the times that it saw an agent ended for idleness.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.seq = -1
        self.blocks: dict[str, Told] = {}
        self.queue: list[Told] = []
        self.files: dict[str, str] = {}
        self.phase = ""
        self.ends: dict[tuple[str, str], int] = {}
        self.home: str | None = None
        self.left: str | None = None
        self.hibernated = 0
        self.moved = 0

    @property
    def position(self) -> str | None:
        return f"{self.epoch}:{self.seq}" if self.epoch else None

    def take_join(self, ack: Told) -> None:
        if ack["resume"] == "snapshot":
            self.blocks = {block["id"]: block for block in ack["blocks"]}
            assert len(self.blocks) == len(ack["blocks"]), "a block twice in one snapshot"
            self.queue = ack["queue"]
            self.files = {file["path"]: file["sha256"] for file in ack["files"]}
            self.phase = ack["session"]["runtime"]["phase"]
            self.home = self.left = None
            self._settle(ack["session"]["runtime"])
        else:
            assert ack["position"].split(":")[0] == self.epoch, "a replay of another epoch"
            for event in ack["events"]:
                assert event["seq"] > self.seq, "a replay goes back"
                self._apply(event)
                self.seq = event["seq"]
        epoch, _, seq = ack["position"].rpartition(":")
        assert epoch != self.epoch or int(seq) >= self.seq, "a join goes back"
        self.epoch, self.seq = epoch, int(seq)

    def take_live(self, event: Told) -> None:
        if event["epoch"] == self.epoch and event["seq"] <= self.seq:
            return
        if event["epoch"] != self.epoch or event["seq"] != self.seq + 1:
            raise Hole
        self.seq = event["seq"]
        self._apply(event)

    def bytes(self) -> bytes:
        """Canonical JSON of all of it."""
        shown = [list(self.blocks.values()), self.queue, self.files, self.phase]
        return json.dumps(shown, sort_keys=True).encode()

    def _apply(self, event: Told) -> None:
        match event["type"]:
            case "block_start" | "block_complete":
                self.blocks[event["block"]["id"]] = dict(event["block"])
            case "text_delta" | "block_update" if event["blockId"] in self.blocks:
                _change(self.blocks[event["blockId"]], event)
            case "queue_changed":
                self.queue = event["queue"]
            case "session_status":
                self.hibernated += (self.phase, event["runtime"]["phase"]) == ("ready", "hibernated")
                self.phase = event["runtime"]["phase"]
                self._settle(event["runtime"])
            case "workspace_restored":
                assert self.home in {None, event["fromSandboxId"]}, (
                    "restored from a sandbox that was not the last"
                )
                self.home, self.left = None, event["fromSandboxId"]
                self.moved += 1
            case "file_changed" if event["change"] == "deleted":
                self.files.pop(event["file"]["path"], None)
            case "file_changed":
                self.files[event["file"]["path"]] = event["file"]["sha256"]
            case "turn_end":
                key = (event["epoch"], event["turn"]["turnId"])
                self.ends[key] = self.ends.get(key, 0) + 1
                assert self.ends[key] == 1, f"turn {key} ended twice"

    def _settle(self, runtime: Told) -> None:
        """A sandbox with an agent is the one of before, or it was told that it is another."""
        if runtime["phase"] in {"ready", "running", "hibernated"} and runtime["sandbox"] is not None:
            here = runtime["sandbox"]["sandboxId"]
            assert self.home in {None, here}, "another sandbox in silence"
            assert here != self.left, "restored, and in the same sandbox as before"
            self.home = here


def _change(block: Told, event: Told) -> None:
    if event["type"] == "block_update":
        block |= {name: new for name, new in event["updates"].items() if name not in KEPT}
    elif block["state"] == "streaming":
        block["content"] = block.get("content", "") + event["delta"]
