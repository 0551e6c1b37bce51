from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registry_models import make_model

from pipeline.demo.clips import make_demo_clips
from pipeline.registry.options import PredictOptions
from pipeline.registry.predict import predict

pytestmark = pytest.mark.integration


def test_ray_gives_what_one_process_gives(ray_cluster: Any, tmp_path: Path) -> None:
    model = str(make_model(tmp_path / "nano"))
    clips = tmp_path / "clips"
    make_demo_clips(clips, 3, num_sounds=1, num_images=0, size_pixels=32)
    (clips / "broken.mp4").write_bytes(b"no media in here")
    reports = {
        workers: predict(
            PredictOptions(model, str(clips), str(tmp_path / f"out{workers}"), format="npz", workers=workers)
        )
        for workers in (0, 1)
    }
    assert reports[0].failed == reports[1].failed
    with (
        np.load(tmp_path / "out0" / "embeddings.npz") as here,
        np.load(tmp_path / "out1" / "embeddings.npz") as there,
    ):
        np.testing.assert_array_equal(here["source"], there["source"])
        np.testing.assert_array_equal(here["start_seconds"], there["start_seconds"])
        np.testing.assert_allclose(here["embedding"], there["embedding"], rtol=1e-4, atol=1e-5)
