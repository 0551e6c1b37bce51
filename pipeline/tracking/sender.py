"""The thread that moves records from the spool to the server, and what it does when the server is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.storage import redact
from pipeline.tracking.orphans import sweep_orphans
from pipeline.tracking.server import Server, exclusive
from pipeline.tracking.spool import Record, Segment, left_behind, now_ms
from pipeline.tracking.system import sample

logger = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0  # a turn costs the interpreter 6 ms, whatever it sends
_LONGEST_PAUSE_SECONDS = 30.0
_SAMPLE_SECONDS = 15.0


class ArtifactsWaitError(Exception):
    """Artifacts could not be stored, all else was."""


class Sender(threading.Thread):
    """Sends one segment, and first what dead processes left for the same run; never raises into the caller."""

    def __init__(self, segment: Segment, root: Path, connect: Callable[[], Server], system_metrics: bool) -> None:
        super().__init__(name="hip-tracking", daemon=True)
        self.run_id: str | None = None
        self.dropped = 0
        self.last_error: str | None = None
        self._segment = segment
        self._root = root
        self._connect = connect
        self._system_metrics = system_metrics
        self._server: Server | None = None
        self._caught_up = False
        self._wake = threading.Event()
        self._closing = False
        self._pause_seconds = FLUSH_SECONDS
        self._opened_at = self._sampled_at = time.monotonic()
        self._turn = threading.Condition()
        self._turns_started = self._turns_done = 0

    def run(self) -> None:
        """Take turns until closed; the last turn comes after the last record."""
        while True:
            closing = self._closing
            with self._turn:
                self._turns_started += 1
            self._take_turn(closing)
            with self._turn:
                self._turns_done += 1
                self._turn.notify_all()
            if closing:
                return
            self._wake.wait(self._pause_seconds)
            self._wake.clear()

    def wait_for_first_turn(self, timeout_seconds: float) -> None:
        """Wait until the server was tried once."""
        with self._turn:
            self._turn.wait_for(lambda: self._turns_done > 0, timeout_seconds)

    def wait_for_turn(self, timeout_seconds: float) -> bool:
        """Wait until everything recorded before this call was tried once; false when that took too long."""
        with self._turn:
            wanted = self._turns_started + 1
            self._wake.set()
            return self._turn.wait_for(lambda: self._turns_done >= wanted, timeout_seconds)

    def close(self, timeout_seconds: float) -> bool:
        """Send the rest and stop; false when records are left in the spool."""
        self._closing = True
        self._wake.set()
        self.join(timeout_seconds)
        return not self.is_alive() and self.last_error is None

    def _take_turn(self, closing: bool) -> None:
        try:
            self._sample_system()
            if self._server is None:
                self._server = self._connect()
            if self.run_id is None:
                self._open_run(self._server)
            self._send(self._server, self._segment, self.run_id)
            self.last_error, self._pause_seconds = None, FLUSH_SECONDS
            if not self._caught_up and not closing:
                self._caught_up = True
                self._tidy(self._server)
        except Exception as error:
            self._note_outage(error)

    def _open_run(self, server: Server) -> None:
        opened = self._segment.first()
        assert opened is not None, "open_run writes the first record before the thread starts"
        for segment in left_behind(self._root):
            first = segment.first()
            if first is not None and first["key"] == opened["key"]:
                self._replay(server, segment, first)
            else:
                segment.close(remove=first is None)
        self.run_id = self._ensure_run(server, opened)

    def _tidy(self, server: Server) -> None:
        """Send what other runs' dead processes left, then close the runs that nobody will close."""
        for segment in left_behind(self._root):
            first = segment.first()
            if first is None:
                segment.close(remove=True)
            else:
                self._replay(server, segment, first)
        sweep_orphans(server)

    def _replay(self, server: Server, segment: Segment, opened: Record) -> None:
        try:
            self._send(server, segment, self._ensure_run(server, opened, replay=True))
        except ArtifactsWaitError as error:  # for a later run
            segment.close(remove=False)
            logger.warning("artifacts of run %s still cannot be stored (%s)", opened["name"], _first_line(error))
            return
        except BaseException:
            segment.close(remove=False)
            raise
        segment.close(remove=True)
        logger.info("replayed what run %s could not send to the tracking server", opened["name"])

    def _ensure_run(self, server: Server, opened: Record, replay: bool = False) -> str:
        """Driver and worker may both be first to reach a server that returns; the run must still be made once."""
        with exclusive(self._root.parent / "create.lock"):
            return server.ensure_run(opened, replay)

    def _send(self, server: Server, segment: Segment, run_id: str | None) -> None:
        """Store all that is pending, in order; artifacts whose store fails wait and hold up nothing else.

        Raises:
            ArtifactsWaitError: some do; all else is stored.
        """
        assert run_id is not None
        trouble = self._send_artifacts(server, segment, run_id) if segment.waiting else None
        while True:
            records, position = segment.pending()
            if position == segment.sent_bytes:
                break
            self.dropped += server.store(run_id, records)
            artifacts = [record for record in records if record["kind"] == "artifact"]
            segment.set_waiting(segment.waiting + [record for record in artifacts if record not in segment.waiting])
            if segment.waiting and trouble is None:
                trouble = self._send_artifacts(server, segment, run_id)
            server.finish(run_id, records)
            segment.mark_sent(position)
        if trouble is not None:
            raise ArtifactsWaitError(f"{type(trouble).__name__}: {trouble}") from trouble

    def _send_artifacts(self, server: Server, segment: Segment, run_id: str) -> Exception | None:
        """Store those that wait, up to the first whose store fails; returns how it failed."""
        for index, record in enumerate(waiting := segment.waiting):
            try:
                self.dropped += server.store_artifact(run_id, record, segment.artifact(record["file"]))
            except Exception as error:
                segment.set_waiting(waiting[index:])
                return error
        segment.set_waiting([])
        return None

    def _sample_system(self) -> None:
        now = time.monotonic()
        if self._system_metrics and now - self._sampled_at >= _SAMPLE_SECONDS:
            self._sampled_at = now
            step = int(now - self._opened_at)
            self._segment.append({"kind": "metrics", "ms": now_ms(), "step": step, "values": sample()})

    def _note_outage(self, error: Exception) -> None:
        what = "server cannot be reached, keeping records"
        if isinstance(error, ArtifactsWaitError):
            what = "artifacts cannot be stored, keeping them"
        message = f"tracking {what} on disk ({_first_line(error)})"
        if self.last_error is None:
            logger.warning("%s", message)
        self.last_error = message
        self._pause_seconds = min(_LONGEST_PAUSE_SECONDS, self._pause_seconds * 2)


def _first_line(error: Exception) -> str:
    text = str(error) if isinstance(error, ArtifactsWaitError) else f"{type(error).__name__}: {error}"
    return redact(text).splitlines()[0]
