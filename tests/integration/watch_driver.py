"""Preprocesses and trains on a Ray of its own while a thread reads the metrics endpoint as Prometheus would.

``python watch_driver.py <folder>`` writes ``scraped.json``: the lines that were seen, by name and labels, and stops the
training when all metrics of ours were there.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import ray
from training_data import write_dataset

from pipeline.demo.clips import make_demo_clips
from pipeline.errors import Interrupted
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.recipe import TokenRecipe, VideoRecipe
from pipeline.preprocess.run import run_preprocess
from pipeline.ray_session import RayOptions, ray_session
from pipeline.storage import write_atomic
from pipeline.tracking.options import TrackingOptions
from pipeline.tracking.prometheus import METRICS, PREFIX
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
    ValidationOptions,
)
from pipeline.train.runner import run_pretraining

_SECONDS = 200.0
_LINE = re.compile(r"^(\w+)(\{.*\})? (\S+)")


def scrape(folder: Path) -> None:
    """Read the endpoint twice a second until everything was seen, then stop the training."""
    (node,) = ray.nodes()
    place = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = {PREFIX + name for name in METRICS}
    seen: dict[str, float] = {}
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline and not is_all(seen, wanted):
        time.sleep(0.5)
        try:
            with urllib.request.urlopen(place, timeout=10) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, OSError):
            continue
        for line in text.splitlines():
            if match := _LINE.match(line):
                seen[match[1] + (match[2] or "")] = float(match[3])
    (folder / "scraped.json").write_text(json.dumps(seen))
    write_atomic(str(folder / "runs" / "watched" / "stop"), b"")


def is_all(seen: dict[str, float], wanted: set[str]) -> bool:
    """Whether every metric was there, and both workers: each process reports at moments of its own."""
    return wanted <= {key.partition("{")[0] for key in seen} and all(
        any(f'rank="{rank}"' in key for key in seen if key.startswith(PREFIX + "hip_train_data_wait_share"))
        for rank in "01"
    )


def preprocess(folder: Path) -> None:
    """Three clips and a file that is none."""
    make_demo_clips(folder / "source", 3, seed=1, size_pixels=64, num_sounds=0, num_images=0)
    (folder / "source" / "broken.mp4").write_bytes(b"not a film")
    recipe = TokenRecipe(clip_seconds=0.5, video=VideoRecipe(2, 16, 16), audio=None)
    run_preprocess(PreprocessOptions(str(folder / "source"), str(folder / "clips"), recipe, max_failed_fraction=1.0))


def train(folder: Path) -> None:
    """Two workers, until someone stops them."""
    options = PretrainOptions(
        shards=write_dataset(folder / "shards", train=24, validation=0),
        storage=str(folder / "runs"),
        run=RunOptions("watched"),
        model=ModelOptions("hip_nano"),
        batch=BatchOptions(8, 4),
        duration=DurationOptions(steps=50_000),
        engine=EngineOptions(kind="torch", precision="fp32"),
        scale=ScaleOptions(workers=2, cpus_per_worker=0.5),
        checkpoint=CheckpointOptions(every_steps=50),
        validation=ValidationOptions(every_steps=0),
        metrics=MetricsOptions(every_steps=10, peak_tflops=0.1),
        figures=FigureOptions(every_steps=0),
        tracking=TrackingOptions(enabled=False),
    )
    with contextlib.suppress(Interrupted):
        run_pretraining(options)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with ray_session(RayOptions(num_cpus=3, object_store_gib=0.2)):
        thread = threading.Thread(target=scrape, args=(place,))
        thread.start()
        preprocess(place)
        train(place)
        thread.join()
