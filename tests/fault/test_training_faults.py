"""Training with processes that die, hang or vanish with their node; each held against the undisturbed loss curve."""

import os
import pickle
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from training_data import write_dataset
from training_runs import STEPS, kill_at_steps, losses_of, newest_step, once_at_step, untracked, workers_of_this_test
from two_ranks import run_on_two_ranks

from pipeline.errors import InfrastructureError, TrainingDiverged
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.train.options import (
    CheckpointOptions,
    DurationOptions,
    GuardOptions,
    OptimOptions,
    PretrainOptions,
    ScaleOptions,
)
from pipeline.train.runner import run_pretraining

pytestmark = pytest.mark.fault


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("faults")
    write_dataset(place / "shards", train=24, validation=8)
    return place


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, float]:
    """The undisturbed curve of two workers."""
    return run_on_two_ranks(folder / "ranks", [untracked(folder, "undisturbed")])[0]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.usefixtures("ray_cluster")
def test_workers_killed_at_five_random_steps_change_no_loss(
    folder: Path, expected: dict[int, float], seed: int
) -> None:
    draw = random.Random(seed)
    name = f"killed_{seed}"
    steps = sorted(draw.sample(range(1, STEPS - 20), 5))
    killer = kill_at_steps(folder / "runs" / name, steps, [draw.uniform(0, 0.5) for _ in steps])
    options = untracked(folder, name)
    run_pretraining(replace(options, scale=replace(options.scale, max_failures=8)))
    killer.join(1)
    assert not killer.is_alive()
    assert losses_of(folder, name) == expected


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_hangs_is_restarted_with_its_stacks_kept(folder: Path, expected: dict[int, float]) -> None:
    def stop_a_worker() -> None:
        worker = workers_of_this_test()[0]
        worker.send_signal(signal.SIGSTOP)
        time.sleep(60)  # Ray ends it before; what cannot be ended while stopped is helped along
        if worker.is_running():
            worker.kill()

    options = replace(untracked(folder, "hung"), guards=GuardOptions(hang_seconds=40))
    once_at_step(folder / "runs" / "hung", 5, stop_a_worker)
    run_pretraining(options)
    assert losses_of(folder, "hung") == expected
    (stacks, *_) = (folder / "runs" / "hung" / "stacks").glob("rank-*.txt")
    assert "pipeline/train/loop.py" in stacks.read_text()  # where it waited for the other


@pytest.mark.usefixtures("ray_cluster")
def test_a_diverging_run_ends_with_its_own_error_and_is_not_tried_again(folder: Path) -> None:
    options = replace(
        untracked(folder, "diverging"),
        optim=OptimOptions(learning_rate=1e18),
        guards=GuardOptions(consecutive_bad_steps=2, max_rollbacks=1),
    )
    options = replace(options, engine=replace(options.engine, gradient_clip=None))
    with pytest.raises(TrainingDiverged, match="after 1 roll-backs"):
        run_pretraining(options)


@pytest.mark.usefixtures("ray_cluster")
def test_workers_that_die_again_and_again_end_the_run_with_the_way_to_go_on(folder: Path) -> None:
    options = replace(untracked(folder, "doomed"), scale=ScaleOptions(workers=2, cpus_per_worker=0.5, max_failures=1))
    kill_at_steps(folder / "runs" / "doomed", [5, 10], [0.0, 0.0])
    with pytest.raises(InfrastructureError, match=r"after 1 restarts.*continue with: hip pretrain"):
        run_pretraining(options)


def test_a_lost_node_is_done_without(folder: Path, expected: dict[int, float]) -> None:
    options = untracked(folder, "node")
    options = replace(options, scale=ScaleOptions(workers=2, min_workers=1, cpus_per_worker=1.0, max_failures=8))
    run_and_lose_a_node(folder, options, "kill")
    newest = latest_checkpoint(str(folder / "runs" / "node"))
    assert newest is not None
    assert read_state(newest).workers == 1
    assert losses_of(folder, "node") == pytest.approx(expected, rel=1e-5)


def test_at_notice_of_a_node_that_will_be_taken_away_the_run_is_saved(folder: Path) -> None:
    options = untracked(folder, "notice")
    options = replace(
        options,
        duration=DurationOptions(steps=500),
        checkpoint=CheckpointOptions(every_steps=10_000, keep_last=10),  # of its own accord it would save at the end
        scale=ScaleOptions(workers=2, min_workers=1, cpus_per_worker=1.0, max_failures=8),
    )
    said = run_and_lose_a_node(folder, options, "drain")
    [step] = re.findall(r"step (\d+): 1 node\(s\) will be taken away; saved", said)
    assert 0 < int(step) < 500
    resumed = re.findall(r"resumed from .* at step (\d+)", said)
    assert not resumed or int(resumed[0]) > int(step)  # saved again and again until the node was gone
    assert newest_step(folder / "runs" / "notice") == 500


def run_and_lose_a_node(folder: Path, options: PretrainOptions, way: str) -> str:
    """Train on a cluster of two nodes, one of which goes; returns what the driver said."""
    (folder / "options.pickle").write_bytes(pickle.dumps(options))
    (folder / "lost").unlink(missing_ok=True)
    driver = Path(__file__).with_name("lost_node_driver.py")  # a process of its own: this one may have a cluster
    done = subprocess.run(
        [sys.executable, str(driver), str(folder), way],
        env={**os.environ, "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1", "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (folder / "lost").exists()
    return done.stderr
