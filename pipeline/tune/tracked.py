"""The search in MLflow: a parent run with the space and the outcome, and true labels on the trials' nested runs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from pipeline.tracking.client import Tracker
from pipeline.tracking.options import resolve_uri
from pipeline.tracking.runs import open_run
from pipeline.tracking.server import Server
from pipeline.tune.candidates import Candidate
from pipeline.tune.options import TuneOptions
from pipeline.tune.results import FAILED, FINISHED, OUT_OF_MEMORY, STOPPED, UNFINISHED, SearchResult, TrialResult

logger = logging.getLogger(__name__)

_STATUS = {FINISHED: "FINISHED", STOPPED: "FINISHED", OUT_OF_MEMORY: "FAILED", FAILED: "FAILED", UNFINISHED: "KILLED"}


def open_parent(options: TuneOptions, name: str, key: str, description: dict[str, Any]) -> Tracker:
    """The parent run of a search; the same one when the search goes on."""
    tags = {"hip.kind": "search", "hip.search": name, "hip.trials_planned": options.search.trials}
    return open_run(options.tracking, options.storage, name, key=f"search:{key}", params=description, tags=tags)


def close_parent(tracker: Tracker, result: SearchResult, status: str) -> None:
    """Write the outcome on the parent and end it."""
    counts = {f"trials/{kind}": float(sum(t.status == kind for t in result.trials)) for kind in _STATUS}
    tracker.log_metrics({"trials": float(len(result.trials)), **counts}, step=0)
    if result.best is not None:
        best = result.best
        tracker.log_metrics({f"best/{result.metric}": best.value}, step=0)
        tracker.set_tags({"hip.best_trial": best.candidate.name, "hip.best_settings": best.candidate.label})
    if result.report is not None and "://" not in result.folder:
        for name in ("report.html", "trials.csv", "report.json"):
            tracker.log_artifact(f"{result.folder}/{name}")
    tracker.finish(status)


def label_trials(
    options: TuneOptions, parent_run_id: str | None, trials: Sequence[TrialResult], best: str | None
) -> None:
    """Tag every nested run with what became of its trial, and end those whose process could not.

    A tracking server that is away costs the labels, never the search.
    """
    if parent_run_id is None or not options.tracking.enabled:
        return
    try:
        server = Server(resolve_uri(options.tracking, options.storage), options.tracking.experiment, options.storage)
        query = f"tags.`mlflow.parentRunId` = '{parent_run_id}'"
        runs = {
            run.info.run_name: run for run in server.client.search_runs([server.experiment_id], query, max_results=5000)
        }
        for trial in trials:
            run = runs.get(trial.candidate.name)
            if run is not None:
                _label(server.client, run, trial, trial.candidate.name == best)
    except Exception as error:  # whatever MLflow raises while it is away
        logger.warning("trials could not be labelled in the tracking server: %s", error)


def _label(client: Any, run: Any, trial: TrialResult, is_best: bool) -> None:
    tags = {"hip.trial.status": trial.status, "hip.best": str(is_best).lower(), **_settings(trial.candidate)}
    for key, value in tags.items():
        client.set_tag(run.info.run_id, key, value)
    # A trial cannot tell an interrupted search from a scheduler that has seen enough, and may be killed as it closes.
    true_status = _STATUS.get(trial.status, "FAILED")
    if run.info.status != true_status:
        client.set_terminated(run.info.run_id, true_status)


def _settings(candidate: Candidate) -> dict[str, str]:
    return {f"hip.search.{key}": str(value)[:500] for key, value in candidate.settings.items()}
