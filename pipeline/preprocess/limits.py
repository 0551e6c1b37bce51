"""What one file may cost, and how a file that cannot be used says why."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pipeline.errors import DataError, UserError

REASONS = {
    "other_file": "neither its name nor its content is that of media",
    "not_in_recipe": "it holds none of the recipe's modalities",
    "missing_file": "a table, a list or a link names it, but it is not there",
    "unreadable": "the file system refused to read it",
    "empty_file": "it has no bytes",
    "not_media": "it is named like media but its content is not",
    "no_stream": "a container without any video or audio stream",
    "encrypted": "its streams are encrypted",
    "corrupt": "the decoder met invalid data",
    "truncated": "it ends long before the duration it claims",
    "too_short": "no clip of the recipe's length fits",
    "too_long": "it claims or has more seconds than limits.max_duration_seconds",
    "too_large": "it claims more pixels or cells than limits.max_pixels",
    "time_limit": "decoding took longer than limits.seconds_per_file",
    "memory_limit": "decoding needed more than limits.memory_gib",
    "decoder_crash": "the decoder crashed the process it ran in",
}
"""Every quarantine reason. The first two describe files that were never meant for this recipe: they are recorded but do
not count against ``max_failed_fraction``."""

UNCOUNTED_REASONS = frozenset({"other_file", "not_in_recipe"})


class MediaError(DataError):
    """One file cannot be used; ``reason`` is a key of :data:`REASONS`, ``detail`` what the decoder said."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail} ({REASONS[reason]})")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class LimitsOptions:
    """What decoding one file may cost; a file over a limit goes to quarantine and the rest goes on."""

    seconds_per_file: float = 600.0
    """Wall-clock seconds of decoding."""
    memory_gib: float = 4.0
    """Address space of the decoding process."""
    max_pixels: int = 100_000_000
    """Pixels of one picture (or cells of one array), checked before anything is decoded."""
    max_duration_seconds: float = 14_400.0
    """Seconds a file may claim or turn out to last."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if not value > 0:
                raise UserError(f"limits.{item.name}={value} must be above 0")
        if self.memory_gib < 1:
            raise UserError(f"limits.memory_gib={self.memory_gib} is below 1, less than the decoders themselves need")
