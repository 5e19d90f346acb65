"""Threads: the entries of a transcript in the order in which their blocks were shown.

Each conversation has a thread of its own, in the order in which the agent wrote. What viewers saw is
the law for the order of blocks, and it differs in two ways. Threads ran beside each other: they are
merged by the times of their entries. And a block is shown from its beginning on but written when it is
whole: for what came in between, the driver noted it among the entries (`drivers.shown_order`), because
the agent does not tell when a text began. The notes also tell whose a child is, and how it ended.

What stays open: two entries of different threads in the same millisecond have no order here; one of
them belongs to a child. Within each conversation the order is exact. A transcript without the
driver's notes has the order in which blocks were whole. What an entry means is `transcript`'s business.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from agent_runtime.blocks import MAIN
from agent_runtime_adapters.agents.claude.lines import Json, count, ident, mapping, moment

_NOTE: Final = "shown-order"
_QUEUE: Final = ""
"""What came to the agent from outside, among the entries of `main` but not in their order."""
_BESIDE: Final = (_NOTE, "queue-operation")
_BEGINNING: Final = datetime(1970, 1, 1, tzinfo=UTC)

_Head = tuple[datetime, int, int, str, int]
"""Where a thread stands: time, depth downward, when it joined, its id, the place in it."""


class Threads:
    """Walks threads that join one after the other: a child's when its call has been read."""

    def __init__(self, threads: Mapping[str, Sequence[Json]]) -> None:
        main = threads.get(MAIN, ())
        self._threads = {
            **threads,
            MAIN: [entry for entry in main if entry.get("type") not in _BESIDE],
            _QUEUE: [entry for entry in main if entry.get("type") == "queue-operation"],
        }
        self._than, self._children, self._ends = _notes(main), dict(_children(main)), _ends(main)
        told = self._threads if self._than else {}
        self._refs = {thread_id: _refs(entries) for thread_id, entries in told.items()}
        self._known = {ref for thread in self._refs.values() for refs in thread for ref in refs}
        self._place = {ref: at for at, refs in enumerate(self._refs.get(MAIN, ())) for ref in refs}
        self._times: dict[str, list[datetime]] = {}
        self._heads: list[_Head] = []
        self._parked: dict[str, list[_Head]] = {}
        self._ahead: set[int] = set()
        self._seen: set[str] = set()

    def join(self, thread_id: str, depth: int) -> None:
        """From here on the entries of this thread are among the others."""
        self._times[thread_id] = list(_times(self._threads.get(thread_id, ())))
        self._push((_BEGINNING, -depth, len(self._times), thread_id, -1))
        if thread_id == MAIN:
            self.join(_QUEUE, -1)

    @property
    def children(self) -> Mapping[str, str]:
        """Which child each call started, as far as it was noted."""
        return self._children

    @property
    def ends(self) -> Mapping[str, str]:
        """How children ended that did not go on, as far as it was noted."""
        return self._ends

    def waits_for(self, child: str) -> str | None:
        """What is to be seen before this child's block, and was not seen yet."""
        than = self._than.get(child)
        return than if than in self._known and than not in self._seen else None

    def __iter__(self) -> Iterator[tuple[str, Json, datetime, Sequence[str]]]:
        """Thread, entry, time, and by which names `waits_for` calls the entry."""
        while self._heads:
            head = heapq.heappop(self._heads)
            time, _, _, thread_id, at = head
            than = self._than.get(ident(self._threads[thread_id][at].get("uuid")) or "")
            if than is None or than not in self._place or than in self._seen:
                self._push(head)
            elif thread_id == MAIN and self._place[than] != at:
                heapq.heappush(self._heads, head)
                at = self._place[than]
                self._ahead.add(at)
            elif thread_id != MAIN:
                self._parked.setdefault(than, []).append(head)
                continue
            else:
                self._push(head)
            told_in = MAIN if thread_id == _QUEUE else thread_id
            yield told_in, self._threads[thread_id][at], time, self._passed(thread_id, at)

    def _push(self, head: _Head) -> None:
        """The next entry of this thread is its head; what was read ahead is left out."""
        _, depth, joined, thread_id, at = head
        at += 1
        while thread_id == MAIN and at in self._ahead:
            at += 1
        if at < len(self._times[thread_id]):
            heapq.heappush(self._heads, (self._times[thread_id][at], depth, joined, thread_id, at))

    def _passed(self, thread_id: str, at: int) -> Sequence[str]:
        refs = self._refs[thread_id][at] if self._refs else ()
        self._seen.update(refs)
        for ref in refs:
            for head in self._parked.pop(ref, ()):
                heapq.heappush(self._heads, head)
        return refs


def _notes(entries: Sequence[Json]) -> dict[str, str]:
    """What was shown before what; a child that goes on is told of again, and keeps its place."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.get("type") == _NOTE:
            later, than = ident(entry.get("later")), ident(entry.get("than"))
            if later is not None and than is not None:
                found.setdefault(later, than)
    return found


def _children(entries: Sequence[Json]) -> Iterator[tuple[str, str]]:
    for entry in entries:
        call, child = ident(entry.get("call")), ident(entry.get("later"))
        if entry.get("type") == _NOTE and call is not None and child is not None and child != MAIN:
            yield call, child


def _ends(entries: Sequence[Json]) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in entries:
        if entry.get("type") == _NOTE:
            found.pop(ident(entry.get("later")) or "", None)
            child, status = ident(entry.get("child")), ident(entry.get("status"))
            if child is not None and status is not None:
                found[child] = status
    return found


def _refs(entries: Sequence[Json]) -> list[Sequence[str]]:
    """By which names the notes call each entry: its uuid, and the block that it holds."""
    found: list[Sequence[str]] = []
    counted: tuple[str | None, int] = (None, 0)
    for entry in entries:
        refs = [uuid] if (uuid := ident(entry.get("uuid"))) is not None else []
        message_id = ident(mapping(entry.get("message")).get("id"))
        if entry.get("type") == "assistant" and message_id is not None:
            counted = (message_id, counted[1] + 1 if counted[0] == message_id else 0)
            told = count(entry.get("apiBlockIndex"))
            refs.append(f"{message_id}:{counted[1] if told is None else told}")
        found.append(refs)
    return found


def _times(entries: Sequence[Json]) -> Iterator[datetime]:
    """When each entry was written, at the earliest; not every one tells, and some are dated back."""
    newest = _BEGINNING
    for entry in entries:
        newest = max(newest, moment(entry.get("timestamp"), newest))
        yield newest
