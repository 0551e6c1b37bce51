"""Every way a verb can end badly, each with the exit code it is reported by."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HipError(Exception):
    """A failure whose message is meant for the user: what was wrong, with which value, what to do."""

    exit_code = 1


class UserError(HipError):
    """The user's input or configuration is wrong."""

    exit_code = 2


class DataError(HipError):
    """More bad data than the budget allows, or a dataset that cannot be trusted."""

    exit_code = 3


class TrainingDiverged(HipError):
    """Training could not be kept finite within the allowed number of roll-backs."""

    exit_code = 4


class InfrastructureError(HipError):
    """Something outside the code failed (a node, a disk, a server); the same command may work later."""

    exit_code = 5


class Interrupted(HipError):
    """Stopped on request, with state saved."""

    exit_code = 130


def nearest(value: object, choices: Iterable[object]) -> str:
    """Name the valid choices, the closest spelling first: ``did you mean 'hip_16'? (valid: …)``."""
    names = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    valid = ", ".join(sorted(names))
    return f"did you mean {close[0]!r}? (valid: {valid})" if close else f"valid: {valid}"
