"""``hip experiment``: one of the paper's comparisons, with its table."""

from __future__ import annotations

from jobs.cli import verb
from pipeline.evaluate.paper_options import ExperimentOptions


def run(options: ExperimentOptions) -> None:
    """Run the study and print its table.

    Raises:
        HipError: as the parts raise it.
    """
    from pipeline import storage
    from pipeline.evaluate.paper import run_study

    table = run_study(options)
    print(storage.read_bytes(table).decode())
    print(f"written to {storage.redact(table)}")


main = verb("experiment", ExperimentOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
