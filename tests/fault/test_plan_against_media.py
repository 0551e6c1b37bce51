"""Bytes, shards and decode core-hours of a plan against a real run on the same media."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import psutil
import pytest

from bench.data_decode import make_clip
from pipeline.cluster.plan import PlanOptions, PlanSettings, make_plan
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.recipe import AudioRecipe, TokenRecipe, VideoRecipe
from pipeline.preprocess.run import run_preprocess
from pipeline.train.options import ModelOptions

RECIPE = TokenRecipe(clip_seconds=2.56, video=VideoRecipe(8, 224, 224), audio=AudioRecipe(122_880))


def cpu_seconds_of_tasks() -> float:
    """Of every process below Ray's raylet that decodes: its workers and their children."""
    total = 0.0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            if "ray::" in command or "pipeline.preprocess.box" in command:
                total += sum(process.cpu_times()[:2])
    return total


@pytest.mark.fault
def test_a_plan_from_the_media_is_within_a_fifth(tmp_path: Path, ray_cluster: None) -> None:
    draw = random.Random(0)
    (tmp_path / "media").mkdir()
    for number in range(48):
        make_clip(tmp_path / "media" / f"{number}.mp4", draw.uniform(2.7, 9.0))
    settings = PlanSettings(source=str(tmp_path / "media"))
    plan = make_plan(PlanOptions(shards="none", model=ModelOptions("hip_16"), tokens=RECIPE, plan=settings))
    warm = PreprocessOptions(str(tmp_path / "media"), str(tmp_path / "warm"), RECIPE)
    run_preprocess(warm)  # starts the workers and their children, which a long run does not notice
    before = cpu_seconds_of_tasks()
    report = run_preprocess(PreprocessOptions(str(tmp_path / "media"), str(tmp_path / "tokens"), RECIPE))
    taken = cpu_seconds_of_tasks() - before
    told = {
        "examples": plan.examples / report.manifest.num_examples(),
        "bytes": plan.dataset_bytes / sum(shard.bytes for shard in report.manifest.shards),
        "core-hours": plan.decode_core_hours * 3600 / taken,
    }
    print({name: round(ratio, 3) for name, ratio in told.items()})
    assert told == pytest.approx(dict.fromkeys(told, 1), abs=0.2)
