"""Training through what happens around it: no tracking server, a damaged shard, a full disk, another cluster size."""

import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from mlflow_processes import Service
from training_data import write_dataset
from training_runs import STEPS, losses_of, newest_step, once_at_step, untracked
from two_ranks import run_on_two_ranks

from pipeline.errors import DataError, InfrastructureError
from pipeline.tracking.options import TrackingOptions
from pipeline.tracking.runs import open_run
from pipeline.train.options import DurationOptions, PretrainOptions, ScheduleOptions
from pipeline.train.runner import run_pretraining

pytestmark = [pytest.mark.fault, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("outages")
    write_dataset(place / "shards", train=24, validation=8)
    return place


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[int, float]:
    """The undisturbed curve of two workers."""
    return run_on_two_ranks(folder / "ranks", [untracked(folder, "undisturbed")])[0]


def test_the_tracking_server_may_stop_and_come_back(folder: Path, expected: dict[int, float], server: Service) -> None:
    tracking = TrackingOptions(uri=server.url)
    options = replace(untracked(folder, "server_away"), tracking=tracking)
    back = threading.Thread(target=server.start)

    def outage() -> None:
        server.stop()
        once_at_step(folder / "runs" / "server_away", STEPS * 2 // 3, back.start).join()

    once_at_step(folder / "runs" / "server_away", 10, outage)
    result = run_pretraining(options)
    back.join()
    assert losses_of(folder, "server_away") == expected
    with open_run(tracking, options.storage, "next") as tracker:  # sends what no process could send before it ended
        assert tracker.flush(60)
    client = MlflowClient(server.url)
    assert result.tracking_run_id is not None
    assert client.get_run(result.tracking_run_id).info.status == "FINISHED"
    history = client.get_metric_history(result.tracking_run_id, "loss")
    assert sorted(point.step for point in history) == list(range(1, STEPS + 1))
    experiment = client.get_experiment_by_name("hip")
    named = [run.info.run_name for run in client.search_runs([experiment.experiment_id])]
    assert sorted(named) == ["next", "server_away"]


def test_a_shard_that_turns_corrupt_ends_the_run_and_once_mended_it_goes_on(
    folder: Path, expected: dict[int, float]
) -> None:
    shard = folder / "shards" / "train-00000.arrow"
    whole = shard.read_bytes()

    def damage() -> None:
        with shard.open("r+b") as stream:  # in place: the workers hold it mapped
            stream.seek(len(whole) // 3)
            stream.write(bytes(byte ^ 0xFF for byte in whole[len(whole) // 3 : len(whole) // 2]))

    def mend() -> None:
        with shard.open("r+b") as stream:
            stream.write(whole)

    once_at_step(folder / "runs" / "corrupt", 5, damage)
    try:
        with pytest.raises(DataError, match=r"train-00000"):
            run_pretraining(untracked(folder, "corrupt"))
    finally:
        mend()
    assert 0 <= newest_step(folder / "runs" / "corrupt") < STEPS
    run_pretraining(untracked(folder, "corrupt"))
    assert losses_of(folder, "corrupt") == expected


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    place = folder / "small" / "runs"
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("mounting a small file system needs rights that this user does not have")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_stops_the_run_cleanly_and_with_space_it_goes_on(
    folder: Path, expected: dict[int, float], small_disk: Path
) -> None:
    options = replace(untracked(folder, "full"), storage=str(small_disk))
    filler = small_disk / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as stream, suppress(OSError):
            while True:
                stream.write(bytes(4096))

    once_at_step(small_disk / "full", 5, fill)
    with pytest.raises(InfrastructureError, match=r"[Nn]o space left"):
        run_pretraining(options)
    assert newest_step(small_disk / "full") >= 5
    filler.unlink()
    run_pretraining(options)
    assert losses_of(small_disk.parent, "full") == expected


@pytest.mark.timeout(1200)  # six starts of workers
def test_a_run_moves_from_two_workers_to_one_and_back_and_through_the_stages(folder: Path) -> None:
    """Six parts of ten steps: 2, 1, 2, 2, 1, 2 workers; ZeRO 1, 1, 1, 2, 3, 3."""
    options = untracked(folder, "moving")
    # Independent of the duration, so that a run in parts follows the same rates as a whole one.
    options = replace(options, schedule=ScheduleOptions("constant", warmup_share=0))
    # At ten times this rate the summation order alone (other micro-batches, nothing else) moves losses by 5 %.
    options = replace(options, optim=replace(options.optim, learning_rate=3e-4))
    whole = replace(options, run=replace(options.run, name="staying"))
    [curve] = run_on_two_ranks(folder / "staying", [whole])
    ends = range(STEPS // 6, STEPS + 1, STEPS // 6)
    parts = zip(ends, (2, 1, 2, 2, 1, 2), (1, 1, 1, 2, 3, 3), strict=True)
    for steps, workers, stage in parts:
        run_pretraining(part_of(options, steps, workers, stage))
    assert losses_of(folder, "moving") == pytest.approx(curve, rel=1e-5)


def part_of(options: PretrainOptions, steps: int, workers: int, stage: int) -> PretrainOptions:
    return replace(
        options,
        duration=DurationOptions(steps=steps),
        scale=replace(options.scale, workers=workers),
        engine=replace(options.engine, stage=stage),
        batch=replace(options.batch, per_worker_size=2),
    )
