"""A journal on disk of what should reach the tracking server, and how much of it has.

Every record is written here before it is sent, so a dead server, a killed process or a restart loses nothing.
One segment (a folder) belongs to one open tracker, which holds a lock on it; a later process may send what a dead one
left. Records carry their own time stamps and MLflow drops a metric it already has, so sending twice stores once.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

Record = dict[str, Any]
_READ_LIMIT_BYTES = 2**20


def now_ms() -> int:
    """The wall clock in milliseconds, MLflow's unit."""
    return time.time_ns() // 1_000_000


class Segment:
    """One journal: ``records.jsonl``, ``sent`` (bytes of it that reached the server) and copies of artifacts.

    Artifacts often go to another store, which may fail alone: those that still wait are in ``waiting.json``.
    """

    def __init__(self, folder: Path, lock: IO[bytes]) -> None:
        self.folder = folder
        self._records = folder / "records.jsonl"
        self._sent_file = folder / "sent"
        self._waiting_file = folder / "waiting.json"
        self._lock = lock
        self._append_lock = threading.Lock()
        self._artifacts = 0
        self.sent_bytes = int(self._sent_file.read_text() or 0) if self._sent_file.exists() else 0
        self.waiting: list[Record] = json.loads(self._waiting_file.read_bytes()) if self._waiting_file.exists() else []

    @classmethod
    def create(cls, root: Path) -> Segment:
        """A new segment below ``root``, locked by this process; names sort by time."""
        folder = root / f"{time.time_ns():020d}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
        folder.mkdir(parents=True)
        lock = _try_lock(folder)
        assert lock is not None, "a new segment has no other owner"
        return cls(folder, lock)

    @classmethod
    def take_over(cls, folder: Path) -> Segment | None:
        """The segment at ``folder`` if no live process owns it, else none."""
        lock = _try_lock(folder)
        if lock is None:
            return None
        if not (folder / "records.jsonl").exists():  # its owner finished between our listing and the lock
            lock.close()
            return None
        return cls(folder, lock)

    def append(self, record: Record) -> None:
        """Add one record; cheap enough for the training loop (one buffered write to the page cache)."""
        line = json.dumps(record, separators=(",", ":")) + "\n"
        with self._append_lock, self._records.open("a", encoding="utf-8") as stream:
            stream.write(line)

    def keep_file(self, path: Path) -> str:
        """Copy an artifact into the segment, as the original may change or go; returns its name there."""
        with self._append_lock:
            self._artifacts += 1
            name = f"{self._artifacts:05d}-{uuid.uuid4().hex[:6]}/{path.name}"
        target = self.folder / "artifacts" / name
        target.parent.mkdir(parents=True)
        shutil.copyfile(path, target)
        return name

    def artifact(self, name: str) -> Path:
        """Where ``keep_file`` put an artifact."""
        return self.folder / "artifacts" / name

    def pending(self) -> tuple[list[Record], int]:
        """The next records not yet sent (about a megabyte of them) and the position after them."""
        if not self._records.exists():
            return [], self.sent_bytes
        with self._records.open("rb") as stream:
            stream.seek(self.sent_bytes)
            lines = stream.readlines(_READ_LIMIT_BYTES)
        if lines and not lines[-1].endswith(b"\n"):  # half a line: still being written, or its writer was killed
            lines.pop()
        records = [record for line in lines if (record := _parse(line))]
        return records, self.sent_bytes + sum(map(len, lines))

    def first(self) -> Record | None:
        """The record that opened the segment (which run it is for)."""
        if not self._records.exists():
            return None
        with self._records.open("rb") as stream:
            return _parse(stream.readline())

    def mark_sent(self, position: int) -> None:
        """Note that everything before ``position`` is stored on the server."""
        _replace(self._sent_file, str(position))
        self.sent_bytes = position

    def set_waiting(self, artifacts: list[Record]) -> None:
        """Note which artifacts are not stored yet."""
        if artifacts != self.waiting:
            _replace(self._waiting_file, json.dumps(artifacts))
            self.waiting = artifacts

    def pending_count(self) -> int:
        """How many records and artifacts wait to be sent."""
        if not self._records.exists():
            return 0
        with self._records.open("rb") as stream:
            stream.seek(self.sent_bytes)
            return len(self.waiting) + sum(chunk.count(b"\n") for chunk in iter(lambda: stream.read(2**20), b""))

    def close(self, remove: bool) -> None:
        """Give up the segment; ``remove`` it when nothing in it is needed any more."""
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def left_behind(root: Path) -> Iterator[Segment]:
    """Segments below ``root`` whose owner is gone, oldest first, each locked by us."""
    for folder in sorted(root.iterdir()) if root.is_dir() else []:
        if folder.is_dir() and (segment := Segment.take_over(folder)):
            yield segment


def _replace(file: Path, content: str) -> None:
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.write_text(content)
    temporary.replace(file)


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _try_lock(folder: Path) -> IO[bytes] | None:
    try:
        lock = (folder / "lock").open("ab")
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock
