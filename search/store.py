"""The log of a study: one SQLite file to which events are appended, and nothing is ever changed.

One process writes (the coordinator, who holds the study's lock); any number read meanwhile, as `archc study watch`
does.

What survives: an event whose `append` has returned survives the death of the process, kill -9 included. Power loss may
take the last events, back to the last one that ended a trial: those are synced to the disk (`DURABLE`). The file is
never torn: SQLite's write-ahead log holds whole transactions or none, and one `append` is one transaction.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from archc.ir.diagnostics import CompileError, fail
from archc.search.records import Record

VERSION = 1
"""Of the log and of what events hold. Another one is another format."""
LOG, LOCK = "study.sqlite", "study.lock"
_APPLICATION = 0x61726368  # `arch`: so that another program's database is not taken for a study

Kind = Literal[
    "opened",  # a coordinator has begun: workers, versions
    "proposed",  # a proposal
    "promoted",  # …which goes on with the training of an earlier trial
    "duplicate",  # …whose work is that of an earlier trial
    "leased",  # …whose work is begun
    "report",  # a point of its learning curve
    "retried",  # its worker was lost, and it is begun again
    "measured",  # a latency
    "finished",  # its result
    "failed",  # its result: infeasible
    "closed",  # the coordinator has ended, and why
]
DURABLE: frozenset[Kind] = frozenset({"finished", "failed", "closed"})

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE config (text TEXT NOT NULL);
CREATE TABLE event (
    id INTEGER PRIMARY KEY,
    time REAL NOT NULL,
    kind TEXT NOT NULL,
    trial INTEGER,
    data TEXT NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that is to be logged: of a trial, or of the study (None). `data` is a record or plain data."""

    kind: Kind
    trial: int | None
    data: Record | dict[str, Any]

    def text(self) -> str:
        if isinstance(self.data, Record):
            return self.data.model_dump_json(exclude_defaults=True)
        return json.dumps(self.data, separators=(",", ":"))


@dataclass(frozen=True, slots=True)
class Entry:
    """An event as it stands in the log: `time` in seconds since the epoch, `data` as JSON."""

    id: int
    time: float
    kind: Kind
    trial: int | None
    data: str


