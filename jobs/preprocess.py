"""``hip preprocess``: raw media to token shards."""

from __future__ import annotations

from jobs.cli import verb
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.run import PreprocessReport, run_preprocess
from pipeline.storage import redact


def run(options: PreprocessOptions) -> None:
    """Preprocess and print what came of it."""
    print(summary(run_preprocess(options), options.shards))


def summary(report: PreprocessReport, shards: str) -> str:
    """The closing lines of a run."""
    counts, manifest = report.counts, report.manifest
    splits = ", ".join(f"{rows:,} {split}" for split, rows in sorted(manifest.splits.items()))
    size = sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{redact(shards)}: {counts['examples']:,} examples ({splits}) in {len(manifest.shards)} shards, "
        f"{size / 1e6:,.1f} MB",
        f"{counts['files']:,} files: {counts['done']:,} used, {counts['failed']:,} failed, "
        f"{counts['skipped']:,} skipped, {counts['duplicates']:,} duplicates",
        f"fingerprint {manifest.fingerprint}",
    ]
    if report.quarantined:
        reasons = ", ".join(f"{count} {reason}" for reason, count in report.quarantined.items())
        lines.append(f"quarantine.parquet: {reasons}")
    done = f"{report.tasks_run} shard tasks in {report.seconds:.1f} s" if report.tasks_run else "nothing was left to do"
    return "\n".join([*lines, done])


main = verb("preprocess", PreprocessOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
