"""``hip combine``: several token datasets as one."""

from __future__ import annotations

from jobs.cli import verb
from pipeline.preprocess.combine import CombineOptions, run_combine
from pipeline.storage import redact


def run(options: CombineOptions) -> None:
    """Combine and print what came of it."""
    manifest = run_combine(options)
    splits = ", ".join(f"{rows:,} {split}" for split, rows in sorted(manifest.splits.items()))
    names = ", ".join(spec.name for spec in manifest.modalities)
    print(f"{redact(options.shards)}: {manifest.num_examples():,} examples ({splits}) of {names}")
    for member in manifest.members:
        share = "" if member.share is None else f", {member.share:.3g} of what training draws"
        print(f"  {redact(member.uri)}: {member.manifest.num_examples():,} examples{share}")
    print(f"fingerprint {manifest.fingerprint}")


main = verb("combine", CombineOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
