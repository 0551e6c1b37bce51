"""Runs whose process died without a word: told apart by the owner written on each run, and closed as KILLED."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pipeline.owner import owner_lives, this_machine

if TYPE_CHECKING:
    from pipeline.tracking.server import Server

logger = logging.getLogger(__name__)


def sweep_orphans(server: Server) -> list[str]:
    """Close as KILLED the experiment's running runs whose process on this machine is gone; returns their ids."""
    from pipeline.tracking.server import OWNER_TAG

    query = f"attributes.status = 'RUNNING' and tags.`{OWNER_TAG}` LIKE '{this_machine()}:%'"
    swept = []
    for run in server.client.search_runs([server.experiment_id], query):
        if owner_lives(run.data.tags.get(OWNER_TAG, "")) is False:
            server.client.set_terminated(run.info.run_id, "KILLED")
            swept.append(run.info.run_id)
    if swept:
        logger.warning("closed %d run(s) as KILLED: their process is gone", len(swept))
    return swept
