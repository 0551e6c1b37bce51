"""How a run ended: what workers leave for the driver, and for themselves after a restart."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

from hip_model import ConfigError, InputError
from pipeline.errors import DataError, HipError, InfrastructureError, Interrupted, TrainingDiverged, UserError
from pipeline.storage import exists, join, read_bytes, redact, write_atomic
from pipeline.train.memory import OutOfMemory
from pipeline.train.resume import without_credentials

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 30.0
_ERRORS = {
    error.__name__: error
    for error in (DataError, InfrastructureError, Interrupted, OutOfMemory, TrainingDiverged, UserError)
}


@dataclass
class Outcome:
    """How an attempt at a run ended, where the driver and restarted workers find it.

    It is a file in the run folder, and a letter in the mailbox beside the driver: the disk may be full.
    """

    status: str
    attempt: int
    message: str = ""
    error: str = ""
    step: int = 0
    examples_consumed: int = 0
    checkpoint: str | None = None
    metrics: dict[str, float] | None = None

    def leave(self, run_folder: str, mailbox: Any) -> None:
        """Leave it in the run folder and in the mailbox, if there is one."""
        if mailbox is not None:
            _ask(mailbox.tell_outcome, self)
        try:
            write_atomic(join(run_folder, "outcome.json"), json.dumps(without_credentials(asdict(self))).encode())
        except (OSError, HipError) as error:
            logger.error("outcome.json could not be written: %s", redact(str(error)))

    @classmethod
    def read(cls, run_folder: str, attempt: int, mailbox: Any = None) -> Outcome | None:
        """The outcome of this attempt, if it has ended."""
        place = join(run_folder, "outcome.json")
        found = cls(**json.loads(read_bytes(place))) if exists(place) else None
        if found is not None and found.attempt == attempt:
            return found
        told: Outcome | None = _ask(mailbox.outcome) if mailbox is not None else None
        return told if told is not None and told.attempt == attempt else None

    def raise_error(self) -> None:
        """Raise what ended the run, if it was an error."""
        if self.error:
            raise _ERRORS.get(self.error, InfrastructureError)(self.message)


def known_error(error: Exception) -> HipError | None:
    """What a worker's error is to the user; none for one that another try may mend."""
    if isinstance(error, HipError):
        return error
    if isinstance(error, ConfigError | InputError):
        return UserError(str(error))
    if isinstance(error, ValueError | TypeError | KeyError | AttributeError):
        return InfrastructureError(f"{type(error).__name__}: {error}")
    return None


def _ask(method: Any, *arguments: Any) -> Any:
    """A mailbox's answer; none from one that died with its node."""
    import ray

    try:
        return ray.get(method.remote(*arguments), timeout=_ANSWER_SECONDS)
    except (ray.exceptions.RayError, TimeoutError) as error:
        logger.warning("the driver's mailbox does not answer: %s", error)
        return None
