"""A notice that a node will be taken away; the fault tests let Ray give it and take the node."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import ray.train
from ray.train.v2.api.preemption import PreemptionInfo

from pipeline.train import assembly
from pipeline.train.checkpoint import list_checkpoints
from pipeline.train.options import CheckpointOptions, DurationOptions, PretrainOptions
from pipeline.train.preemption import Preemption
from pipeline.train.runner import run_pretraining


def test_from_the_notice_on_every_interval_saves(
    make_options: Callable[..., PretrainOptions],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    calm, notice = None, PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"node": [1]})
    told = iter([calm, notice, notice, notice, calm, calm])  # after 10, 20, … 60 steps
    monkeypatch.setattr(ray.train, "get_preemption_info", lambda: next(told))
    build_hooks = assembly.build_hooks
    monkeypatch.setattr(assembly, "build_hooks", lambda *given: [Preemption(), *build_hooks(*given)])
    caplog.set_level(logging.WARNING, "pipeline.train.preemption")

    run_pretraining(
        make_options(duration=DurationOptions(steps=60), checkpoint=CheckpointOptions(every_steps=1000, keep_last=9))
    )

    names = [Path(folder).name for folder in list_checkpoints(str(tmp_path / "runs" / "run"))]
    assert names == [f"step_{step:08d}" for step in (0, 20, 30, 40, 60)]
    assert [record.getMessage() for record in caplog.records] == ["step 20: 1 node(s) will be taken away; saved"]
