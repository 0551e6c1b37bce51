"""``hip tune`` from the outside: check the space, run the trials with Ray Tune, go on where it was cut off, report."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hip_model.accounting import count_parameters
from hip_model.variants import model_config
from pipeline.errors import Interrupted, UserError
from pipeline.evaluate.figures import Picture
from pipeline.folder_lock import folder_lock
from pipeline.ray_session import ray_session
from pipeline.storage import join, redact
from pipeline.train.build import with_absolute_places
from pipeline.train.checks import check_options
from pipeline.train.modalities import manifest_as_read
from pipeline.tune.candidates import Candidate, plain_pretrain_options
from pipeline.tune.command import pretrain_command
from pipeline.tune.memory import tells_of_memory
from pipeline.tune.options import TuneOptions
from pipeline.tune.prepared import PreparedSearch, example_tokens, prepare
from pipeline.tune.report import write_search_report
from pipeline.tune.results import (
    FAILED,
    FINISHED,
    OUT_OF_MEMORY,
    REJECTED,
    STOPPED,
    UNFINISHED,
    SearchResult,
    TrialResult,
    best_trial,
)
from pipeline.tune.scaling import fit_power_law, points_of, scaling_picture
from pipeline.tune.tracked import close_parent, label_trials, open_parent

if TYPE_CHECKING:
    from ray.tune import Result, ResultGrid

logger = logging.getLogger(__name__)


def run_search(options: TuneOptions) -> SearchResult:
    """Search, or go on with the search of the same name.

    Raises:
        UserError: a space, budget or metric that cannot work, another search of this name, or one that is under way.
        Interrupted: stopped on request; the same command goes on.
        InfrastructureError: Ray or the storage failed.
    """
    options = with_absolute_places(options)
    check_options(plain_pretrain_options(options))
    prepared = prepare(options, manifest_as_read(options))
    search = options.search
    if options.dry_run:
        print(prepared.preview())
        return SearchResult(prepared.name, prepared.folder, search.metric, search.mode, ())
    prepared.check_reachable()  # before anything is written: an impossible budget claims no name
    what = f"search {prepared.name} in {redact(prepared.folder)} is under way in another process"
    with folder_lock(prepared.folder, ".search.lock", what, "wait for it, stop it, or choose another search.name"):
        return _search_to_the_end(options, prepared)


def _search_to_the_end(options: TuneOptions, prepared: PreparedSearch) -> SearchResult:
    """The search itself, which no other process drives meanwhile."""
    prepared.claim()
    search = options.search
    tracker = open_parent(options, prepared.name, prepared.folder, prepared.description)
    status, result = "FAILED", SearchResult(prepared.name, prepared.folder, search.metric, search.mode, ())
    try:
        result = replace(result, tracking_run_id=tracker.run_id)
        result, target = _run_trials(prepared, result)
        result = _with_report(prepared, target, result)
        status = "KILLED" if not result.is_complete else "FINISHED" if result.best else "FAILED"
    finally:
        label_trials(
            options, result.tracking_run_id, result.trials, result.best.candidate.name if result.best else None
        )
        close_parent(tracker, result, status)
    _raise_if_useless(result)
    return result


def _run_trials(prepared: PreparedSearch, result: SearchResult) -> tuple[SearchResult, float | None]:
    """The search with the results of all candidates, and the cost they were solved to."""
    with ray_session(prepared.options.ray):
        from pipeline.tune.driver import drive
        from pipeline.tune.searcher import CandidateLog
        from pipeline.tune.timing import compare_on_a_worker

        factory = prepared.factory(compare_on_a_worker)
        grid = drive(prepared, factory, result.tracking_run_id)
        log = CandidateLog(prepared.folder)
        left = 0 if log.is_used_up else max(0, prepared.options.search.trials - len(log.accepted))
        return replace(result, trials=tuple(collect(prepared, grid, log.candidates)), left=left), factory.target


def collect(prepared: PreparedSearch, grid: ResultGrid, candidates: list[Candidate]) -> list[TrialResult]:
    """One result for every candidate, in the order in which they were drawn."""
    by_name = {str(found.path).rstrip("/").rpartition("/")[2]: found for found in grid}
    return [_trial_result(prepared, candidate, by_name.get(candidate.name)) for candidate in candidates]


def _trial_result(prepared: PreparedSearch, candidate: Candidate, found: Result | None) -> TrialResult:
    if candidate.rejected is not None:
        return TrialResult(candidate, REJECTED, reason=candidate.rejected)
    folder = join(prepared.folder, "trials", candidate.name)
    metrics: dict[str, Any] = (found.metrics or {}) if found is not None else {}
    numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, (int, float))}
    value, step = numbers.get(prepared.options.search.metric, math.nan), int(numbers.get("step", 0))
    status, reason = _status(prepared, candidate, found, step)
    curve = _curve(found, prepared.options.search.metric)
    seconds = numbers.get("seconds", 0.0)
    return TrialResult(candidate, status, value, step, seconds, reason, folder, curve, numbers)


def _status(prepared: PreparedSearch, candidate: Candidate, found: Result | None, step: int) -> tuple[str, str]:
    if found is None:
        return UNFINISHED, "it had not started when the search was stopped"
    if found.error is not None:
        lines = [line for line in str(found.error).splitlines() if line.strip()]
        reason = lines[-1].strip()[:500] if lines else type(found.error).__name__
        return OUT_OF_MEMORY if tells_of_memory(str(found.error)) else FAILED, reason
    metrics = found.metrics or {}
    told = metrics.get("status", "")
    if told not in ("", "training", FINISHED):
        return str(told), str(metrics.get("reason", ""))
    if told == FINISHED or step >= prepared.total_steps(candidate):
        return FINISHED, ""
    if metrics.get("done"):
        return STOPPED, f"stopped by the scheduler at step {step}"
    return UNFINISHED, f"it was at step {step} when the search was stopped"


def _curve(found: Result | None, metric: str) -> tuple[tuple[int, float], ...]:
    frame = found.metrics_dataframe if found is not None else None
    if frame is None or metric not in frame or "step" not in frame:
        return ()
    # A resumed trial reports some steps again; the later report counts.
    last = frame[["step", metric]].dropna().drop_duplicates("step", keep="last").sort_values("step")
    return tuple((int(step), float(value)) for step, value in last.itertuples(index=False) if math.isfinite(value))


def _with_report(prepared: PreparedSearch, target: float | None, result: SearchResult) -> SearchResult:
    best = best_trial(result.trials, result.mode)
    command = pretrain_command(prepared.options, best) if best is not None else None
    result = replace(result, command=command)
    notes, pictures = _scaling(prepared, result.trials)
    page = write_search_report(prepared.options, result, target, notes, pictures)
    return replace(result, report=page)


def _scaling(prepared: PreparedSearch, trials: Sequence[TrialResult]) -> tuple[list[str], list[Picture]]:
    """A power law, where the search varied both size and length."""
    if not any(key.startswith("duration.") for key in prepared.space.domains):
        return [], []
    tokens = example_tokens(prepared.modalities)
    points = points_of(trials, tokens * prepared.options.batch.global_size)
    law = fit_power_law(points, prepared.options.seed)
    if law is None:
        return [f"No scaling law: {len(points)} finished trials are too few or vary too little."], []
    notes = [law.sentence()]
    parameters = count_parameters(model_config("hip_256"), prepared.modalities)
    longest = max(point.tokens for point in points)
    for factor in (1, 10, 100):
        expected, low, high = law.predict(parameters, factor * longest)
        notes.append(
            f"HiP-256 ({parameters / 1e6:.1f} M parameters) after {factor * longest:.3g} tokens: "
            f"loss {expected:.4g} (90 %: {low:.4g} to {high:.4g}). An extrapolation."
        )
    return notes, [scaling_picture(points, law, prepared.options.search.metric)]


def _raise_if_useless(result: SearchResult) -> None:
    """Say what is wrong when no trial can be compared, and that there is more to do when it was interrupted."""
    if not result.is_complete:
        raise Interrupted(f"search {result.name} was stopped ({result.summary()}); the same command goes on with it")
    if result.best is not None:
        return
    ended = [trial for trial in result.trials if trial.status != REJECTED]
    if not ended:
        reasons = {trial.reason for trial in result.trials}
        raise UserError(f"every candidate of search {result.name} was rejected: {'; '.join(sorted(reasons)[:3])}")
    raise UserError(f"no trial of search {result.name} could be trained: {ended[0].reason}")
