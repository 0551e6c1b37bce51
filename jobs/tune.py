"""``hip tune``: search over geometries and training settings."""

from __future__ import annotations

from jobs.cli import verb
from pipeline.storage import redact
from pipeline.tune.options import TuneOptions


def run(options: TuneOptions) -> None:
    """Search, and say what won and how to train it."""
    from pipeline.tune.search import run_search
    from pipeline.tune.table import trial_table

    result = run_search(options)
    if options.dry_run:
        return
    print(f"\n{trial_table(result)}\n\n{result.summary()}")
    if result.best is not None:
        best = result.best
        print(f"best: {best.candidate.name}, {result.metric} {best.value:.5g} ({best.candidate.label})")
        print(f"pretrain it with:\n  {result.command}")
    print(f"report: {redact(str(result.report))}")


main = verb("tune", TuneOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
