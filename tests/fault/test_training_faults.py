"""Training with processes that die, hang or vanish with their node; each held against the undisturbed loss curve."""

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_data import write_dataset
from training_runs import STEPS, kill_at_steps, losses_of, once_at_step, untracked, workers_of_this_test
from two_ranks import run_on_two_ranks

from pipeline.errors import InfrastructureError, TrainingDiverged
from pipeline.train.options import GuardOptions, OptimOptions, ScaleOptions
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
    assert "all_reduce" in stacks.read_text()  # where it waited for the other


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
    enough = threading.Event()

    def kill_all() -> None:
        while not enough.wait(0.2):
            for process in workers_of_this_test():
                process.kill()

    options = replace(untracked(folder, "doomed"), scale=ScaleOptions(workers=2, cpus_per_worker=0.5, max_failures=1))
    thread = threading.Thread(target=kill_all, daemon=True)
    thread.start()
    try:
        with pytest.raises(InfrastructureError, match=r"continue with: hip pretrain"):
            run_pretraining(options)
    finally:
        enough.set()
        thread.join()


@pytest.fixture
def two_nodes() -> Iterator[list[Any]]:
    """A head without workers and two nodes for one worker each; only where no other cluster is up."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        pytest.skip("this test needs its own cluster; run it alone: pytest -m fault -k node")
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
    small = {"object_store_memory": 100 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small})
    nodes = [cluster.add_node(num_cpus=1, resources={"trainer": 1}, **small) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield nodes
    ray.shutdown()
    cluster.shutdown()


def raylet_of(node: Any) -> psutil.Process:
    """The process that is a node to Ray."""
    [info] = node.all_processes["raylet"]
    return psutil.Process(info.process.pid)


def test_a_lost_node_is_done_without(folder: Path, expected: dict[int, float], two_nodes: list[Any]) -> None:
    options = untracked(folder, "node")
    options = replace(options, scale=ScaleOptions(workers=2, min_workers=1, cpus_per_worker=1.0, max_failures=8))
    once_at_step(folder / "runs" / "node", 5, lambda: raylet_of(two_nodes[1]).kill())
    run_pretraining(options)
    assert losses_of(folder, "node") == pytest.approx(expected, rel=1e-5)
