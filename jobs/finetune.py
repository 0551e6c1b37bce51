"""``hip finetune``: supervised training from a pretrained model or from scratch."""

from __future__ import annotations

from jobs.cli import verb
from jobs.initial_model import with_init_found
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.storage import redact


def run(options: FinetuneOptions) -> None:
    """Resolve what to start from, train, and print the numbers and where the model is.

    Raises:
        HipError: as the parts raise it.
    """
    from pipeline.evaluate.finetune import finetune

    result = finetune(with_init_found(options))
    for name, estimate in result.metrics.items():
        print(f"{name:40s} {estimate}")
    print(f"model with its head: {redact(result.checkpoint)}")
    if result.report is not None:
        print(f"report: {redact(result.report.html_path)}")


main = verb("finetune", FinetuneOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
