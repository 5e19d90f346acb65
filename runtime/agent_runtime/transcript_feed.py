"""TranscriptFeed: the agent's own transcript, from a runner's frames to the recorder; how long it was when.

A checkpoint says how many entries there were up to its offset, so that a later process stores none twice.
The bounds that entries must keep are checked here and in `incoming`; saving is the recorder's, the order of
frames that of `runner_feed`.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from agent_runtime.incoming import storable
from agent_runtime.recorder import Recorder
from agent_runtime_sandbox.frames import Frame

_MAX_KEY: Final = 200
_MAX_KEYS: Final = 10_000
"""Threads of a session's transcript, one a subagent."""


class TranscriptFeed:
    """Notes entries as they come; remembers at which offset each came until that is forgotten."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._grown: deque[tuple[int, str, int]] = deque()

    def take(self, frame: Frame) -> None:
        """Hand on the entries of a `transcript` frame; what is none is left out."""
        key, entries = frame.get("key"), frame.get("entries")
        if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY:
            return
        if isinstance(entries, list) and self._recorder.knows_transcript(key, _MAX_KEYS):
            kept, size_bytes = storable(entries, frame)
            self._grown.append((frame["o"], key, len(kept)))
            self._recorder.transcript_grew(key, kept, size_bytes=size_bytes)

    def lengths_at(self, offset: int) -> dict[str, int]:
        """How many entries each thread had up to this frame, which must not be forgotten yet."""
        lengths = self._recorder.transcript_lengths
        for at, key, count in self._grown:
            if at > offset:
                lengths[key] -= count
        return lengths

    def forget(self, offset: int) -> None:
        """Nobody will ask for a place up to this one."""
        while self._grown and self._grown[0][0] <= offset:
            self._grown.popleft()
