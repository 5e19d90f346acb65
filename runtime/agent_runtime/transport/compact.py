"""compact: a replay made smaller without changing what it folds to. Pure.

A client that was away needs no typing: the deltas of a block are merged into one, and those of a
block that was finished meanwhile are left out, because `block_complete` has the whole. Each entry
that is left keeps its own position (a merged one that of its last part), so the numbers have holes;
where the replay ends is said beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from agent_runtime.events import (
    BlockComplete,
    BlockStart,
    BlockUpdate,
    Delta,
    LogEntry,
)


def compact(entries: Sequence[LogEntry]) -> list[LogEntry]:
    """The fewest entries, in order, that fold to the same as all of them."""
    return _merged(_without_superseded(entries))


def _without_superseded(entries: Sequence[LogEntry]) -> list[LogEntry]:
    """All but the deltas of blocks whose completion follows."""
    completed: set[str] = set()
    kept: list[LogEntry] = []
    for entry in reversed(entries):
        event = entry.event
        if isinstance(event, BlockComplete):
            completed.add(event.block_id)
        if not (isinstance(event, Delta) and event.block_id in completed):
            kept.append(entry)
    kept.reverse()
    return kept


def _merged(entries: Sequence[LogEntry]) -> list[LogEntry]:
    """Deltas of one block and kind joined at the place of the last, where nothing between matters."""
    run_of: list[list[LogEntry] | None] = []
    growing: dict[tuple[str, str], list[LogEntry]] = {}
    for entry in entries:
        event = entry.event
        run = None
        match event:
            case Delta():
                run = growing.setdefault((event.block_id, event.type), [])
                run.append(entry)
            case BlockStart():
                _settle(growing, event.block.id)
            case BlockComplete():
                _settle(growing, event.block_id)
            case BlockUpdate():
                pass  # never content
            case _:
                growing.clear()  # what it means for open blocks is the reader's affair
        run_of.append(run)
    return [
        _joined(run) if run else entry
        for entry, run in zip(entries, run_of, strict=True)
        if not run or run[-1] is entry
    ]


def _settle(growing: dict[tuple[str, str], list[LogEntry]], block_id: str) -> None:
    for key in [key for key in growing if key[0] == block_id]:
        del growing[key]


def _joined(parts: Sequence[LogEntry]) -> LogEntry:
    if len(parts) == 1:
        return parts[0]
    told = [part.event for part in parts if isinstance(part.event, Delta)]
    whole = told[-1].saying("".join([each.delta for each in told]))
    return LogEntry(parts[-1].position, parts[-1].at, whole)
