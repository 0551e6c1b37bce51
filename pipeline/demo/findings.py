"""The figures of a finished demonstration, read from what the verbs left on disk and in MLflow."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from pipeline.demo.stages import MODEL_NAME, RUN_NAME, SEARCH_NAME
from pipeline.shards.manifest import Manifest
from pipeline.tracking.history import metric_history
from pipeline.tracking.options import TrackingOptions


@dataclass(frozen=True)
class DemoFindings:
    """One sentence a stage, and what the page draws."""

    sentences: dict[str, str]
    loss: list[tuple[int, float]]
    pictures: list[Path]
    trials: list[tuple[Any, ...]]
    predictions: list[tuple[str, str, str]] = field(default_factory=list)  # file, true class, predicted class


def gather(folder: Path) -> DemoFindings:
    """Read the results below a demonstration's folder; a stage that did not run is left out."""
    runs = folder / "runs"
    manifest = Manifest.load(str(folder / "tokens"))
    outcome = json.loads((runs / RUN_NAME / "outcome.json").read_text())
    search = json.loads((runs / SEARCH_NAME / "report.json").read_text())
    loss = _loss(runs)
    reconstruction, probe = _evaluation(runs, "reconstruction"), _evaluation(runs, "linear_probe")
    predictions = _predictions(folder / "predictions" / "labels.csv", manifest.label_names)
    sentences = {
        "preprocess": _preprocess_sentence(manifest),
        "pretrain": _pretrain_sentence(loss, outcome),
        "tune": _tune_sentence(search),
        "evaluate reconstruction": _reconstruction_sentence(reconstruction),
        "evaluate linear_probe": _probe_sentence(probe) if probe else "",
        "register": f"models:/{MODEL_NAME}@candidate",
        "predict": _prediction_sentence(predictions),
    }
    pictures = [path for path in _pictures(reconstruction, probe) if path.is_file()]
    pictures += sorted((runs / SEARCH_NAME / "figures").glob("c*.png"))
    trials = [(t["name"], t["status"], t["value"], t["step"]) for t in _named(search["trials"])]
    return DemoFindings(sentences, loss, pictures, trials, predictions)


def _loss(runs: Path) -> list[tuple[int, float]]:
    record = json.loads((runs / RUN_NAME / "run.json").read_text())
    run_id = record.get("tracking_run_id")
    return metric_history(TrackingOptions(), str(runs), run_id, "loss") if run_id else []


def _evaluation(runs: Path, task: str) -> dict[str, Any]:
    reports = sorted(runs.glob(f"evaluations/{task}-*/report.json"), key=lambda path: path.stat().st_mtime)
    return dict(json.loads(reports[-1].read_text())) if reports else {}


def _pictures(*reports: dict[str, Any]) -> list[Path]:
    wanted = ("reconstruction_", "positions_video", "positions_image", "confusion")
    figures = [(name, path) for report in reports for name, path in report.get("figures", {}).items()]
    return [Path(path) for name, path in figures if name.startswith(wanted)]


def _named(trials: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**trial, "name": f"trial_{trial['index']:03d}"} for trial in trials]


def _predictions(path: Path, label_names: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """The class of a file is the name of its folder, where that is a class."""
    if not path.is_file():
        return []
    with path.open(newline="") as stream:
        rows = [(PurePath(row["source"]), row["label_1"]) for row in csv.DictReader(stream)]
    return [(source.name, source.parent.name, label) for source, label in rows if source.parent.name in label_names]


def _preprocess_sentence(manifest: Manifest) -> str:
    files = manifest.lineage.get("files", {})
    bad = sum(files.get("quarantined", {}).values())
    quarantined = f", {bad} files in quarantine" if bad else ""
    return f"{manifest.num_examples():,} examples in {len(manifest.shards)} shards{quarantined}"


def _pretrain_sentence(loss: list[tuple[int, float]], outcome: dict[str, Any]) -> str:
    if not loss:
        return f"{outcome['step']} steps"
    return f"loss {loss[0][1]:.3f} -> {loss[-1][1]:.3f} in {outcome['step']} steps, 2 workers, ZeRO-1"


def _tune_sentence(search: dict[str, Any]) -> str:
    values = [trial["value"] for trial in search["trials"] if trial["value"] is not None]
    stopped = sum(trial["status"] == "stopped_early" for trial in search["trials"])
    best = f", best loss {min(values):.3f} ({search['best']})" if values else ""
    return f"{len(search['trials'])} trials, {stopped} stopped early{best}"


def _reconstruction_sentence(report: dict[str, Any]) -> str:
    psnr = [(name.split("/")[1], entry["value"]) for name, entry in report["metrics"].items() if name[:4] == "psnr"]
    return "reconstruction of masked tokens: " + ", ".join(f"{name} {value:.1f} dB" for name, value in psnr)


def _probe_sentence(report: dict[str, Any]) -> str:
    top1, chance = report["metrics"]["top1"], report["metrics"]["chance_top1"]["value"]
    value = f"top-1 {top1['value']:.2f} [{top1['low']:.2f}, {top1['high']:.2f}]"
    return f"linear probe: {value} on {top1['count']} held-out files, chance {chance:.2f}"


def _prediction_sentence(predictions: list[tuple[str, str, str]]) -> str:
    if not predictions:
        return "embeddings in predictions/"
    right = sum(true == predicted for _, true, predicted in predictions)
    return f"{right} of {len(predictions)} files that training never saw got the right class"
