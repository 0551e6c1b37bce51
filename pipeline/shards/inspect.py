"""``hip inspect``: show what is in a dataset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError
from pipeline.shards.inspect_html import render_html
from pipeline.shards.inspect_text import render_text
from pipeline.shards.options import InspectOptions
from pipeline.shards.summary import summarise
from pipeline.storage import write_atomic


@dataclass(frozen=True)
class Inspection:
    """The report in the wanted format, and what verification found."""

    report: str
    damaged: tuple[str, ...]
    remedy: str

    def check(self) -> None:
        """Raise if verification found damage.

        Raises:
            DataError: names the first damaged shards and the way to rebuild one.
        """
        if self.damaged:
            raise DataError(f"{len(self.damaged)} damaged shards: {', '.join(self.damaged[:5])}. {self.remedy}")


def inspect_dataset(options: InspectOptions) -> Inspection:
    """Make the report and write it to ``options.output`` if that is set.

    Raises:
        UserError: no dataset there, or an output that cannot be written.
        DataError: a damaged manifest or quarantine table.
    """
    summary = summarise(options.shards, options.verify)
    report = _render(summary, options)
    if options.output:
        write_atomic(options.output, report.encode())
    damaged = (summary["verified"] or {"damaged": []})["damaged"]
    return Inspection(report, tuple(check["name"] for check in damaged), damaged[0]["remedy"] if damaged else "")


def _render(summary: dict[str, Any], options: InspectOptions) -> str:
    if options.format == "json":
        return json.dumps(summary, indent=1, ensure_ascii=False) + "\n"
    if options.format == "html":
        return render_html(summary, options.shards, options.samples)
    return render_text(summary)
