"""The threads under `sqlite`: one that writes for everybody, a few that read.

Group commit: while one transaction is being made durable, the writes that arrive wait together and
then share the next one. Where one fails, all are undone and done again, each in a savepoint of its own:
it harms no other, and a job may run twice. Each caller hears its own outcome, after the commit. A write
that was handed over happens, whether or not its caller still waits. `check` is asked on either side of the
work and raises where the connection leads nowhere any more. Not here: SQL, and what the jobs do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

from agent_runtime.errors import PersistenceFault
from agent_runtime_adapters.persistence.sqlite_database import translating

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], T]

Check = Callable[[], None]

GROUP_LIMIT: Final = 256
"""Most writes in one transaction: bounds how long the first of a group waits for the last."""


class _Write(NamedTuple):
    """A job that waits for the writer, and whom to tell."""

    job: Job[Any]
    done: asyncio.Future[Any]


class _Outcome(NamedTuple):
    """What became of a write: its value, or why it failed."""

    write: _Write
    value: Any = None
    error: Exception | None = None


class GroupWriter:
    """Runs jobs one after the other on a thread of its own, many to a transaction.

    `commits` counts transactions. The connection belongs to the writer and is closed with it.
    """

    def __init__(self, connection: sqlite3.Connection, check: Check = lambda: None) -> None:
        self.commits = 0
        self._check = check
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._waiting: SimpleQueue[_Write | None] = SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def write(self, job: Job[T]) -> T:
        """Run a job inside a transaction; return its value when that is durable, or raise its error."""
        if self._closing:
            raise closed()
        done: asyncio.Future[T] = self._loop.create_future()
        self._waiting.put(_Write(job, done))
        return await done

    async def close(self) -> None:
        """Finish all that was handed over, then end the thread. Idempotent."""
        if not self._closing:
            self._closing = True
            self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        for group in self._groups():
            outcomes = self._commit(group)
            # A loop that was closed without us has nobody left who could be told.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_tell, outcomes)
        self._connection.close()

    def _groups(self) -> Iterator[list[_Write]]:
        while (first := self._waiting.get()) is not None:
            group = [first]
            last = False
            with contextlib.suppress(Empty):
                while len(group) < GROUP_LIMIT and not last:
                    following = self._waiting.get_nowait()
                    if following is None:
                        last = True
                    else:
                        group.append(following)
            yield group
            if last:
                return

    def _commit(self, group: Sequence[_Write], *, apart: bool = False) -> list[_Outcome]:
        """One transaction; with `apart` a savepoint for each write, which takes a tenth more time."""
        begun = False
        try:
            with translating():
                self._check()
                self._connection.execute("BEGIN IMMEDIATE")
                begun = True
                if apart:
                    outcomes = [self._attempt(write) for write in group]
                else:
                    outcomes = [_Outcome(write, write.job(self._connection)) for write in group]
                self._connection.execute("COMMIT")
                begun = False
                self._check()  # nobody may hear that a write is safe which went to a file that is gone
        except Exception as error:  # whatever it was, the thread must go on and every caller must hear
            self._abandon()
            if begun and not apart:
                return self._commit(group, apart=True)
            if begun and len(group) > 1:
                # One write took the transaction down with it (a full disk, say): each gets its own.
                return [outcome for write in group for outcome in self._commit([write], apart=True)]
            return [_Outcome(write, error=_as_fault(error)) for write in group]
        self.commits += 1
        return outcomes

    def _attempt(self, write: _Write) -> _Outcome:
        self._connection.execute("SAVEPOINT write")
        try:
            with translating():
                outcome = _Outcome(write, value=write.job(self._connection))
        except Exception as error:
            if not self._connection.in_transaction:
                raise
            self._connection.execute("ROLLBACK TO write")
            outcome = _Outcome(write, error=error)
        self._connection.execute("RELEASE write")
        return outcome

    def _abandon(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


class Readers:
    """Runs reading jobs on a few threads, each with a connection of its own while it works."""

    def __init__(self, connections: Sequence[sqlite3.Connection], check: Check = lambda: None) -> None:
        self._check = check
        self._free: SimpleQueue[sqlite3.Connection] = SimpleQueue()
        self._connections = tuple(connections)
        for connection in self._connections:
            self._free.put(connection)
        self._threads = ThreadPoolExecutor(len(self._connections), "sqlite-reader")
        self._closing = False

    async def read(self, job: Job[T]) -> T:
        """Run a job off the event loop; it sees all that was committed before it began."""
        if self._closing:
            raise closed()
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, job)

    async def close(self) -> None:
        """Let running jobs end, then close the connections. Idempotent."""
        self._closing = True
        await asyncio.to_thread(self._threads.shutdown)
        for connection in self._connections:
            connection.close()

    def _run(self, job: Job[T]) -> T:
        connection = self._free.get()
        try:
            with translating():
                self._check()
                return job(connection)
        finally:
            self._free.put(connection)


def closed() -> PersistenceFault:
    """Somebody called after the end, or before the beginning."""
    return PersistenceFault("The store is not open.", retryable=False)


def _as_fault(error: Exception) -> PersistenceFault:
    return error if isinstance(error, PersistenceFault) else PersistenceFault("The database failed.")


def _tell(outcomes: Sequence[_Outcome]) -> None:
    for outcome in outcomes:
        done = outcome.write.done
        if done.done():
            continue  # its caller was cancelled; the write is done all the same
        if outcome.error is not None:
            done.set_exception(outcome.error)
        else:
            done.set_result(outcome.value)
