"""Reports of a trial whose training runs in several worker processes: through two queues, answer for report."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty

from ray.util.queue import Queue

Report = Callable[[int, Mapping[str, float]], bool]

_POLL_SECONDS = 1.0


class RemoteReport:
    """What rank 0 calls: sends a report to the trial and waits for its answer. Travels to other machines."""

    def __init__(self, reports: Queue, answers: Queue) -> None:
        self._reports = reports
        self._answers = answers

    def __call__(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Whether training shall end at this step."""
        self._reports.put((step, dict(metrics)))
        return bool(self._answers.get())


@contextmanager
def answered_by(report: Report) -> Iterator[RemoteReport]:
    """A report for workers elsewhere, each call of which is answered here by ``report``."""
    reports, answers = Queue(actor_options={"num_cpus": 0}), Queue(actor_options={"num_cpus": 0})
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            try:
                step, metrics = reports.get(timeout=_POLL_SECONDS)
            except Empty:
                continue
            answers.put(report(step, metrics))

    thread = threading.Thread(target=answer, name="reports", daemon=True)
    thread.start()
    try:
        yield RemoteReport(reports, answers)
    finally:
        over.set()
        thread.join(2 * _POLL_SECONDS)
        reports.shutdown(force=True)
        answers.shutdown(force=True)
