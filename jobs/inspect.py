"""``hip inspect``: what is in a dataset of token shards."""

from __future__ import annotations

from jobs.cli import verb
from pipeline.shards.inspect import inspect_dataset
from pipeline.shards.options import InspectOptions
from pipeline.storage import redact


def run(options: InspectOptions) -> None:
    """Show the report or say where it was written; then fail if verification found damage."""
    inspection = inspect_dataset(options)
    print(
        f"wrote {redact(options.output)}" if options.output else inspection.report, end="\n" if options.output else ""
    )
    inspection.check()


main = verb("inspect", InspectOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
