"""A whole comparison of the paper at toy size: pretrain, probe, fine-tune, table; then once more from what is there."""

import json
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
from evaluation_data import write_small_dataset

from pipeline.evaluate.paper import run_study
from pipeline.evaluate.paper_options import ExperimentOptions
from pipeline.storage import read_bytes
from pipeline.tracking.options import TrackingOptions

pytestmark = pytest.mark.integration


def test_a_tiny_study_runs_to_its_table_and_goes_on_where_it_was(tmp_path):
    options = ExperimentOptions(
        study="pixel_shuffle",
        shards=write_small_dataset(tmp_path / "shards"),
        storage=str(tmp_path / "runs"),
        arms=("shuffled + MAE", "shuffled"),
        pretrain_epochs=0.5,
        finetune_epochs=1.0,
        batch_size=16,
        threads=1,
        resamples=50,
        tracking=TrackingOptions(enabled=False),
    )
    table = Path(run_study(options))
    first = table.read_text()
    assert "| shuffled + MAE | 76.3 |" in first
    assert len(json.loads((table.parent / "results.json").read_text())) == 2
    weights = sorted((tmp_path / "runs").glob("*-pretrain/checkpoints/*/model.safetensors"))
    stamps = [path.stat().st_mtime_ns for path in weights]
    assert Path(run_study(options)).read_text() == first
    assert weights
    assert [path.stat().st_mtime_ns for path in weights] == stamps
    far = replace(options, storage=f"memory://{uuid.uuid4().hex}")
    assert read_bytes(run_study(far)).decode() == first
