"""Every verb over ``s3://`` against a server on loopback whose proxy throttles, stalls and cuts uploads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from pyarrow import fs
from s3_server import CUT, PLAIN, STALL, THROTTLE, Behaviour, s3_behind_proxy
from training_data import write_dataset

from pipeline.demo.clips import make_demo_clips
from pipeline.storage import exists, join, list_files, read_bytes, resolve
from pipeline.tracking.options import TrackingOptions
from pipeline.train.checkpoint import latest_checkpoint, list_checkpoints, read_state
from pipeline.train.options import (
    BatchOptions,
    CheckpointOptions,
    DurationOptions,
    EngineOptions,
    FigureOptions,
    MetricsOptions,
    ModelOptions,
    PretrainOptions,
    RunOptions,
    ScaleOptions,
    ScheduleOptions,
    ValidationOptions,
)
from pipeline.train.runner import run_pretraining

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))  # caches


Store = tuple[Behaviour, str, str]


@pytest.fixture
def store() -> Iterator[Store]:
    """How the proxy behaves, and the queries of URIs past it and through it."""
    behaviour = Behaviour(stall_seconds=2.0)
    with s3_behind_proxy(behaviour) as (straight, through):
        yield behaviour, straight, through


def unreliable(number: int, method: str, path: str) -> str:
    """A bad day: one request in seven is throttled, one upload in five cut, one in fifty late."""
    if method == "PUT" and number % 5 == 0:
        return CUT
    return THROTTLE if number % 7 == 0 else STALL if number % 50 == 0 else PLAIN


def upload(folder: Path, location: str) -> None:
    system, path = resolve(location)
    fs.copy_files(str(folder), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=system)


def options(shards: str, storage: str, steps: int) -> PretrainOptions:
    return PretrainOptions(
        shards=shards,
        storage=storage,
        run=RunOptions("far"),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8),
        duration=DurationOptions(steps=steps),
        schedule=ScheduleOptions(kind="constant", warmup_share=0.0),  # the same whatever the number of steps
        engine=EngineOptions(kind="torch", precision="fp32"),
        scale=ScaleOptions(workers=0),
        checkpoint=CheckpointOptions(every_steps=4, keep_last=9),
        validation=ValidationOptions(every_steps=0),
        metrics=MetricsOptions(every_steps=2),
        figures=FigureOptions(every_steps=0),
        tracking=TrackingOptions(enabled=False),
    )


def losses(run_folder: str) -> list[float]:
    newest = latest_checkpoint(run_folder)
    assert newest is not None
    return list(read_state(newest).hooks["guards"]["losses"])


@pytest.mark.fault
def test_training_on_a_store_that_misbehaves_learns_what_it_learns_here(store: Store, tmp_path: Path) -> None:
    behaviour, straight, through = store
    shards = write_dataset(tmp_path / "shards", train=24, validation=0)
    run_pretraining(options(shards, str(tmp_path / "runs"), 12))
    upload(tmp_path / "shards", f"s3://data/shards?{straight}")
    behaviour.decide = unreliable
    there = options(f"s3://data/shards?{through}", f"s3://data/runs?{through}", 8)
    run_pretraining(there)
    run_pretraining(replace(there, resume="must", duration=DurationOptions(steps=12)))
    behaviour.decide = Behaviour().decide
    assert behaviour.counts[THROTTLE] > 5
    assert behaviour.counts[CUT] > 1
    assert losses(f"s3://data/runs/far?{straight}") == losses(str(tmp_path / "runs" / "far"))


def test_a_checkpoint_that_was_uploaded_in_part_does_not_count(store: Store, tmp_path: Path) -> None:
    behaviour, straight, through = store
    shards = write_dataset(tmp_path / "shards", train=24, validation=0)

    def cut_weights_of_step_4(number: int, method: str, path: str) -> str:
        mine = "step_00000004/" in path and "part-00000" in path
        return CUT if method in ("PUT", "POST") and mine else PLAIN

    behaviour.decide = cut_weights_of_step_4
    kept = CheckpointOptions(every_steps=4, keep_last=1, keep_every_steps=4)
    done = run_pretraining(replace(options(shards, f"s3://key:hunter2@data/runs?{through}", 8), checkpoint=kept))
    names = [place.partition("?")[0].rpartition("/")[2] for place in list_checkpoints(f"s3://data/runs/far?{straight}")]
    assert names == ["step_00000000", "step_00000008"]
    assert behaviour.counts[CUT] > 1, "it was tried more than once"
    assert done.checkpoint == f"s3://key:hunter2@data/runs/far/checkpoints/step_00000008?{through}"
    files = list_files(f"s3://data/runs/far?{straight}", recursive=True)
    assert {"run.json", "outcome.json", "config.json", "trainer_state.json"} <= {info.base_name for info in files}
    assert not [info.path for info in files if b"hunter2" in read_bytes(f"s3://{info.path}?{straight}")]


def hip(*arguments: str) -> str:
    """One verb in a process of its own, as a user runs it."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [sys.executable, "-m", "jobs", *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "AWS_SECRET" not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.fault
