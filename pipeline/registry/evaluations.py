"""The evaluations that exist for a model's weights, read from the reports below the storage folder."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.evaluate.report import RESAMPLES
from pipeline.evaluate.resampling import Estimate, with_resamples
from pipeline.storage import exists, join, list_files, read_bytes

EVALUATIONS_TAG = "hip.evaluations"  # of a model version: what was measured with its weights, as JSON
_LOWER_IS_BETTER = ("loss", "error", "rank")


@dataclass(frozen=True)
class Evaluation:
    """One task's metrics on one dataset."""

    task: str
    dataset: str  # fingerprint of the data
    metrics: dict[str, Estimate]
    report: str = ""  # name of the report's folder below <storage>/evaluations

    @property
    def key(self) -> str:
        """Evaluations with equal keys may be compared."""
        return f"{self.task}@{self.dataset}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON (a tag of a model version)."""
        return {
            "task": self.task,
            "dataset": self.dataset,
            "metrics": {name: estimate.to_dict() for name, estimate in self.metrics.items()},
            "report": self.report,
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """Read what ``to_dict`` gave.

        Raises:
            UserError: it is not an evaluation.
        """
        try:
            metrics = {str(name): Estimate(**estimate) for name, estimate in values["metrics"].items()}
            return cls(str(values["task"]), str(values["dataset"]), metrics, str(values.get("report", "")))
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"a recorded evaluation is damaged ({error!r}); evaluate and register again") from error


def higher_is_better(metric: str) -> bool:
    """Whether more of a metric is an improvement (scores and PSNR) or a loss (errors and ranks)."""
    return not any(word in metric for word in _LOWER_IS_BETTER)


def find_evaluations(storage: str, weights: str) -> list[Evaluation]:
    """The newest evaluation of each task and dataset for the weights with this digest."""
    root = join(storage, "evaluations")
    if not exists(root):
        return []
    reports = [info for info in list_files(root, recursive=True) if info.base_name == "report.json"]
    found = {}
    for info in sorted(reports, key=lambda info: info.mtime.timestamp() if info.mtime else 0.0):
        folder = info.path.rsplit("/", 2)[-2]
        evaluation = _read(root, folder, weights)
        if evaluation is not None:
            found[evaluation.key] = evaluation
    return list(found.values())


def metrics_with_resamples(evaluation: Evaluation, storage: str) -> dict[str, Estimate]:
    """Its metrics, with the resamples that lie beside the report if that is still there."""
    place = join(storage, "evaluations", evaluation.report, RESAMPLES)
    if not evaluation.report or not exists(place):
        return evaluation.metrics
    try:
        return with_resamples(evaluation.metrics, read_bytes(place))
    except (ValueError, KeyError, OSError, zipfile.BadZipFile):  # damaged: what is missing only widens the margin
        return evaluation.metrics


def _read(root: str, folder: str, weights: str) -> Evaluation | None:
    try:
        report = json.loads(read_bytes(join(root, folder, "report.json")))
        subject = report["subject"]
        if subject.get("weights") != weights:
            return None
        dataset = subject.get("fingerprint", subject.get("shards", ""))
        return Evaluation.from_dict({**report, "dataset": dataset, "report": folder})
    except (UserError, ValueError, KeyError, AttributeError, TypeError):
        return None  # another release's report, or one being written
