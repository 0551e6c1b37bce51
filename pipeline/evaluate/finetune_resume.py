"""Same name, same run: whether a fine-tuning run may be continued, and how its place is found again."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict
from typing import Any

from pipeline import storage
from pipeline.errors import UserError
from pipeline.evaluate.baseline import Baseline, open_baseline
from pipeline.evaluate.finetune_loop import FinetuneRun, measure_scale
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.head import load_head
from pipeline.evaluate.transfer import Start
from pipeline.shards.manifest import Manifest
from pipeline.train.checkpoint import NamedStates, latest_checkpoint, read_state, same_everywhere
from pipeline.train.differences import differences, digest_of_chosen, flatten
from pipeline.train.plan import code_version
from pipeline.train.resume import RunRecord, without_keys

logger = logging.getLogger(__name__)

# What may differ between a run and its continuation: where, how fast and how long, not what.
_FREE = (
    "resume", "shards", "storage", "tracking", "trainer.device", "trainer.threads", "checkpoint", "interval",
    "metrics_every_steps", "run", "duration", "scale", "ray",
)  # fmt: skip


def defining(options: FinetuneOptions, start: Start) -> dict[str, Any]:
    """The options that decide what a run computes, by dotted name, as JSON values; ``init`` by its content."""
    values = asdict(options)
    if options.init is not None:
        values["init"] = f"weights {start.weights}"
    return without_keys(flatten(json.loads(json.dumps(values, default=str))), _FREE)


def config_hash(options: FinetuneOptions, start: Start) -> str:
    """Equal for options that compute the same; an option that comes later changes nothing while it is left alone."""
    return digest_of_chosen(defining(options, start), FinetuneOptions)


def run_name(options: FinetuneOptions, start: Start, manifest: Manifest) -> str:
    """The name given, or one that the same command on the same data finds again."""
    if options.run.name is not None:
        return options.run.name
    key = config_hash(options, start) + manifest.fingerprint
    what = options.model.name if options.init is None else options.mode
    return f"finetune-{what.replace('/', '-')}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def record_of(options: FinetuneOptions, start: Start, manifest: Manifest, name: str) -> RunRecord:
    """The fresh content of ``run.json``."""
    values = json.loads(json.dumps(asdict(options), default=str))
    before = RunRecord.read(storage.join(options.storage, name))
    attempts = 1 if before is None else before.attempts + 1
    return RunRecord(
        name, "running", values, config_hash(options, start), manifest.fingerprint, code_version(), attempts=attempts
    )


def check_previous(options: FinetuneOptions, start: Start, folder: str, manifest: Manifest) -> None:
    """Hold the options and data of the run that is there, if one is, against the present ones (promise 4).

    Raises:
        UserError: ``resume`` forbids what is there, or it is another run; the message lists every difference.
    """
    found = latest_checkpoint(folder)
    shown = storage.redact(folder)
    if found is None:
        if options.resume == "must":
            raise UserError(f"resume=must, but {shown} has no checkpoint; use resume=auto to start the run")
        return
    if options.resume == "never":
        raise UserError(f"resume=never, but {shown} has a run; choose another run.name, or resume=auto to continue it")
    state, now = read_state(found), defining(options, start)
    lines = differences(state.options, now, FinetuneOptions)
    if state.fingerprint != manifest.fingerprint:
        lines.append(f"dataset fingerprint: {state.fingerprint[:19]} then, {manifest.fingerprint[:19]} now")
    if lines:
        raise UserError(
            f"run {shown} was started differently:\n  " + "\n  ".join(lines) + "\n"
            "give the same values to continue it, or another run.name or storage to start a new one"
        )


def load_position(run: FinetuneRun) -> None:
    """Continue from the newest checkpoint, or measure the features' scale before the first step."""
    newest = latest_checkpoint(run.writer.run_folder) if run.rank == 0 else None
    checkpoint = same_everywhere(newest, run.workers)
    if checkpoint is None:
        measure_scale(run)
        return
    found, states = read_state(checkpoint), NamedStates(checkpoint)
    states.check({name: value.weight.shape for name, value in run.engine.named_state(moments=False)})
    run.engine.load_named_state(states, found.optimizer_steps)
    with storage.folder_here(checkpoint) as here:
        if isinstance(run.classifier.model, Baseline):  # running means of its normalisation layers
            run.classifier.model.load_state_dict(open_baseline(here, run.engine.device).state_dict())
        head = load_head(here)
    assert head is not None
    run.classifier.mean.copy_(head.mean)
    run.classifier.std.copy_(head.std)
    run.state.step, run.state.examples_consumed = found.step, found.examples_consumed
    logger.info("continuing at step %d of %d", found.step, run.total_steps)
