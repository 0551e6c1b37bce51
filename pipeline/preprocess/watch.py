"""Shows a preprocessing run to Prometheus: files by outcome, pace, and the share that went to quarantine."""

from __future__ import annotations

import time

from pipeline.storage import name_of
from pipeline.tracking.prometheus import Exporter


class Watch:
    """Counts what finished; ``dataset`` is the last part of the folder's name, for a URI may hold secrets."""

    def __init__(self, shards: str, planned_files: int) -> None:
        self._exporter = Exporter(dataset=name_of(shards))
        self._began = time.monotonic()
        self._files = self._failed = self._examples = 0
        self._exporter.set("hip_preprocess_files", planned_files, outcome="planned")

    def advance(self, files: int, examples: int, failed: int) -> None:
        """So much more is finished; ``failed`` of the files went to quarantine."""
        self._files += files
        self._failed += failed
        self._examples += examples
        show = self._exporter.set
        show("hip_preprocess_files", self._files - self._failed, outcome="done")
        show("hip_preprocess_files", self._failed, outcome="failed")
        show("hip_preprocess_quarantine_share", self._failed / max(1, self._files))
        show("hip_preprocess_examples_per_second", self._examples / max(1e-9, time.monotonic() - self._began))
