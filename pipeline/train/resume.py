"""Same name, same run: what a run folder says about itself, and whether it may be continued."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import UserError
from pipeline.folder_lock import folder_lock
from pipeline.storage import exists, join, read_bytes, redact, write_atomic
from pipeline.train.checkpoint import latest_checkpoint
from pipeline.train.differences import differences, digest_of_chosen, flatten
from pipeline.train.options import PretrainOptions
from pipeline.train.warm_start import KEPT, described_init

# What may change between the starts of one run without changing what it computes, but for summation order and length.
MAY_CHANGE = (
    "shards", "storage", "resume", "dry_run", "run", "duration", "scale", "checkpoint", "validation", "metrics",
    "figures", "tracking", "ray", "guards", "batch.per_worker_size", "ingest.prefetch_batches", "ingest.threads",
    "ingest.fetch_threads", "ingest.cache", "engine.kind", "engine.stage", "engine.offload_optimizer",
    "engine.activation_checkpointing", "engine.compile", "engine.cuda_graphs", "engine.collective_timeout_seconds",
)  # fmt: skip

RUN_LOCK = ".run.lock"
RUNNING, FINISHED, FAILED, INTERRUPTED, DIVERGED = "running", "finished", "failed", "interrupted", "diverged"


@dataclass
class RunRecord:
    """The content of ``run.json``."""

    name: str
    status: str
    options: dict[str, Any]
    config_hash: str
    fingerprint: str
    code_version: str
    key: str = field(default_factory=lambda: uuid.uuid4().hex)  # finds the tracked run again
    tracking_run_id: str | None = None
    attempts: int = 0
    created_seconds: float = field(default_factory=time.time)
    updated_seconds: float = field(default_factory=time.time)
    message: str = ""
    step: int = 0
    examples_consumed: int = 0
    checkpoint: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    format_version: int = 1

    def write(self, run_folder: str) -> None:
        """Replace ``run.json``."""
        self.updated_seconds = time.time()
        values = without_credentials(asdict(self))
        write_atomic(join(run_folder, "run.json"), json.dumps(values, indent=1, default=str).encode())

    @classmethod
    def read(cls, run_folder: str) -> RunRecord | None:
        """What is there, or none."""
        if not exists(join(run_folder, "run.json")):
            return None
        values = json.loads(read_bytes(join(run_folder, "run.json")))
        return cls(**{key: value for key, value in values.items() if key in cls.__dataclass_fields__})


def options_to_dict(options: PretrainOptions) -> dict[str, Any]:
    """The resolved options as plain JSON values, without credentials; ``init`` by its content."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(options), default=str))
    if options.init is not None:
        values["init"] = described_init(options.init)
    return without_credentials(values)


def without_credentials(values: Any) -> Any:
    """The same tree with every URI's password and key removed."""
    if isinstance(values, dict):
        return {key: without_credentials(value) for key, value in values.items()}
    if isinstance(values, list):
        return [without_credentials(value) for value in values]
    return redact(values) if isinstance(values, str) else values


def defining(values: dict[str, Any]) -> dict[str, Any]:
    """The options that decide what a run computes, by dotted name."""
    return without_keys(flatten(values), MAY_CHANGE)


def without_keys(flat: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Dotted keys but for those that are named or lie below a name."""
    return {key: flat[key] for key in flat if not any(key == name or key.startswith(f"{name}.") for name in names)}


def config_hash(values: dict[str, Any]) -> str:
    """Equal for options that compute the same; an option that comes later changes nothing while it is left alone."""
    return digest_of_chosen(defining(values), PretrainOptions)


def run_name(options: PretrainOptions, hash_of_config: str, fingerprint: str) -> str:
    """The name given, or one that the same command on the same data finds again."""
    if options.run.name is not None:
        return options.run.name
    data = hashlib.sha256(f"{hash_of_config}{fingerprint}".encode()).hexdigest()[:8]
    return f"{options.model.name}-{data}"


def run_lock(run_folder: str) -> AbstractContextManager[None]:
    """Hold a run for this process while the context lasts: two that train it would write the same checkpoints.

    Raises:
        UserError: another process is training it, or its folder cannot be written.
    """
    what = f"{redact(run_folder)} is being trained by another process"
    return folder_lock(run_folder, RUN_LOCK, what, "wait for it, stop it, or choose another run.name")


def open_record(options: PretrainOptions, run_folder: str, fresh: RunRecord) -> RunRecord:
    """The record to go on with: that of the folder if it is the same run, else ``fresh``.

    Raises:
        UserError: ``resume=never`` and there is one, ``resume=must`` and there is none, or it is another run.
    """
    found = RunRecord.read(run_folder)
    checkpoint = latest_checkpoint(run_folder)
    if options.resume == "must" and checkpoint is None:
        raise UserError(f"resume=must, but {redact(run_folder)} has no checkpoint; use resume=auto to start the run")
    if found is None:
        return fresh
    if options.resume == "never":
        raise UserError(
            f"run {found.name} exists in {redact(run_folder)} ({found.status}) and resume=never; "
            "choose another run.name, or resume=auto to continue it"
        )
    differences = differing(found, fresh)
    if differences and checkpoint is not None:
        raise UserError(
            f"run {found.name} in {redact(run_folder)} was started differently:\n  " + "\n  ".join(differences) + "\n"
            f"give the same values{_same_init(found, run_folder)} to continue it, or another run.name or storage to "
            "start a new one"
        )
    if checkpoint is None:  # it never got anywhere: nothing to keep but its identity
        fresh.key, fresh.tracking_run_id, fresh.attempts = found.key, found.tracking_run_id, found.attempts
        return fresh
    found.options, found.code_version = fresh.options, fresh.code_version
    return found


def _same_init(found: RunRecord, run_folder: str) -> str:
    """Where the weights that a run started from are for sure."""
    return f" (init={redact(join(run_folder, KEPT))})" if found.options.get("init") is not None else ""


def differing(found: RunRecord, fresh: RunRecord) -> list[str]:
    """One line per option that keeps a run from being continued."""
    lines = differences(defining(found.options), defining(fresh.options), PretrainOptions)
    if found.fingerprint != fresh.fingerprint:
        lines.append(f"dataset fingerprint: {found.fingerprint[:19]} then, {fresh.fingerprint[:19]} now")
    return lines


def resume_hint(record: RunRecord) -> str:
    """How to go on, as a command."""
    shards, storage = record.options["shards"], record.options["storage"]
    return (
        f"continue with: hip pretrain shards={shards} storage={storage} run.name={record.name} (and the same options)"
    )
