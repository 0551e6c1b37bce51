"""Tokens do not travel through Ray's object store: more of them than it holds leave nothing spilled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.demo.clips import make_demo_clips
from pipeline.shards.manifest import Manifest

PROGRAM = """
import sys
import numpy as np, ray
from ray._private.internal_api import memory_summary
from pipeline.preprocess.options import PreprocessOptions
from pipeline.preprocess.recipe import TokenRecipe, VideoRecipe
from pipeline.preprocess.run import run_preprocess
from pipeline.ray_session import RayOptions, ray_session

with ray_session(RayOptions(num_cpus=2, object_store_gib=0.1)):
    here = ray.get_runtime_context().gcs_address  # other tests may keep a Ray of their own
    recipe = TokenRecipe(clip_seconds=1.0, video=VideoRecipe(8, 224, 224))
    run_preprocess(PreprocessOptions(sys.argv[1], sys.argv[2], recipe))
    print("after preprocess:", "Spilled" in memory_summary(here, stats_only=True))
    held = [ray.put(np.ones(20 * 2**20, np.uint8)) for _ in range(10)]
    print("after 200 MiB of objects:", "Spilled" in memory_summary(here, stats_only=True))
"""


@pytest.mark.fault
def test_nothing_is_spilled_by_more_tokens_than_the_store_holds(tmp_path: Path) -> None:
    make_demo_clips(tmp_path / "clips", 80, num_sounds=0, num_images=0)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "clips"), str(tmp_path / "tokens")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(shard.bytes for shard in Manifest.load(str(tmp_path / "tokens")).shards) > 1.5 * 0.1 * 2**30
    assert "after preprocess: False" in done.stdout
    assert "after 200 MiB of objects: True" in done.stdout  # the question has two answers
