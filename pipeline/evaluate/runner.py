"""One evaluation from options to report: open, compute, draw, write, track."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, replace
from typing import Any

from pipeline import storage
from pipeline.evaluate.checks import check_task
from pipeline.evaluate.export import check_export, export_model
from pipeline.evaluate.head import Head
from pipeline.evaluate.options import EvaluateOptions
from pipeline.evaluate.report import EvaluationReport, Findings, write_report
from pipeline.evaluate.session import Session, open_session
from pipeline.host_memory import keep_freed_memory
from pipeline.tracking.runs import open_run

logger = logging.getLogger(__name__)


def evaluate(options: EvaluateOptions, parent_run_id: str | None = None) -> EvaluationReport:
    """Run one task and write its report.

    ``options.model`` is a local model folder; names of runs and registered models are resolved by the caller.

    Raises:
        UserError: a model, dataset or option that does not fit; the message names the difference.
        DataError: damaged shards.
    """
    if options.threads > 0:
        import torch

        torch.set_num_threads(options.threads)
    keep_freed_memory()
    folder = options.output or storage.join(options.storage, "evaluations", _folder_name(options))
    session = open_session(options, folder)
    check_task(session)
    if options.export is not None:
        check_export(options.export, session.loaded)
    subject = describe(session)
    key = f"evaluate:{folder}"
    name = f"{options.task}-{session.loaded.name}"
    tags = {"hip.kind": "evaluation", "hip.task": options.task, "hip.data_fingerprint": session.manifest.fingerprint}
    with open_run(options.tracking, options.storage, name, key, asdict(options), tags, parent_run_id) as tracker:
        findings, head = run_task(session)
        export = None
        if options.export is not None and head is not None:
            export = export_model(options.export, session.loaded, head)
        report = write_report(folder, options.task, subject, findings, export)
        for suffix, pick in (("", "value"), ("_low", "low"), ("_high", "high")):
            tracker.log_metrics({f"{n}{suffix}": getattr(e, pick) for n, e in findings.metrics.items()}, 0)
        if storage.is_local(folder):
            for path in (report.html_path, report.json_path):
                tracker.log_artifact(storage.local_path(path), "evaluation")
        return replace(report, tracking_run_id=tracker.run_id)


def run_task(session: Session) -> tuple[Findings, Head | None]:
    """Dispatch on ``task``; each task's module is imported only when it is asked for."""
    task = session.options.task
    if task == "linear_probe":
        if session.options.probe.kind == "attentive":
            from pipeline.evaluate.attentive import attentive_probe

            return attentive_probe(session), None
        from pipeline.evaluate.classify import linear_probe

        return linear_probe(session)
    if task in ("classification", "multilabel"):
        from pipeline.evaluate.classify import own_head

        return own_head(session), None
    if task == "knn":
        from pipeline.evaluate.classify import neighbours

        return neighbours(session), None
    if task == "retrieval":
        from pipeline.evaluate.retrieval import retrieval

        return retrieval(session), None
    if task == "segmentation":
        from pipeline.evaluate.segmentation import segmentation

        return segmentation(session), None
    from pipeline.evaluate.reconstruct import reconstruction

    return reconstruction(session), None


def describe(session: Session) -> dict[str, Any]:
    """What was evaluated on what, for the report."""
    options, loaded = session.options, session.loaded
    return {
        "model": loaded.name,
        "architecture": str(json.loads((loaded.folder / "config.json").read_text())["name"]),
        "parameters": sum(parameter.numel() for parameter in loaded.model.parameters()),
        "weights": session.weights,
        "data": storage.redact(options.shards),
        "fingerprint": session.manifest.fingerprint,
        "split": options.split,
        "examples": session.count(options.split),
        "modalities": ", ".join(f"{m.name} {m.num_tokens}×{m.num_channels}" for m in loaded.model.modalities),
        "seed": options.seed,
    }


def _folder_name(options: EvaluateOptions) -> str:
    """Evaluations that differ in anything that changes numbers do not share a folder."""
    parts = {**asdict(options), "output": None, "storage": None, "tracking": None, "embed": None, "threads": None}
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]
    return f"{options.task}-{digest}"
