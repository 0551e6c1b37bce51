"""The tracker that training code holds: every call returns at once and none of them raises."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pipeline.errors import Interrupted
from pipeline.tracking.flatten import clean_key, clean_params, clean_tags
from pipeline.tracking.sender import Sender
from pipeline.tracking.spool import Record, Segment, now_ms

logger = logging.getLogger(__name__)

STATUSES = ("FINISHED", "FAILED", "KILLED")
_CLOSE_SECONDS = 60.0
_FIRST_CONTACT_SECONDS = 30.0


class Tracker:
    """One MLflow run being written. Made by ``open_run``; without a spool (tracking disabled) it keeps nothing.

    As a context manager it ends the run with the true status: FINISHED, KILLED on an interrupt, else FAILED.
    """

    def __init__(self, segment: Segment | None = None, sender: Sender | None = None) -> None:
        self._segment = segment
        self._sender = sender
        self._finished = False
        self._warned = False
        self.lost_records = 0

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; none when tracking is disabled or the server is away.

        Waits for the server's first answer (up to half a minute), so ask for it after the slow starts, not before.
        """
        if self._sender is None:
            return None
        if self._sender.run_id is None:
            self._sender.wait_for_first_turn(_FIRST_CONTACT_SECONDS)
        return self._sender.run_id

    @property
    def server_away(self) -> bool:
        """Whether the last attempt to reach the server failed."""
        return bool(self._sender and self._sender.last_error)

    def log_metrics(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers at a step; one that is not a number is left out and counted."""
        numbers: dict[str, float] = {}
        for name, value in values.items():
            try:
                numbers[clean_key(name)] = float(value)
            except (TypeError, ValueError):
                self._lost(f"metric {name} is {type(value).__name__}, not a number")
        self._record({"kind": "metrics", "ms": now_ms(), "step": int(step), "values": numbers})

    def log_params(self, params: object) -> None:
        """Record parameters: a nested mapping or dataclass, flattened to dotted names and clipped."""
        self._record({"kind": "params", "values": clean_params(params)})

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags on the run."""
        self._record({"kind": "tags", "values": clean_tags(tags)})

    def log_artifact(self, path: str | Path, folder: str | None = None) -> None:
        """Record a file, or every file below a folder; it is copied at once, so the caller may delete it."""
        if self._segment is None or self._finished:
            return
        path = Path(path)
        try:
            for file in sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]:
                below = [folder] if folder else []
                if path.is_dir():
                    below += [path.name, *file.relative_to(path).parent.parts]
                name = self._segment.keep_file(file)
                self._record({"kind": "artifact", "file": name, "folder": "/".join(below) or None})
        except OSError as error:
            self._lost(f"artifact {path}: {error.strerror or error}")

    def flush(self, timeout_seconds: float = 30.0) -> bool:
        """Wait until all that was recorded reached the server; false when it did not."""
        if self._sender is None or not self._sender.is_alive():
            return True
        return self._sender.wait_for_turn(timeout_seconds) and self._sender.last_error is None

    def finish(self, status: str = "FINISHED") -> None:
        """End the run with a status; what the server does not take now is sent by the next run on this storage."""
        if self._segment is None or self._sender is None or self._finished:
            return
        if status not in STATUSES:
            logger.warning("run status %s is unknown; using FAILED", status)
            status = "FAILED"
        self._record({"kind": "finish", "status": status, "ms": now_ms()})
        self._finished = True
        sent = self._sender.close(_CLOSE_SECONDS)
        if not sent:
            logger.warning(
                "%d tracking records wait in %s; the next run on this storage sends them",
                self._segment.pending_count(),
                self._segment.folder,
            )
        if not self._sender.is_alive():
            self._segment.close(remove=sent)

    def _record(self, record: Record) -> None:
        if self._segment is None or self._finished:
            return
        try:
            self._segment.append(record)
        except (OSError, ValueError, TypeError) as error:
            self._lost(f"{record['kind']}: {error}")

    def _lost(self, why: str) -> None:
        self.lost_records += 1
        if not self._warned:
            self._warned = True
            logger.warning("a tracking record was lost (%s); further ones are only counted", why)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | SystemExit | Interrupted)
        self.finish("FINISHED" if kind is None else "KILLED" if stopped else "FAILED")
