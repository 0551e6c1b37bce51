"""What trials can be judged by, known before one is trained."""

from __future__ import annotations

import logging
from dataclasses import replace

from pipeline.errors import UserError, nearest
from pipeline.shards.manifest import Manifest
from pipeline.train.build import VALIDATION
from pipeline.tune.options import TuneOptions
from pipeline.tune.space import Space

logger = logging.getLogger(__name__)

# What training measures of itself at every interval, whatever the data.
_OF_EVERY_RUN = (
    "loss", "learning_rate", "gradient_norm", "update_ratio", "examples", "examples_per_second", "tokens_per_second",
    "flop_utilisation", "data_wait_share", "seconds_per_step", "seconds_to_finish", "memory_gib", "rollbacks",
    "non_finite_loss", "skipped_steps", "loss_spikes",
)  # fmt: skip


def reported_metrics(options: TuneOptions, manifest: Manifest) -> list[str]:
    """The names of the metrics that trials report."""
    of_data = [f"{kind}/{spec.name}" for kind in ("loss", "psnr_db") for spec in manifest.modalities]
    validates = options.validation.every_steps > 0 and manifest.splits.get(VALIDATION, 0) > 0
    of_validation = [f"validation/{name}" for name in ("loss", *of_data)] if validates else []
    return [*_OF_EVERY_RUN, *of_data, *of_validation]


def judged_alike(options: TuneOptions, space: Space) -> TuneOptions:
    """The same search, in which candidates that are masked differently are validated under one mask, the command's.

    Nothing is augmented there.
    What remains unlike is said: an easier task has a lower loss.
    """
    unlike = [key for key in space.domains if key.partition(".")[0] in ("mask", "loss", "augment")]
    in_training_only = [key for key in unlike if not key.startswith("loss.")]
    if any(key.startswith("mask.") for key in unlike) and options.validation.mask is None:
        options = replace(options, validation=replace(options.validation, mask=options.mask))
    metric = options.search.metric
    if metric.startswith("validation/"):
        unlike = [key for key in unlike if key not in in_training_only]
    if unlike and metric.removeprefix("validation/").partition("/")[0] in ("loss", "psnr_db"):
        judges_alike = "search.metric=validation/loss judges all alike"
        way_out = judges_alike if in_training_only else "compare them by hip evaluate"
        what = f"candidates differ in {', '.join(unlike)}, which changes what search.metric={metric} measures"
        logger.warning("%s: an easier task has a lower loss; %s", what, way_out)
    return options


def check_metric(options: TuneOptions, manifest: Manifest) -> None:
    """Refuse a metric that no trial will report, before hours are spent.

    Raises:
        UserError: naming the nearest metric, or what would make trials report this one.
    """
    metric, known = options.search.metric, reported_metrics(options, manifest)
    if metric in known:
        return
    if metric.startswith("validation/") and not manifest.splits.get(VALIDATION, 0):
        raise UserError(
            f"search.metric={metric}, but {options.shards} has no validation split; "
            "use search.metric=loss, or preprocess with validation_fraction=0.1"
        )
    if metric.startswith("validation/") and not options.validation.every_steps:
        raise UserError(f"search.metric={metric} needs validation.every_steps > 0, such as validation.every_steps=50")
    raise UserError(f"search.metric={metric}: no trial reports it; {nearest(metric, known)}")