@pytest.mark.parametrize("decide", [Behaviour().decide, unreliable], ids=["good_day", "bad_day"])
def test_the_whole_path_over_s3(store: Store, tmp_path: Path, decide: Callable[[int, str, str], str]) -> None:
    behaviour, straight, through = store
    make_demo_clips(tmp_path / "source", 6, seed=1, size_pixels=64, num_images=0)
    upload(tmp_path / "source", f"s3://data/source?{straight}")
    behaviour.decide = decide
    data = [f"shards='s3://data/tokens?{through}'", f"storage='s3://data/runs?{through}'", "tracking=off"]
    hip("preprocess", f"source='s3://data/source?{through}'", data[0], "tokens=demo", "ray.num_cpus=2")
    hip(
        "pretrain", *data, "model=hip_nano", "run.name=far", "scale=local_two", "batch.global_size=4",
        "duration.steps=4", "figures.every_steps=0", "checkpoint.every_steps=2",
    )  # fmt: skip
    hip(
        "predict", "model=far", f"input='s3://data/source?{through}'", f"output='s3://data/out?{through}'",
        data[1], "tracking.enabled=false", "workers=0", "kind=embeddings",
    )  # fmt: skip
    behaviour.decide = Behaviour().decide
    system, path = resolve(f"s3://data/out?{straight}")
    assert [info for info in system.get_file_info(fs.FileSelector(path, recursive=True)) if info.size]
    assert latest_checkpoint(f"s3://data/runs/far?{straight}") is not None


@pytest.mark.fault
def test_fine_tuning_and_the_registry_over_s3(store: Store, tmp_path: Path) -> None:
    _, straight, _ = store
    make_demo_clips(tmp_path / "source", 12, seed=1, size_pixels=64, num_images=0)
    shards = f"shards={tmp_path}/tokens"
    places = [f"storage='s3://data/runs?{straight}'", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    hip("preprocess", f"source={tmp_path}/source", shards, "tokens=demo", "validation_fraction=0.3", "ray.num_cpus=2")
    start = ["init=null", "model=hip_nano", "run.name=tuned", "batch.global_size=8"]
    tuning = ["finetune", shards, *places, *start]
    hip(*tuning, "duration.steps=2")
    hip(*tuning, "duration.steps=2", "resume=must")
    assert "top1" in hip("evaluate", shards, *places, "model=tuned", "task=linear_probe")
    hip("register", "run=tuned", "name=far", *places)
    hip(
        "predict", "model=models:/far@candidate", f"input={tmp_path}/source", f"output={tmp_path}/out", *places,
        "workers=0", "kind=labels",
    )  # fmt: skip
    assert list((tmp_path / "out").iterdir())
    system, path = resolve(f"s3://data/runs/mlflow-artifacts?{straight}")
    stored = [info.base_name for info in system.get_file_info(fs.FileSelector(path, recursive=True)) if info.size]
    assert {"MLmodel", "model.safetensors", "head.safetensors"} <= set(stored)


@pytest.mark.fault
def test_preprocessing_into_a_bucket_goes_on_after_the_machine_died(store: Store, tmp_path: Path) -> None:
    _, straight, _ = store
    make_demo_clips(tmp_path / "source", 24, seed=1, size_pixels=64, num_images=0)
    there = f"s3://data/tokens?{straight}"
    asked = [f"source={tmp_path}/source", "tokens=demo", "ray.num_cpus=1"]
    command = [sys.executable, "-m", "jobs", "preprocess", *asked, f"shards='{there}'"]
    driver = psutil.Popen(command, env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"})
    while driver.poll() is None and not any("train-" in info.base_name for info in list_files(there, recursive=True)):
        time.sleep(0.1)
    for process in [*driver.children(recursive=True), driver]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.wait()
    assert exists(join(there, ".preprocess.lock"))
    hip("preprocess", *asked, f"shards='{there}'")
    assert not exists(join(there, ".preprocess.lock"))
    hip("preprocess", *asked, f"shards={tmp_path}/tokens")
    shards = [path for path in (tmp_path / "tokens").iterdir() if path.suffix == ".arrow"]
    assert len(shards) > 3
    assert all(read_bytes(join(there, path.name)) == path.read_bytes() for path in shards)
