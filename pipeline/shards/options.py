"""Options of ``hip inspect``."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UserError, nearest

FORMATS = ("text", "json", "html")


@dataclass(frozen=True)
class InspectOptions:
    """What to show of a dataset, and how."""

    shards: str
    """Folder of the dataset; path or URI."""
    format: str = "text"
    """text, json, or html: one page that needs no other file."""
    output: str | None = None
    """File to write, path or URI; None prints. Needed for html."""
    verify: bool = False
    """Read every byte and compare all checksums; exit code 3 if a shard is damaged."""
    samples: int = 8
    """Examples that the html page shows."""

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise UserError(f"format={self.format!r} is unknown; {nearest(self.format, FORMATS)}")
        if self.format == "html" and not self.output:
            raise UserError("format=html needs a file to write, like output=dataset.html")
        if self.samples < 0:
            raise UserError(f"samples={self.samples} must be 0 or more")
