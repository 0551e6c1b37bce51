from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_data import write_model, write_small_dataset
from registry_models import LABELS, make_model

from hip_model.errors import InputError
from pipeline.errors import UserError
from pipeline.evaluate.head import load_head
from pipeline.evaluate.options import EvaluateFigureOptions, EvaluateOptions
from pipeline.evaluate.runner import evaluate
from pipeline.evaluate.session import open_session
from pipeline.registry.graph import EmbeddingGraph
from pipeline.registry.inference import Predictor, to_stored_type
from pipeline.shards.reader import ShardReader
from pipeline.tracking.options import TrackingOptions

Example = dict[str, np.ndarray | None]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    return Predictor.load(make_model(tmp_path_factory.mktemp("models") / "nano"), device="cpu")


def _example(seed: int) -> Example:
    random = np.random.default_rng(seed)
    return {
        "video": random.integers(0, 256, (1024, 3), dtype=np.uint8),
        "audio": random.integers(-9000, 9000, (4000, 1), dtype=np.int16),
    }


def test_an_example_gets_the_same_answer_alone_and_in_a_batch(predictor: Predictor) -> None:
    examples = [_example(seed) for seed in range(3)]
    together = predictor.embeddings(examples)
    alone = np.concatenate([predictor.embeddings([example]) for example in examples])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_an_absent_modality_is_hidden_not_guessed(predictor: Predictor) -> None:
    full = _example(0)
    without: Example = {**full, "audio": None}
    silent: Example = {**full, "audio": np.zeros((4000, 1), dtype=np.int16)}
    hidden = predictor.embeddings([without])
    assert not np.allclose(hidden, predictor.embeddings([silent]), atol=1e-4)
    mixed = predictor.embeddings([full, without])
    np.testing.assert_allclose(mixed[1:], hidden, rtol=1e-4, atol=1e-5)


def test_probabilities_add_up_and_follow_the_labels(predictor: Predictor) -> None:
    values = predictor.probabilities([_example(0), _example(1)])
    assert values.shape == (2, len(LABELS))
    np.testing.assert_allclose(values.sum(axis=1), 1.0, atol=1e-5)


@pytest.mark.parametrize("mask_ratio", [0.0, 0.85])
def test_reconstructions_are_in_the_stored_type(predictor: Predictor, mask_ratio: float) -> None:
    found = predictor.reconstructions([_example(0), {**_example(1), "audio": None}], mask_ratio)
    assert {name: (a.dtype.name, a.shape) for name, a in found.items()} == {
        "video": ("uint8", (2, 1024, 3)),
        "audio": ("int16", (2, 4000, 1)),
    }


def test_a_complete_example_is_reconstructed_the_same_beside_an_incomplete_one(predictor: Predictor) -> None:
    full = _example(0)
    alone = predictor.reconstructions([full])
    beside = predictor.reconstructions([full, {**_example(1), "audio": None}])
    for name, values in alone.items():
        np.testing.assert_allclose(values[0].astype(float), beside[name][0].astype(float), atol=1.0)


def test_what_does_not_fit_the_model_is_refused(predictor: Predictor) -> None:
    wrong: Example = {"video": np.zeros((10, 3), dtype=np.uint8), "audio": None}
    with pytest.raises(UserError, match=r"uint8 \[1024, 3\], got uint8 \[10, 3\]"):
        predictor.embeddings([wrong])
    with pytest.raises(UserError, match="none of the model's modalities"):
        predictor.embeddings([{"video": None, "audio": None}])


def test_rounding_stays_inside_the_type() -> None:
    values = np.array([-5.0, 0.4, 254.6, 900.0])
    np.testing.assert_array_equal(to_stored_type(values, "uint8"), np.array([0, 0, 255, 255], dtype=np.uint8))


def test_the_plain_graph_gives_the_same_numbers(predictor: Predictor) -> None:
    examples = [_example(0), _example(1)]
    tokens = [torch.from_numpy(np.stack([e[name] for e in examples]).astype(np.float32)) for name in predictor.specs]  # type: ignore[arg-type]
    with torch.no_grad():
        found = EmbeddingGraph(predictor)(*tokens)
    np.testing.assert_allclose(found["embedding"].numpy(), predictor.embeddings(examples), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["probabilities"].numpy(), predictor.probabilities(examples), rtol=1e-3, atol=1e-5)


def test_corrupt_weights_are_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "nano", with_head=False)
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-10] ^= 0xFF
    (folder / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises((InputError, UserError), match=r"model\.safetensors"):
        Predictor.load(folder)


def test_labels_without_a_head_say_how_to_get_one(tmp_path: Path) -> None:
    predictor = Predictor.load(make_model(tmp_path / "bare", with_head=False))
    with pytest.raises(UserError, match="linear_probe export="):
        predictor.probabilities([_example(0)])


def test_a_served_head_gives_the_probabilities_that_were_evaluated(tmp_path: Path) -> None:
    """Normalisation, order of modalities, levels and pooling are the same in the probe and in what is packaged."""
    shards = write_small_dataset(tmp_path / "shards")
    model, exported = write_model(tmp_path / "nano", shards), str(tmp_path / "with_head")
    off = {"figures": EvaluateFigureOptions(enabled=False), "tracking": TrackingOptions(enabled=False)}
    evaluate(EvaluateOptions(shards=shards, model=model, export=exported, output=str(tmp_path / "report"), **off))
    session = open_session(EvaluateOptions(shards=shards, model=exported, **off), str(tmp_path / "session"))
    head, served = load_head(exported), Predictor.load(exported, "cpu")
    assert head is not None
    pooled = session.embeddings("validation").features(head.levels, head.pool)
    expected = head.probabilities(torch.from_numpy(pooled)).numpy()
    batch = ShardReader(shards, split="validation").read(np.arange(30))
    examples = [{name: array[row] for name, array in reversed(batch.arrays.items())} for row in range(30)]
    np.testing.assert_allclose(served.probabilities(examples), expected, atol=1e-5)
