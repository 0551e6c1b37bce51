"""Population-based training: a weak trial goes on from a strong one's checkpoint, with changed settings."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from pyarrow import fs

from pipeline.beating_lock import wait_while_held
from pipeline.storage import is_local, join, local_path, name_of, resolve
from pipeline.train.checkpoint import latest_checkpoint, list_checkpoints
from pipeline.train.options import PretrainOptions
from pipeline.train.resume import RUN_LOCK, RunRecord, defining, options_to_dict
from pipeline.tune.closing import CLOSING_SECONDS

logger = logging.getLogger(__name__)


def adopt_checkpoint(donor: str, own: str) -> None:
    """Make the newest checkpoint of run folder ``donor`` the newest of ``own``."""
    checkpoint = latest_checkpoint(donor)
    if checkpoint is None:
        logger.info("%s has no checkpoint yet; training goes on from the run's own", donor)
        return
    system, source = resolve(checkpoint)
    _, target = resolve(join(own, "checkpoints", name_of(checkpoint)))
    for folder in list_checkpoints(own):
        _, path = resolve(folder)
        system.delete_dir(path)
    system.create_dir(target, recursive=True)
    fs.copy_files(source, target, source_filesystem=system, destination_filesystem=system)


def continue_under(own: str, options: PretrainOptions) -> None:
    """Let a run go on under other options than it was started with, as population-based training means it to.

    It keeps its name and its tracked run.
    """
    record, values = RunRecord.read(own), options_to_dict(options)
    if record is not None and defining(record.options) != defining(values):
        record.options = values
        record.write(own)


@contextmanager
def alone_in(run_folder: str) -> Iterator[None]:
    """Wait until no other process trains in ``run_folder``: one that was moved may still be closing."""
    if not is_local(run_folder):
        wait_while_held(join(run_folder, RUN_LOCK), CLOSING_SECONDS)
        yield
        return
    folder = local_path(run_folder)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".training.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