class Store:
    """The log of the study in a folder."""

    def __init__(self, folder: Path, connection: sqlite3.Connection) -> None:
        self.folder = folder
        self._connection = connection
        self._synchronous = ""

    @staticmethod
    def create(folder: Path, config: str) -> None:
        """A new log that holds a configuration; it is there as a whole or not at all.

        Raises: CompileError: E0728 when it cannot be written, E0730 when there is one.
        """
        path = folder / LOG
        temporary = folder / f".{LOG}.{secrets.token_hex(8)}"
        try:
            with writing(folder), contextlib.closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
                connection.execute("INSERT INTO config VALUES (?)", (config,))
            os.link(temporary, path)  # unlike a rename, it fails when there is one
        except FileExistsError:
            raise occupied(folder) from None
        finally:
            for left in folder.glob(f"{temporary.name}*"):
                left.unlink(missing_ok=True)

    @staticmethod
    def open(folder: Path, *, readonly: bool = False) -> Store:
        """The log of a folder. To write, hold the study's `Lock`.

        Raises: CompileError: E0725 for one of another version, E0729 when there is none, or it is damaged.
        """
        path = demand(folder)
        try:
            return Store(folder, _connect(path, readonly))
        except sqlite3.DatabaseError as error:
            raise damaged(path, str(error)) from error

    @property
    def config(self) -> str:
        ((text,),) = self._connection.execute("SELECT text FROM config").fetchall()
        return str(text)

    def append(self, *events: Event) -> list[Entry]:
        """Log events, all of them or none. Raises: CompileError (E0728) when the disk is full."""
        now = time.time()
        synchronous = "FULL" if any(e.kind in DURABLE for e in events) else "NORMAL"
        with writing(self.folder):
            if synchronous != self._synchronous:
                self._connection.execute(f"PRAGMA synchronous = {synchronous}")
                self._synchronous = synchronous
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                entries = [self._insert(now, event) for event in events]
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some errors have rolled back already
                    self._connection.execute("ROLLBACK")
                raise
        return entries

    def _insert(self, now: float, event: Event) -> Entry:
        text = event.text()
        cursor = self._connection.execute(
            "INSERT INTO event (time, kind, trial, data) VALUES (?, ?, ?, ?)", (now, event.kind, event.trial, text)
        )
        assert cursor.lastrowid is not None
        return Entry(cursor.lastrowid, now, event.kind, event.trial, text)

    def entries(self, after: int = 0) -> Iterator[Entry]:
        """What was logged, from the event behind number `after` on. Raises: CompileError (E0729)."""
        query = "SELECT id, time, kind, trial, data FROM event WHERE id > ? ORDER BY id"
        try:
            for row in self._connection.execute(query, (after,)):
                yield Entry(*row)
        except sqlite3.DatabaseError as error:
            raise damaged(self.folder / LOG, str(error)) from error

    def close(self) -> None:
        self._connection.close()


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    """A connection to a log that has been looked at."""
    uri = path.absolute().as_uri()
    connection = sqlite3.connect(f"{uri}?mode={'ro' if readonly else 'rw'}", uri=True, isolation_level=None, timeout=30)
    try:
        try:
            ((application,),) = connection.execute("PRAGMA application_id").fetchall()
        except sqlite3.OperationalError:
            if not readonly:
                raise
            connection.close()  # in a folder that we cannot write to there is no room for what readers share
            connection = sqlite3.connect(f"{uri}?immutable=1", uri=True, isolation_level=None)
            ((application,),) = connection.execute("PRAGMA application_id").fetchall()
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        if application != _APPLICATION:
            raise damaged(path, "it is the database of another program")
        if version != VERSION:
            raise fail(
                "E0725",
                f"`{path.parent}` holds a study of another version",
                label=f"its log has version {version}, this archc reads version {VERSION}",
                help="go on with the archc that began it" if version > VERSION else "begin a new study",
            )
        if not readonly:
            ((sound,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            if sound != "ok":
                raise damaged(path, str(sound).splitlines()[-1])
            connection.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """What the disk refuses in here is told as E0728."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        if isinstance(error, FileExistsError):
            raise
        raise full(folder, str(error)) from error


def full(folder: Path, why: str) -> CompileError:
    """The diagnostic for a study that cannot write."""
    return fail(
        "E0728",
        f"the study in `{folder}` cannot be written",
        label=why,
        help="all that was logged stands on the disk: make room (and see that it may be written), then resume it",
    )


def demand(folder: Path) -> Path:
    """The log of the study in a folder. Raises: CompileError (E0729) when there is none."""
    path = folder / LOG
    if not path.is_file():
        raise fail(
            "E0729",
            f"there is no study in `{folder}`",
            label=f"it has no `{LOG}`",
            help="`archc search … --study DIR` begins one",
            exit_code=2,
        )
    return path


def damaged(path: Path, why: str) -> CompileError:
    return fail(
        "E0729", f"`{path}` is not the log of a study, or it is damaged", label=why, help="restore it from a copy"
    )


def occupied(folder: Path) -> CompileError:
    return fail(
        "E0730",
        f"there is a study in `{folder}` already",
        help=f"go on with it (`archc study resume {folder}`), or name another folder",
    )


class Lock:
    """Held by the one process that writes to a study. It ends with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Raises: CompileError: E0726 while another process holds it, E0728 when it cannot be written."""
        with writing(folder):
            self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._file, 4096, 0).decode(errors="replace").strip()
            os.close(self._file)
            raise fail(
                "E0726",
                f"the study in `{folder}` is in use",
                label=f"by {holder}" if holder else "by another process",
                help="wait for it or end it; `archc study watch` shows how it goes",
            ) from None
        _held.add(self._file)
        with writing(folder):
            os.ftruncate(self._file, 0)
            since = time.strftime("%Y-%m-%d %H:%M:%S")
            os.pwrite(self._file, f"process {os.getpid()} on {socket.gethostname()}, since {since}".encode(), 0)

    def release(self) -> None:
        if self._file in _held:
            _held.remove(self._file)
            os.close(self._file)


_held: set[int] = set()


def _let_go() -> None:
    """A forked child shares the lock's file: it would hold the study when its parent is gone."""
    for file in _held:
        os.close(file)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
