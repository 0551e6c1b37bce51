"""``hip predict``: raw media to embeddings, labels or reconstructions."""

from __future__ import annotations

from jobs.cli import verb
from pipeline.registry.options import PredictOptions
from pipeline.storage import redact

_LINES_SHOWN = 20


def run(options: PredictOptions) -> None:
    """Predict and print what was written.

    Raises:
        HipError: as the parts raise it.
    """
    from pipeline.registry.predict import predict

    report = predict(options)
    for source, _, *ranked in report.labels[:_LINES_SHOWN]:
        pairs = zip(ranked[::2], ranked[1::2], strict=True)
        print(f"{source}: " + ", ".join(f"{label} {score}" for label, score in pairs))
    print(f"{report.files} files, {report.windows} windows, {len(report.failed)} files skipped")
    for path in report.outputs[:_LINES_SHOWN]:
        print(redact(path))
    if len(report.outputs) > _LINES_SHOWN:
        print(f"and {len(report.outputs) - _LINES_SHOWN} more in {redact(options.output)}")


main = verb("predict", PredictOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
