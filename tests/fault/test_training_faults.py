"""The long fault suite of training: kills, a lost node, a hang; each held against the undisturbed loss curve."""

import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from test_pretrain_ray import STEPS, kill_a_worker, make_options, once_at_step
from training_data import write_dataset
from two_ranks import run_on_two_ranks

from pipeline.errors import InfrastructureError, TrainingDiverged
from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint import latest_checkpoint, read_state
from pipeline.train.options import GuardOptions, OptimOptions, PretrainOptions, ScaleOptions
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


def untracked(folder: Path, name: str) -> PretrainOptions:
    return replace(make_options(folder, name), tracking=TrackingOptions(enabled=False))


def losses_of(folder: Path, name: str) -> dict[int, float]:
    newest = latest_checkpoint(str(folder / "runs" / name))
    assert newest is not None
    return dict(enumerate(read_state(newest).hooks["guards"]["losses"], start=1))


@pytest.mark.parametrize("step", sorted(random.Random(0).sample(range(1, STEPS - 20), 10)))
@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_killed_at_any_step_changes_no_loss(folder: Path, expected: dict[int, float], step: int) -> None:
    name = f"killed_{step}"
    killer = once_at_step(folder / "runs" / name, step // 5 * 5, kill_a_worker)
    run_pretraining(untracked(folder, name))
    killer.join(1)
    assert not killer.is_alive()
    assert losses_of(folder, name) == expected


@pytest.mark.usefixtures("ray_cluster")
def test_a_worker_that_hangs_is_restarted_with_its_stacks_kept(folder: Path, expected: dict[int, float]) -> None:
    def stop_a_worker() -> None:
        workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())]
        workers[0].send_signal(signal.SIGSTOP)
        time.sleep(45)
        if workers[0].is_running():
            workers[0].send_signal(signal.SIGKILL)

    options = replace(untracked(folder, "hung"), guards=GuardOptions(hang_seconds=20))
    once_at_step(folder / "runs" / "hung", 5, stop_a_worker)
    run_pretraining(options)
    assert losses_of(folder, "hung") == expected
    assert list((folder / "runs" / "hung" / "stacks").glob("rank-*.txt"))


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
    dying = threading.Event()

    def kill_all() -> None:
        while not dying.wait(0.2):
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    process.send_signal(signal.SIGKILL)

    options = replace(untracked(folder, "doomed"), scale=ScaleOptions(workers=2, cpus_per_worker=0.5, max_failures=1))
    thread = threading.Thread(target=kill_all, daemon=True)
    thread.start()
    try:
        with pytest.raises(InfrastructureError, match=r"continue with: hip pretrain"):
            run_pretraining(options)
    finally:
        dying.set()
        thread.join()


@pytest.fixture
def two_nodes() -> Iterator[object]:
    """A head without workers and two nodes for one worker each; only where no other cluster is up."""
    import ray
    from ray.cluster_utils import Cluster

    if ray.is_initialized():
        pytest.skip("this test needs its own cluster; run it alone: pytest -m fault -k node")
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, resources={"trainer": 1}) for _ in range(2)]
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def test_a_lost_node_is_replaced_or_done_without(folder: Path, expected: dict[int, float], two_nodes: object) -> None:
    cluster, nodes = two_nodes  # type: ignore[misc]
    options = replace(untracked(folder, "node"), scale=ScaleOptions(workers=2, min_workers=1, cpus_per_worker=1.0))
    once_at_step(folder / "runs" / "node", 5, lambda: cluster.remove_node(nodes[1], allow_graceful=False))
    run_pretraining(options)
    assert losses_of(folder, "node") == pytest.approx(expected, rel=1e-5)
