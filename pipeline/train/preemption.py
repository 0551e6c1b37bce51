"""Saves when Ray says that a node will be taken away, so that little is lost when it is."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipeline.train.hooks import Hook
from pipeline.train.steps import StepFacts

if TYPE_CHECKING:
    from pipeline.train.loop import Trainer

logger = logging.getLogger(__name__)

_SMALLEST_INTERVAL = 10  # steps; to ask is a round trip between workers


class Preemption(Hook):
    """Asks at metric intervals (all workers answer together); from a notice on each saves, until the node is gone."""

    name = "preemption"

    def __init__(self) -> None:
        self._known: tuple[str, ...] = ()

    def on_facts(self, trainer: Trainer, facts: Sequence[StepFacts]) -> None:
        """Look; at the first notice of these nodes save before going on, later write while training goes on."""
        if facts[-1].step % max(_SMALLEST_INTERVAL, trainer.options.metrics.every_steps):
            return
        from ray.train import get_preemption_info

        notice = get_preemption_info()
        nodes = () if notice is None else tuple(notice.preempted_node_ids)
        if nodes and nodes != self._known:
            trainer.save()
            if trainer.rank == 0:
                logger.warning("step %d: %d node(s) will be taken away; saved", trainer.state.step, len(nodes))
        elif nodes:
            trainer.save_is_due = True
        self._known = nodes
