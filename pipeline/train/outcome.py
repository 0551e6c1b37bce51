"""How a run ended: what workers leave for the driver, and for themselves after a restart."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from pipeline.errors import DataError, InfrastructureError, Interrupted, TrainingDiverged, UserError
from pipeline.storage import exists, join, read_bytes, write_atomic
from pipeline.train.memory import OutOfMemory

_ERRORS = {
    error.__name__: error
    for error in (DataError, InfrastructureError, Interrupted, OutOfMemory, TrainingDiverged, UserError)
}


@dataclass
class Outcome:
    """How a run ended, written where the driver and restarted workers find it."""

    status: str
    attempt: int
    message: str = ""
    error: str = ""
    step: int = 0
    examples_consumed: int = 0
    checkpoint: str | None = None
    metrics: dict[str, float] | None = None

    def write(self, run_folder: str) -> None:
        """Leave it in the run folder."""
        write_atomic(join(run_folder, "outcome.json"), json.dumps(asdict(self)).encode())

    @classmethod
    def read(cls, run_folder: str, attempt: int) -> Outcome | None:
        """The outcome of this attempt, if it has ended."""
        place = join(run_folder, "outcome.json")
        found = cls(**json.loads(read_bytes(place))) if exists(place) else None
        return found if found is not None and found.attempt == attempt else None

    def raise_error(self) -> None:
        """Raise what ended the run, if it was an error."""
        if self.error:
            raise _ERRORS.get(self.error, InfrastructureError)(self.message)
