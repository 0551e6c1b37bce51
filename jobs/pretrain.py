"""``hip pretrain``: masked-autoencoder pretraining on token shards."""

from __future__ import annotations

from jobs.cli import verb
from jobs.initial_model import with_init_found
from pipeline.storage import redact
from pipeline.train.options import PretrainOptions
from pipeline.train.runner import run_pretraining


def run(options: PretrainOptions) -> None:
    """Resolve what to start from, train, and say where the result is."""
    result = run_pretraining(with_init_found(options))
    if options.dry_run:
        return
    loss = result.metrics.get("loss")
    shown = "" if loss is None else f", loss {loss:.4f}"
    print(f"{result.run_name}: {result.examples_consumed:,} examples{shown}")
    print(f"checkpoint: {redact(str(result.checkpoint))}")
    if result.tracking_run_id:
        print(f"tracked as {result.tracking_run_id}")


main = verb("pretrain", PretrainOptions, run)

if __name__ == "__main__":
    raise SystemExit(main())
