"""The tiny dataset and model as fixtures."""

import pytest
import torch
from evaluation_data import write_model, write_small_dataset


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    return write_small_dataset(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="session")
def model_folder(shards, tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("model") / "nano", shards)


@pytest.fixture
def options(shards, model_folder, tmp_path):
    """Build EvaluateOptions on the tiny dataset and model, everything below a temporary folder."""
    from pipeline.evaluate.options import EmbedOptions, EvaluateFigureOptions, EvaluateOptions, IntervalOptions
    from pipeline.tracking.options import TrackingOptions

    def make(**changes):
        given = {
            "shards": shards,
            "model": model_folder,
            "storage": str(tmp_path / "runs"),
            "output": str(tmp_path / "evaluation"),
            "embed": EmbedOptions(batch_size=8, chunk_examples=20),
            "interval": IntervalOptions(resamples=50),
            "figures": EvaluateFigureOptions(enabled=False),
            "tracking": TrackingOptions(enabled=False),
        }
        return EvaluateOptions(**(given | changes))

    return make
