"""Open a tracked run: the one with the same key if there is one, under a parent if it is a trial."""

from __future__ import annotations

import hashlib
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path

from pipeline.owner import this_owner
from pipeline.storage import is_local, local_path, redact
from pipeline.tracking.client import Tracker
from pipeline.tracking.options import TrackingOptions, resolve_uri
from pipeline.tracking.sender import Sender
from pipeline.tracking.server import Server
from pipeline.tracking.spool import Segment, now_ms

logger = logging.getLogger(__name__)


def open_run(
    options: TrackingOptions,
    storage: str,
    run_name: str,
    key: str | None = None,
    params: object = None,
    tags: Mapping[str, object] | None = None,
    parent_run_id: str | None = None,
    resume_run_id: str | None = None,
) -> Tracker:
    """Open a run, or continue the one with ``resume_run_id`` or the same ``key``.

    Returns at once; the server is reached in the background. While it is away everything is kept on disk, and the run
    is created when it comes back, by this process or the next one on the same storage. ``key`` none: a new run.

    Raises:
        UserError: the tracking options cannot work (never because a server is away).
    """
    if not options.enabled:
        return Tracker()
    uri = resolve_uri(options, storage)
    root = spool_root(storage, uri)
    try:
        segment = Segment.create(root)
        segment.append(
            {
                "kind": "open",
                "key": hashlib.sha256((key or uuid.uuid4().hex).encode()).hexdigest()[:32],
                "name": run_name,
                "ms": now_ms(),
                "owner": this_owner(),
                "parent": parent_run_id,
                "resume": resume_run_id,
            }
        )
    except OSError as error:
        logger.warning("nothing will be tracked: cannot write %s (%s)", root, error.strerror)
        return Tracker()
    sender = Sender(segment, root, lambda: Server(uri, options.experiment, storage), options.system_metrics)
    tracker = Tracker(segment, sender)
    if params is not None:
        tracker.log_params(params)
    if tags:
        tracker.set_tags(tags)
    sender.start()
    logger.info("tracking run %s in %s", run_name, redact(uri))
    return tracker


def spool_root(storage: str, uri: str) -> Path:
    """The local folder for what has not reached the store at ``uri`` yet."""
    store = hashlib.sha256(redact(uri).encode()).hexdigest()[:12]
    if is_local(storage):
        return local_path(storage) / ".tracking" / store
    return Path.home() / ".cache" / "hip" / "tracking" / store
