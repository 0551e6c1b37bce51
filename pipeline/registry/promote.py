"""Move an alias to a better version, or back to the one before."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hip_model.export import load_metadata
from pipeline.errors import DataError, UserError
from pipeline.evaluate.resampling import Estimate
from pipeline.registry.client import connect, version_by_reference
from pipeline.registry.evaluations import EVALUATIONS_TAG, Evaluation, metrics_with_resamples
from pipeline.registry.gate import Decision, decide
from pipeline.registry.options import PromoteOptions
from pipeline.registry.resolve import resolve_registered
from pipeline.storage import redact

logger = logging.getLogger(__name__)

DECISION_TAG = "hip.promotion"
PREVIOUS_TAG = "hip.previous_version"


class PromotionRefusedError(DataError):
    """The candidate is not better; the alias stays where it is."""


@dataclass(frozen=True)
class Promotion:
    """Where an alias points now."""

    name: str
    alias: str
    version: str
    previous: str | None
    decision: Decision | None  # none: there was nothing to compare with, or a roll-back


def promote(options: PromoteOptions) -> Promotion:
    """Compare the candidate with the version in use and move the alias if the gate holds.

    The decision and its figures are written on the candidate's version either way.

    Raises:
        PromotionRefusedError: the candidate is not better by more than the interval, or worse somewhere.
        UserError: no such model, alias or evaluation.
    """
    client = connect(options.tracking, options.storage).client
    if options.rollback:
        return _roll_back(client, options)
    candidate = version_by_reference(client, options.name, options.candidate)
    aliases = client.get_registered_model(options.name).aliases
    if options.alias not in aliases:
        return _move(client, options, candidate, None, None)
    champion = client.get_model_version(options.name, aliases[options.alias])
    if str(champion.version) == str(candidate.version):
        raise UserError(f"version {champion.version} of {options.name} already is {options.alias}; register a new one")
    mine, theirs = _evaluations(options, candidate, champion)
    decision = decide(mine, theirs, options.gate)
    measured = "recorded at registration" if options.shards is None else f"{options.task} on {redact(options.shards)}"
    _write_decision(
        client,
        candidate,
        {**decision.to_dict(), "against_version": str(champion.version), "measured": measured},
    )
    if not decision.promote:
        raise PromotionRefusedError(
            f"version {candidate.version} of {options.name} does not replace version {champion.version}: "
            f"{decision.reason}"
        )
    return _move(client, options, candidate, str(champion.version), decision)


def _move(
    client: Any, options: PromoteOptions, version: Any, previous: str | None, decision: Decision | None
) -> Promotion:
    if previous is not None:
        client.set_model_version_tag(options.name, version.version, PREVIOUS_TAG, previous)
    elif decision is None:
        _write_decision(client, version, {"promote": True, "reason": f"nothing was {options.alias} before"})
    client.set_registered_model_alias(options.name, options.alias, version.version)
    return Promotion(options.name, options.alias, str(version.version), previous, decision)


def _roll_back(client: Any, options: PromoteOptions) -> Promotion:
    current = version_by_reference(client, options.name, options.alias)
    previous = current.tags.get(PREVIOUS_TAG)
    if previous is None:
        raise UserError(f"version {current.version} of {options.name} replaced nothing as {options.alias}; no way back")
    version = version_by_reference(client, options.name, previous)
    _write_decision(client, current, {"promote": False, "reason": f"rolled back to version {previous}"})
    client.set_registered_model_alias(options.name, options.alias, version.version)
    return Promotion(options.name, options.alias, str(version.version), str(current.version), None)


def _write_decision(client: Any, version: Any, decision: dict[str, Any]) -> None:
    client.set_model_version_tag(version.name, version.version, DECISION_TAG, json.dumps(decision))


def _evaluations(
    options: PromoteOptions, candidate: Any, champion: Any
) -> tuple[dict[str, Estimate], dict[str, Estimate]]:
    """Metrics of both versions on the same data: measured now, or those recorded when they were registered."""
    if options.shards is not None:
        return _measure(options, candidate), _measure(options, champion)
    recorded = [_recorded(version) for version in (candidate, champion)]
    shared = [key for key in recorded[0] if key in recorded[1]]
    if not shared:
        raise UserError(
            f"versions {candidate.version} and {champion.version} of {options.name} were not evaluated with the same "
            "task on the same data before they were registered; give shards=<dataset> to evaluate both now"
        )
    mine, theirs = ({key: evaluations[key] for key in shared} for evaluations in recorded)
    return _by_task(mine, options.storage), _by_task(theirs, options.storage)


def _by_task(evaluations: dict[str, Evaluation], storage: str) -> dict[str, Estimate]:
    return {
        f"{e.task}.{name}": entry
        for e in evaluations.values()
        for name, entry in metrics_with_resamples(e, storage).items()
    }


def _recorded(version: Any) -> dict[str, Evaluation]:
    found = [Evaluation.from_dict(entry) for entry in json.loads(version.tags.get(EVALUATIONS_TAG, "[]"))]
    return {evaluation.key: evaluation for evaluation in found}


def _measure(options: PromoteOptions, version: Any) -> dict[str, Estimate]:
    from pipeline.evaluate.options import EvaluateOptions
    from pipeline.evaluate.runner import evaluate

    assert options.shards is not None
    folder: Path = resolve_registered(f"models:/{version.name}/{version.version}", options.storage, options.tracking)
    logger.info("evaluating version %s on %s", version.version, redact(options.shards))
    known = {spec["name"] for spec in load_metadata(folder)["data"]["modalities"]}
    report = evaluate(
        EvaluateOptions(
            shards=options.shards,
            model=str(folder),
            task=options.task,
            absent=tuple(name for name in options.absent if name in known),
            storage=options.storage,
            tracking=options.tracking,
        )
    )
    return dict(report.metrics)
