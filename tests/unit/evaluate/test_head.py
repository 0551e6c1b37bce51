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
        levels=(1,),
        task=task,
        label_names=tuple(f"class {i}" for i in range(classes)),
    )


def test_round_trip_through_a_model_folder(tmp_path):
    head = _head()
    save_head(head, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"metadata": {"other": 1, **head.metadata()}}))
    back = load_head(tmp_path)
    assert back is not None
    assert (back.levels, back.pool, back.task, back.label_names) == (
        head.levels,
        head.pool,
        head.task,
        head.label_names,
    )
    features = torch.randn(5, 4)
    torch.testing.assert_close(back.scores(features), head.scores(features), rtol=0, atol=0)


def test_scores_are_the_stated_formula():
    head, features = _head(), torch.randn(5, 4)
    expected = (features - head.mean) / head.std @ head.weight.T + head.bias
    torch.testing.assert_close(head.scores(features), expected)
    torch.testing.assert_close(head.probabilities(features).sum(1), torch.ones(5))
    many = _head("multilabel").probabilities(features)
    torch.testing.assert_close(many, expected.sigmoid())


def test_ways_of_pooling_are_what_they_say():
    latents = [torch.randn(2, 4, 3, 4), torch.randn(2, 1, 5, 4)]
    flat = [level.flatten(1, 2) for level in latents]
    torch.testing.assert_close(pool_features(latents, (0,)), flat[0].mean(1))
    both = torch.cat([flat[0].mean(1), flat[0].std(1, correction=0), flat[1].mean(1), flat[1].std(1, correction=0)], 1)
    torch.testing.assert_close(pool_features(latents, (0, 1), "mean_std"), both)
    groups = pool_features(latents, (0,), "groups")
    assert groups.shape == (2, 4 * 4 + 4)
    torch.testing.assert_close(groups[:, 4:8], latents[0][:, 1].mean(1))
    assert head_probabilities(_head(), latents).shape == (2, 3)
    with pytest.raises(InputError, match="levels 0 to 1"):
        pool_features(latents, (2,))


def test_many_groups_are_averaged_down_to_sixteen_neighbours_together():
    latents = torch.randn(2, 64, 3, 4)
    groups = pool_features([latents], (0,), "groups")[:, : 16 * 4].reshape(2, 16, 4)
    torch.testing.assert_close(groups[:, 1], latents[:, 4:8].mean((1, 2)))


def test_a_head_of_an_older_file_names_one_level_and_is_averaged(tmp_path):
    head = _head()
    save_head(head, tmp_path)
    older = {**head.metadata(), "head": {"level": 1, "pool": "mean"}}
    (tmp_path / "config.json").write_text(json.dumps({"metadata": older}))
    back = load_head(tmp_path)
    assert back is not None
    assert (back.levels, back.pool) == ((1,), "mean")


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
        Head(head.weight, head.bias, head.mean, head.std, (0,), "classification", ("a", "b"))
    with pytest.raises(InputError, match="pool 'max'"):
        Head(head.weight, head.bias, head.mean, head.std, (0,), "multilabel", head.label_names, "max")
    with pytest.raises(InputError, match="unknown"):
        Head(head.weight, head.bias, head.mean, head.std, (0,), "ranking", head.label_names)


def test_constant_features_keep_scale_one():
    mean, std = feature_scale(np.array([[1.0, 2.0], [3.0, 2.0]]))
    np.testing.assert_allclose(mean, [2.0, 2.0])
    np.testing.assert_allclose(std, [1.0, 1.0])
