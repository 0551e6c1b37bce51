"""The head file: what is written is what is read, and what does not fit is refused."""

import json

import numpy as np
import pytest
import torch

from hip_model.errors import InputError
from pipeline.evaluate.head import Head, feature_scale, head_probabilities, load_head, pool_features, save_head


def _head(task="classification", classes=3, width=4):
    generator = torch.Generator().manual_seed(0)
    return Head(
        weight=torch.randn(classes, width, generator=generator),
        bias=torch.randn(classes, generator=generator),
        mean=torch.randn(width, generator=generator),
        std=torch.rand(width, generator=generator) + 0.5,
        level=1,
        task=task,
        label_names=tuple(f"class {i}" for i in range(classes)),
    )


def test_round_trip_through_a_model_folder(tmp_path):
    head = _head()
    save_head(head, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"metadata": {"other": 1, **head.metadata()}}))
    back = load_head(tmp_path)
    assert back is not None
    assert (back.level, back.task, back.label_names) == (head.level, head.task, head.label_names)
    features = torch.randn(5, 4)
    torch.testing.assert_close(back.scores(features), head.scores(features), rtol=0, atol=0)


def test_scores_are_the_stated_formula():
    head, features = _head(), torch.randn(5, 4)
    expected = (features - head.mean) / head.std @ head.weight.T + head.bias
    torch.testing.assert_close(head.scores(features), expected)
    torch.testing.assert_close(head.probabilities(features).sum(1), torch.ones(5))
    many = _head("multilabel").probabilities(features)
    torch.testing.assert_close(many, expected.sigmoid())


def test_pooling_is_the_mean_over_groups_and_latents():
    latents = [torch.randn(2, 4, 3, 4), torch.randn(2, 1, 5, 4)]
    torch.testing.assert_close(pool_features(latents, 0), latents[0].flatten(1, 2).mean(1))
    assert head_probabilities(_head(), latents).shape == (2, 3)
    with pytest.raises(InputError, match="levels 0 to 1"):
        pool_features(latents, 2)


def test_a_folder_without_head_has_none(tmp_path):
    assert load_head(tmp_path) is None


def test_head_file_without_its_metadata_is_refused(tmp_path):
    save_head(_head(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"metadata": {}}))
    with pytest.raises(InputError, match="which level"):
        load_head(tmp_path)


def test_shapes_and_names_must_agree():
    head = _head()
    with pytest.raises(InputError, match="2 label names"):
        Head(head.weight, head.bias, head.mean, head.std, 0, "classification", ("a", "b"))
    with pytest.raises(InputError, match="unknown"):
        Head(head.weight, head.bias, head.mean, head.std, 0, "ranking", head.label_names)


def test_constant_features_keep_scale_one():
    mean, std = feature_scale(np.array([[1.0, 2.0], [3.0, 2.0]]))
    np.testing.assert_allclose(mean, [2.0, 2.0])
    np.testing.assert_allclose(std, [1.0, 1.0])
