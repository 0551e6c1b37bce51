"""Runs training jobs on two gloo processes without Ray, one job after another in the same processes."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.train.assembly import Job
from pipeline.train.checks import check_options
from pipeline.train.modalities import manifest_as_read
from pipeline.train.options import PretrainOptions
from pipeline.train.outcome import Outcome
from pipeline.train.plan import plan
from pipeline.train.runner import prepare_record
from pipeline.train.warm_start import keep_init

Losses = dict[int, float]


def run_on_two_ranks(folder: Path, several: list[PretrainOptions], limit_seconds: float = 240) -> list[Losses]:
    """Train each set of options to its end, or on from its last checkpoint; the losses of each by step."""
    folder.mkdir(parents=True, exist_ok=True)
    on_two = [replace(options, scale=replace(options.scale, workers=2)) for options in several]
    (folder / "options.pickle").write_bytes(pickle.dumps(on_two))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={
                **os.environ,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "DS_ACCELERATOR": "cpu",
                "OMP_NUM_THREADS": "1",
            },
        )
        for rank in range(2)
    ]
    try:
        codes = [rank.wait(limit_seconds) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0, 0]
    return [
        {int(step): loss for step, loss in losses.items()}
        for losses in json.loads((folder / "losses.json").read_text())
    ]


def prepare_job(options: PretrainOptions, distributed: Any) -> Job:
    """What the driver does before it starts workers: here rank 0 does it and tells the other."""
    told: list[Job | None] = [None]
    if distributed.get_rank() == 0:
        check_options(options)
        manifest = manifest_as_read(options)
        run_folder = plan(options, manifest).run_folder
        record = prepare_record(options, manifest, run_folder)
        record.attempts += 1
        record.write(run_folder)
        if options.init is not None:
            keep_init(options.init, run_folder)
        told = [Job(options, run_folder, record, manifest.modalities)]
    distributed.broadcast_object_list(told, src=0)
    job = told[0]
    assert job is not None
    return job


def main(folder: Path) -> None:
    """One rank."""
    import threading

    import torch
    import torch.distributed as distributed

    from pipeline.train.worker import run_worker

    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    found: list[dict[int, float]] = []
    for options in pickle.loads((folder / "options.pickle").read_bytes()):
        job = prepare_job(options, distributed)
        losses: dict[int, float] = {}

        def report(step: int, metrics: dict[str, float], losses: dict[int, float] = losses) -> bool:
            losses[step] = metrics.get("loss", float("nan"))
            return False

        run_worker(job, torch.device("cpu"), threading.Event(), report)
        distributed.barrier()
        outcome = Outcome.read(job.run_folder, job.record.attempts)
        assert outcome is not None
        assert outcome.status == "finished", outcome
        found.append(losses)
    if distributed.get_rank() == 0:
        (folder / "losses.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
