"""``hip evaluate``: one task on one model, with a report."""

from __future__ import annotations

from dataclasses import replace

from jobs.cli import verb
from pipeline.evaluate.options import EvaluateOptions
from pipeline.storage import redact


def run(options: EvaluateOptions) -> None:
    """Resolve the model's name, evaluate, and print the numbers and where the report is.

    Raises:
        HipError: as the parts raise it.
    """
    from pipeline.evaluate.runner import evaluate
    from pipeline.registry.resolve import resolve_model

    folder = resolve_model(options.model, options.storage, options.tracking)
    report = evaluate(replace(options, model=str(folder)))
    for name, estimate in report.metrics.items():
        print(f"{name:40s} {estimate}")
    print(f"report: {redact(report.html_path)}")
    if report.export:
        print(f"model with its head: {report.export}")


main = verb("evaluate", EvaluateOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
